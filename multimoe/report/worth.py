"""What the gates are worth beside what anybody could do without one: as logged, by preference, and by ratings learned.

Best expert alone, chance and an upper bound are always drawn: a gate that does not beat the first two earns nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from multimoe.errors import TooLittleData
from multimoe.offpolicy import Estimate
from multimoe.replay import replay
from multimoe.report.bench import Bench, Value, bench
from multimoe.report.history import History
from multimoe.report.plot import BLUE, GREEN, ORANGE, VERMILLION, Cell, Look, Plot, bare, colours, markers, nothing
from multimoe.report.tradeoff import GRID, Setting, Tradeoff

BOUND = "upper bound (reward model)"
SINGLE, CHANCE, LOGGED = "best single expert", "one expert by chance", "as logged"
COLOURS = {"SNIPS": ORANGE, "doubly robust": BLUE}
BASELINES: dict[str, Any] = {
    SINGLE: {"color": VERMILLION, "marker": "D"},
    CHANCE: {"color": GREEN, "marker": "X"},
}
Point = tuple[str, str, float, float]  # kind, name, cost or time, quality


def value(history: History) -> Plot:
    """Off-policy values of the gates and of what they have to beat, as a forest plot."""
    name, title = "value", "What each gate is worth, by later ratings"
    try:
        held = bench(history)
    except TooLittleData as error:
        return nothing(name, title, sentence(error))
    values = [*_gates(held), *baselines(held), *held.values(LOGGED, held.of_log())]
    bound = held.oracle()
    rows = [*(_row(one.policy, one.estimator, one.estimate) for one in values), _row(BOUND, "reward model", bound)]

    def draw(figure: Figure, look: Look) -> None:
        _forest(bare(figure.subplots(), look, "x"), values, bound, look)

    return Plot(
        name,
        title,
        f"Mean rating that each would have got on {len(held.rows)} rated answers that the serving gate has not learned "
        "from (the newest gate on those that it has not learned from), with 95 % intervals. SNIPS weighs the logged "
        "ratings by how much likelier a policy makes what was done; the doubly robust estimate adds a reward model "
        "fitted on earlier ratings. ESS says how many of the policy's own answers the log amounts to; under 5 there is "
        f"no value to show. Best single expert: {held.single_name}. The dashed line is the best any router could do if "
        "the reward model were right; estimates above it say that it is too modest.",
        "Forest plot of off-policy values. " + " ".join(_said(one) for one in values) + f" Bound {bound.value:.3f}.",
        ("policy", "estimator", "value", "low", "high", "effective sample size", "rated answers"),
        tuple(rows),
        draw,
        0.9 + 0.3 * len(values),
    )


def cost_quality(history: History) -> Plot:
    """The serving gate at every preference, with each expert alone, chance and the bound, over cost (else time)."""
    name, title = "cost-quality", "Cost against quality"
    try:
        tradeoff = Tradeoff(history)
    except TooLittleData as error:
        return nothing(name, title, sentence(error))
    now = history.gate.spec.preference
    settings = tradeoff.sweep(GRID)
    here = tradeoff.at(now)
    priced = any(spec.cost > 0 for spec in history.gate.experts)
    points = _points(history, tradeoff, priced)
    unit = "US$ per 1000 requests" if priced else "latency of the slowest expert asked, ms"

    def along(setting: Setting) -> float:
        return 1000 * setting.cost if priced else setting.latency_ms

    rows = [
        *(("gate at preference", f"{s.preference:g}", along(s), s.quality, *_interval(s.value)) for s in settings),
        ("gate as it is set", f"{now:g}", along(here), here.quality, *_interval(here.value)),
        *((*point, None, None, None) for point in points),
    ]

    def draw(figure: Figure, look: Look) -> None:
        axes = bare(figure.subplots(), look, "both")
        _curve(axes, settings, here, [along(s) for s in settings], along(here), look)
        _dots(axes, points, look)
        axes.set(xlabel=unit, ylabel="quality")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return Plot(
        name,
        title,
        f"The serving gate decided {len(tradeoff.requests)} logged requests again at preferences from 0 (cheap) to 1 "
        "(best). Lines and dots are what the gate predicts; bars with 95 % intervals what later ratings say (SNIPS). "
        "An expert alone is shown over the requests that it can read. `multimoe gate calibrate` finds the preference "
        "for a target.",
        f"Curve of predicted quality against {unit}, from {settings[0].quality:.3f} at {along(settings[0]):.4g} "
        f"(preference 0) to {settings[-1].quality:.3f} at {along(settings[-1]):.4g} (preference 1); it is set to "
        f"{now:g}. " + " ".join(f"{label}: {y:.3f} at {x:.4g}." for _, label, x, y in points),
        ("what", "which", unit, "predicted quality", "by ratings", "low", "high"),
        tuple(rows),
        draw,
        3.9,
    )


def sentence(error: TooLittleData) -> str:
    """Why there is nothing to see, as a caption."""
    return f"{error.message[0].upper()}{error.message[1:]}."


def baselines(held: Bench) -> list[Value]:
    """What needs no gate."""
    return [*held.values(SINGLE, held.of_best_single()), *held.values(CHANCE, held.of_uniform())]


def _gates(held: Bench) -> list[Value]:
    """The serving gate, and the newest by what came after that one's own learning."""
    history = held.history
    served = held.values(f"gate {history.gate.version}, serving", held.of_gate(history.gate))
    if history.challenger is None:
        return [*served]
    gate, manifest = history.challenger
    label = f"gate {gate.version}, newest"
    try:
        newer = Bench(history, history.unseen_by(manifest))
    except TooLittleData:
        return [*served, *(Value(policy=label, estimator=one.estimator, estimate=None) for one in served)]
    return [*served, *newer.values(label, newer.of_gate(gate))]


def _row(policy: str, estimator: str, estimate: Estimate | None) -> tuple[Cell, ...]:
    if estimate is None:
        return (policy, estimator, None, None, None, None, None)
    e = estimate
    return (policy, estimator, e.value, e.low, e.high, e.effective_sample_size, e.n)


def _said(one: Value) -> str:
    if one.estimate is None:
        return f"{one.policy} by {one.estimator}: not identifiable."
    e = one.estimate
    return f"{one.policy} by {one.estimator}: {e.value:.3f} ({e.low:.3f} to {e.high:.3f})."


def _forest(axes: Axes, values: Sequence[Value], bound: Estimate, look: Look) -> None:
    """A row for each policy and estimator, the effective sample size at its end."""
    for i, one in enumerate(values):
        if one.estimate is None:
            axes.text(0.01, i, "not identifiable from this log", va="center", color=look.soft, fontsize=8.5)
            continue
        e, shade = one.estimate, COLOURS[one.estimator]
        low, high = max(0.0, e.low), min(1.0, e.high)
        axes.plot([low, high], [i, i], color=shade, linewidth=2, solid_capstyle="butt")
        axes.plot(e.value, i, color=shade, marker="os"[one.estimator == "SNIPS"], markersize=6)
        axes.text(1.02, i, f"{e.effective_sample_size:.0f}", va="center", color=look.soft, fontsize=8.5)
    axes.axvline(bound.value, color=look.ink, linewidth=1, linestyle="--")
    side = "right" if bound.value > 0.5 else "left"
    axes.text(bound.value, -0.75, f" {BOUND} {bound.value:.2f} ", ha=side, color=look.ink, fontsize=8.5)
    axes.text(1.02, -0.75, "ESS", color=look.soft, fontsize=8.5)
    axes.set_yticks(range(len(values)), [f"{one.policy} · {one.estimator}" for one in values])
    axes.set(xlim=(0, 1), ylim=(len(values) - 0.4, -1.1), xlabel="mean rating")


def _interval(estimate: Estimate | None) -> tuple[Cell, Cell, Cell]:
    return (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)


def _points(history: History, tradeoff: Tradeoff, priced: bool) -> list[Point]:
    """Each expert alone over what it can read; then the best of them by kind of input, chance, and the bound."""
    seen = replay(tradeoff.rows, history.gate)
    guess = np.where(seen.eligible, seen.quality, 0.0)  # (requests, experts)
    along = np.array([1000 * s.cost if priced else history.latencies[s.name] for s in history.gate.experts])
    kinds = [request.decision.modalities for request in tradeoff.requests]
    best = {kind: guess[[other == kind for other in kinds]].sum(axis=0).argmax() for kind in dict.fromkeys(kinds)}
    every = np.arange(guess.shape[1])
    picks = {
        SINGLE: every == np.array([best[kind] for kind in kinds])[:, None],
        CHANCE: seen.eligible / seen.eligible.sum(axis=1, keepdims=True),
        BOUND: every == guess.argmax(axis=1)[:, None],
    }
    alone = [(name, i) for i, name in enumerate(history.experts) if seen.eligible[:, i].any()]
    return [
        *(("expert alone", name, float(along[i]), float(guess[seen.eligible[:, i], i].mean())) for name, i in alone),
        *(("baseline", label, _mean(p @ along), _mean((p * guess).sum(axis=1))) for label, p in picks.items()),
    ]


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean())


def _curve(
    axes: Axes, settings: Sequence[Setting], here: Setting, along: Sequence[float], here_along: float, look: Look
) -> None:
    axes.plot(
        along, [s.quality for s in settings], color=BLUE, marker=".", linewidth=2, label="gate, 0 (cheap) to 1 (best)"
    )
    axes.plot(
        here_along, here.quality, color=look.ink, marker="*", markersize=13, linestyle="", label="gate as it is set"
    )
    rated = [(x, s.value) for x, s in zip(along, settings, strict=True) if s.value]
    for i, (x, e) in enumerate(rated):
        low, high = max(0.0, e.low), min(1.0, e.high)
        axes.plot([x, x], [low, high], color=ORANGE, linewidth=1)
        axes.plot(
            x, e.value, color=ORANGE, marker="s", markersize=4, linestyle="", label="" if i else "by ratings (SNIPS)"
        )


def _dots(axes: Axes, points: Sequence[Point], look: Look) -> None:
    names = [name for _, name, _, _ in points]
    shade, shape = colours(names), markers(names)
    for kind, name, x, y in points:
        if name == BOUND:
            axes.axhline(y, color=look.ink, linewidth=1, linestyle="--", label=BOUND)
        else:
            look_of = {"color": shade[name], "marker": shape[name]} if kind == "expert alone" else BASELINES[name]
            axes.plot(x, y, linestyle="", markersize=8, label=name, **look_of)
