"""How long answers take and how busy the experts are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from multimoe.feedback import Interaction
from multimoe.report.history import History
from multimoe.report.plot import BLUE, GREEN, ORANGE, Cell, Look, Plot, bare, colours, nothing
from multimoe.report.spans import Spans, time_axis

Float = NDArray[np.float64]

FEWEST = 5  # answers, for a violin
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Step:
    """Something that took from `start` to `end` ms after the request came."""

    name: str
    start: float
    end: float


def latency(history: History) -> Plot:
    """How long each expert took, and the steps of the request of median length."""
    name, title = "latency", "Latency"
    took = _by_expert(history.interactions)
    if not took:
        return nothing(name, title, "No expert has answered yet (in this period).")
    order = sorted(took, key=lambda expert: float(np.median(took[expert])))
    steps = waterfall(history.interactions)
    quantiles = {expert: np.quantile(took[expert], QUANTILES).tolist() for expert in order}
    rows: list[tuple[Cell, ...]] = [("expert", expert, len(took[expert]), *quantiles[expert]) for expert in order]
    rows += [("median request", step.name, 1, step.start, None, None, None, step.end) for step in steps]

    def draw(figure: Figure, look: Look) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
        _violins(bare(left, look, "x"), took, order, look)
        _waterfall(bare(right, look, "x"), steps, look)

    said = ", ".join(f"{expert} {quantiles[expert][2]:.0f} ms" for expert in order)
    whole = f" The median request took {max(step.end for step in steps):.0f} ms." if steps else ""
    return Plot(
        name,
        title,
        "Left: how long each expert's answers took (log scale), with the median. Right: the steps of the request of "
        "median length; experts run side by side, the rest is decoding, blending and storing.",
        f"Violins of latency by expert; medians: {said}.{whole}",
        ("what", "which", "answers", "5 % (or start), ms", "25 %", "median", "75 %", "95 % (or end), ms"),
        tuple(rows),
        draw,
        1.4 + 0.34 * max(5, len(order)),
    )


def load(history: History) -> Plot:
    """Requests a minute, and how many answers of every expert were being given at the same time."""
    name, title = "load", "Load over time"
    if not history.interactions:
        return nothing(name, title, "No request has been answered yet (in this period).")
    spans = Spans.over([one.created for one in history.interactions])
    minutes = spans.length.total_seconds() / 60
    arrived = np.zeros(spans.count)
    busy: dict[str, Float] = {}
    for one in history.interactions:
        arrived[spans.of(one.created)] += 1 / minutes
        for outcome in one.outcomes:
            if outcome.status != "skipped":
                at = busy.setdefault(outcome.expert, np.zeros(spans.count))
                at[spans.of(one.created)] += outcome.latency_ms / 60_000 / minutes
    busiest = sorted(busy, key=lambda expert: -float(busy[expert].sum()))
    rows: list[tuple[Cell, ...]] = [
        (start, float(arrived[i]), *(float(busy[expert][i]) for expert in busiest))
        for i, start in enumerate(spans.starts)
    ]

    def draw(figure: Figure, look: Look) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True)
        bare(top, look).stairs(arrived, spans.edges(), color=BLUE, linewidth=2)
        top.set_title("requests a minute")
        bare(bottom, look)
        shade = colours(busiest[:7])
        for expert in busiest[:7]:
            bottom.stairs(busy[expert], spans.edges(), color=shade[expert], linewidth=1.6, label=expert)
        bottom.set_title("answers being given at once, on average")
        if busiest:
            bottom.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        time_axis(bottom)

    return Plot(
        name,
        title,
        "Requests as they came, and how many answers each expert was giving at the same time (its seconds of work a "
        "second; the seven busiest). How many replicas there were is not kept in the store, so it is not drawn: "
        "`multimoe experts list` says it for now, and `GET /metrics` gives it to Prometheus over time.",
        f"Requests a minute over {spans.count} spans of time, at most {arrived.max():.3g}; busiest expert: "
        f"{busiest[0] if busiest else 'none'}.",
        ("from", "requests a minute", *(f"{expert} at once" for expert in busiest)),
        tuple(rows),
        draw,
        3.8,
    )


def waterfall(interactions: Sequence[Interaction]) -> list[Step]:
    """The steps of the request whose whole time is the median; empty where no whole time is known."""
    timed = sorted((one for one in interactions if "total" in one.timing_ms), key=lambda one: one.timing_ms["total"])
    if not timed:
        return []
    median = timed[(len(timed) - 1) // 2]
    total, spent = median.timing_ms["total"], median.decision.timing_ms if median.decision else {}
    embedded = min(total, spent.get("embed", 0.0))
    decided = min(total, embedded + spent.get("route", 0.0))
    experts = [
        Step(outcome.expert, decided, min(total, decided + outcome.latency_ms))
        for outcome in median.outcomes
        if outcome.status != "skipped"
    ]
    done = max([decided, *(step.end for step in experts)])
    return [Step("embed", 0.0, embedded), Step("route", embedded, decided), *experts, Step("the rest", done, total)]


def _by_expert(interactions: Sequence[Interaction]) -> dict[str, list[float]]:
    """Times in ms of answers that were given, by expert."""
    took: dict[str, list[float]] = {}
    for one in interactions:
        for outcome in one.outcomes:
            if outcome.status == "ok":
                took.setdefault(outcome.expert, []).append(max(outcome.latency_ms, 0.1))
    return took


def _violins(axes: Axes, took: dict[str, list[float]], order: Sequence[str], look: Look) -> None:
    """On a log scale; experts with few answers as dots."""
    for i, expert in enumerate(order):
        times = np.log10(took[expert])
        if len(times) >= FEWEST and np.ptp(times) > 0:
            parts = axes.violinplot([times], [i], orientation="horizontal", widths=0.8, showextrema=False)
            for body in parts["bodies"]:  # type: ignore[attr-defined]  # its stub says a collection
                body.set(facecolor=BLUE, alpha=0.55, edgecolor="none")
        else:
            axes.plot(times, np.full(len(times), i), color=BLUE, marker=".", linestyle="")
        axes.plot(np.median(times), i, color=look.ink, marker="|", markersize=12, markeredgewidth=2, linestyle="")
    ticks = np.arange(np.floor(axes.get_xlim()[0]), np.ceil(axes.get_xlim()[1]) + 1)
    axes.set_xticks(ticks, [f"{10.0**tick:g}" for tick in ticks])
    axes.set_yticks(range(len(order)), [f"{expert} ({len(took[expert])})" for expert in order])
    axes.set(ylim=(len(order) - 0.4, -0.6), xlabel="ms", title="by expert (answers)")


def _waterfall(axes: Axes, steps: Sequence[Step], look: Look) -> None:
    axes.set_title("the request of median length")
    if not steps:
        axes.text(0.5, 0.5, "no request's whole time is known", ha="center", transform=axes.transAxes, color=look.soft)
        return
    for i, step in enumerate(steps):
        shade = {"embed": ORANGE, "route": GREEN, "the rest": look.soft}.get(step.name, BLUE)
        axes.barh(i, step.end - step.start, 0.6, left=step.start, color=shade)
        axes.text(step.end, i, f" {step.end - step.start:.0f} ms", va="center", color=look.ink, fontsize=8.5)
    axes.set_yticks(range(len(steps)), [step.name for step in steps])
    axes.set(ylim=(len(steps) - 0.4, -0.6), xlabel="ms since the request came", xlim=(0, 1.15 * steps[-1].end))
