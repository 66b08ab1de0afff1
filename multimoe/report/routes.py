"""Who was asked what: a map of experts against kinds of input and topics, and each expert's weight over time."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from multimoe.journal import Step
from multimoe.report.history import History, Request
from multimoe.report.plot import GREEN, Look, Plot, bare, colours, nothing
from multimoe.report.spans import Spans, as_numbers, time_axis
from multimoe.report.topics import topics

Float = NDArray[np.float64]

SHADES = 7  # experts with a shade of their own over time; the others share one
NO_REQUESTS = "No request has been routed by the gate yet (in this period). Ask some questions, then look again."


def routing_map(history: History) -> Plot:
    """Share of requests in which each expert was asked, by kind of input and by topic, and its lift."""
    name, title = "routing", "Who is asked what"
    requests = history.requests
    if not requests:
        return nothing(name, title, NO_REQUESTS)
    groups, members = _groups(requests)  # (groups, n)
    experts = _asked(history)
    asked = np.array([[_chose(request, expert) for request in requests] for expert in experts], dtype=np.float64)
    share = asked @ members.T / members.sum(axis=1)  # (experts, groups)
    overall = asked.mean(axis=1)
    lift = share / overall[:, None]
    rows = [
        (expert, kind, group, int(members[j].sum()), float(share[i, j]), float(lift[i, j]))
        for i, expert in enumerate(experts)
        for j, (kind, group) in enumerate(groups)
    ]
    likeliest = ", ".join(f"{group}: {experts[int(share[:, j].argmax())]}" for j, (_, group) in enumerate(groups))

    def draw(figure: Figure, look: Look) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        labels = [group for _, group in groups]
        _heat(left, share, experts, labels, look, "share of requests in which it is asked", lift=False)
        _heat(right, lift, experts, labels, look, "lift: times its share overall", lift=True)

    return Plot(
        name,
        title,
        "Each cell: in which share of such requests the expert was asked (left), and how many times its share over all "
        "requests that is (right; 1 is as always). Topics are clusters of the questions' embeddings, named by the "
        "words that set them apart.",
        f"Heat map of {len(experts)} experts against {len(groups)} kinds of request. Asked most for {likeliest}.",
        ("expert", "grouped by", "group", "requests", "share", "lift"),
        tuple(rows),
        draw,
        1.9 + 0.34 * len(experts),
    )


def weights_over_time(history: History) -> Plot:
    """Mean blend weight of every expert and how evenly it is spread, with the versions that began to serve."""
    name, title = "weights", "Weights over time"
    decided = [(one.created, one.decision) for one in history.interactions if one.decision]
    if not decided:
        return nothing(name, title, NO_REQUESTS)
    spans = Spans.over([moment for moment, _ in decided])
    experts = list(dict.fromkeys(choice.expert for _, decision in decided for choice in decision.chosen))
    sums, counts = np.zeros((len(experts), spans.count)), np.zeros(spans.count)
    for moment, decision in decided:
        counts[spans.of(moment)] += 1
        for choice in decision.chosen:
            sums[experts.index(choice.expert), spans.of(moment)] += choice.weight
    weight = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)  # (experts, spans)
    evenness = _evenness(weight, max(2, len(history.experts)))
    steps = [step for step in history.steps if spans.start <= step.at <= spans.end and step.action != "confirmed"]
    rows = [
        (start, int(n), *(_maybe(value) for value in (*weight[:, i], evenness[i])))
        for i, (start, n) in enumerate(zip(spans.starts, counts, strict=True))
    ]

    def draw(figure: Figure, look: Look) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
        _stacked(bare(top, look), spans, weight, experts, look)
        bare(bottom, look).stairs(evenness, spans.edges(), color=GREEN, linewidth=2, baseline=None)
        bottom.set_ylim(0, 1.05)
        bottom.set_title("evenness (entropy of the weights; 1: all experts weigh the same)")
        for axes in (top, bottom):
            for step in steps:
                axes.axvline(as_numbers([step.at])[0], color=look.ink, linewidth=1, linestyle=":")
        for step in steps:
            top.text(as_numbers([step.at])[0], 1.01, f" {_step(step)}", color=look.ink, fontsize=8.5)
        time_axis(bottom)

    total = np.nansum(sums, axis=1) / counts.sum()
    heaviest = sorted(zip(total.tolist(), experts, strict=True), reverse=True)[:3]
    return Plot(
        name,
        title,
        "Above, every expert's mean weight in the answers of a span of time; dotted lines are gate versions that began "
        "to serve, or to be tried. Below, how evenly the weight is spread: near 0 one expert gives all answers.",
        f"Stacked weights of {len(experts)} experts over {spans.count} spans of time; heaviest overall: "
        + ", ".join(f"{expert} {share:.0%}" for share, expert in heaviest)
        + (f". Steps of gate versions: {', '.join(map(_step, steps))}." if steps else "."),
        ("from", "requests", *(f"weight of {expert}" for expert in experts), "evenness"),
        tuple(rows),
        draw,
        4.4,
    )


def _groups(requests: Sequence[Request]) -> tuple[list[tuple[str, str]], Float]:
    """Kinds of input, then topics; and which requests belong to each, (groups, n) of 0 and 1."""
    inputs = np.array([" + ".join(request.decision.modalities) for request in requests])
    kinds = [("input", str(kind)) for kind in np.unique(inputs)]
    named, of_request = topics(requests)
    members = [inputs == kind for _, kind in kinds] + [of_request == i for i in range(len(named))]
    return [*kinds, *(("topic", topic) for topic in named)], np.array(members, dtype=np.float64)


def _asked(history: History) -> list[str]:
    """Experts that were asked at all, the most asked first."""
    asked = [choice.expert for request in history.requests for choice in request.decision.chosen]
    return sorted(set(asked), key=lambda expert: (-asked.count(expert), expert))


def _chose(request: Request, expert: str) -> bool:
    return any(choice.expert == expert for choice in request.decision.chosen)


def _heat(
    axes: Axes, values: Float, experts: Sequence[str], groups: Sequence[str], look: Look, title: str, lift: bool
) -> None:
    """A cell for each value, which is also printed in it."""
    norm: Normalize = LogNorm(0.25, 4) if lift else Normalize(0, 1)
    shades = ["#0072B2", "#9ec9e2", "#f4f1ea", "#f0b489", "#D55E00"] if lift else ["#f4f1ea", "#56B4E9", "#003e63"]
    ramp = LinearSegmentedColormap.from_list("report", shades)
    axes.set_title(title)
    for i in range(len(experts)):
        for j in range(len(groups)):
            red, green, blue, _ = ramp(norm(np.clip(values[i, j], 0.25 if lift else 0, None)))
            axes.add_patch(_cell(j, i, (red, green, blue)))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            text = f"{values[i, j]:.2g}×" if lift else f"{values[i, j]:.0%}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="#ffffff" if dark else "#211f1c")
    axes.set(xlim=(-0.5, len(groups) - 0.5), ylim=(len(experts) - 0.5, -0.5))
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(experts)), experts)
    axes.tick_params(length=0, labelcolor=look.ink)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(x: int, y: int, colour: tuple[float, float, float]) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=colour, edgecolor="none")


def _stacked(axes: Axes, spans: Spans, weight: Float, experts: Sequence[str], look: Look) -> None:
    """The heaviest experts in shades of their own, the rest together."""
    order = np.argsort(-np.nan_to_num(weight).sum(axis=1), kind="stable")
    rest = order[SHADES:]
    layers = [(experts[i], np.nan_to_num(weight[i])) for i in order[:SHADES]]
    if len(rest):
        layers.append((f"{len(rest)} others", np.nan_to_num(weight[rest]).sum(axis=0)))
    shade = {**colours([name for name, _ in layers[:SHADES]]), **{name: look.soft for name, _ in layers[SHADES:]}}
    below = np.zeros(spans.count)
    for name, values in layers:
        axes.stairs(below + values, spans.edges(), baseline=below, fill=True, color=shade[name], label=name)
        below = below + values
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)


def _step(step: Step) -> str:
    return f"gate {step.version}" + ("" if step.action == "promoted" else f" {step.action}")


def _evenness(weight: Float, experts: int) -> Float:
    """Entropy of the mean weights (experts, spans) as a share of what it can be at most, (spans,); NaN where none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(weight > 0, weight * np.log(weight), 0.0).sum(axis=0)
    evenness: Float = np.where(np.isnan(weight).any(axis=0), np.nan, entropy / np.log(experts))
    return np.minimum(evenness, 1.0)


def _maybe(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
