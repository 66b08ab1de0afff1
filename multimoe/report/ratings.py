"""How much is rated and what: volume and liking over time, and which experts' answers get rated at all."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from multimoe.feedback import Rating
from multimoe.report.history import History
from multimoe.report.intervals import wilson
from multimoe.report.plot import BLUE, GREEN, SKY, VERMILLION, Cell, Look, Plot, bare, nothing
from multimoe.report.spans import Spans, time_axis

Coverage = tuple[str, int, int, float, float, float, float | None]  # expert, answers, rated, share, low, high, liked


def volume(history: History) -> Plot:
    """Ratings over time, liked and not, and by expert: what share of its answers is rated, and liked."""
    name, title = "ratings", "Ratings: how many, how good, of whom"
    given = [rating for one in history.recent for rating in one.ratings]
    scored = [rating for rating in given if rating.score is not None]
    if not scored:
        return nothing(
            name, title, "Nobody has rated an answer yet (in this period): thumbs on the page, or POST /v1/feedback."
        )
    spans = Spans.over([rating.created for rating in scored])
    liked, others = _over_time(scored, spans)
    covered = coverage(history)
    rows: list[tuple[Cell, ...]] = [
        ("span", start.isoformat(timespec="minutes"), int(up + down), int(up), None, None, None, None)
        for start, up, down in zip(spans.starts, liked, others, strict=True)
    ]
    rows += [("expert", who, n, None, rated, low, high, mean) for who, n, _, rated, low, high, mean in covered]

    def draw(figure: Figure, look: Look) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
        _volume(bare(left, look), spans, liked, others)
        _coverage(bare(right, look, "x"), covered, look)

    positive = sum(rating.score > 0.5 for rating in scored if rating.score is not None) / len(scored)
    return Plot(
        name,
        title,
        f"{len(scored)} scores, {positive:.0%} above the middle. Right: the share of each expert's answers that was "
        f"rated, with 95 % intervals, and how good those ratings were. {_bias(covered)}",
        f"{len(scored)} scores in {spans.count} spans of time, {positive:.0%} liked; rated share by expert: "
        + ", ".join(f"{who} {share:.0%} of {n}" for who, n, _, share, *_ in covered)
        + ".",
        ("kind", "which", "ratings or answers", "liked", "share rated", "low", "high", "mean score"),
        tuple(rows),
        draw,
        1.6 + 0.32 * max(6, len(covered)),
    )


def coverage(history: History) -> list[Coverage]:
    """Every expert that took part in answers: how many, how many of them rated, and the mean score of those."""
    scores = {
        one.interaction.id: [r.score for r in one.ratings if r.score is not None and r.target != "comparison"]
        for one in history.recent
    }
    answers: dict[str, int] = {}
    rated: dict[str, list[float]] = {}
    for one in history.interactions:
        for expert in one.experts:
            answers[expert] = answers.get(expert, 0) + 1
            if scores.get(one.id):
                rated.setdefault(expert, []).append(float(np.mean(scores[one.id])))
    found = []
    for expert, n in sorted(answers.items(), key=lambda item: (-item[1], item[0])):
        judged = rated.get(expert, [])
        low, high = wilson(len(judged), n)
        found.append((expert, n, len(judged), len(judged) / n, low, high, float(np.mean(judged)) if judged else None))
    return found


def _over_time(scored: Sequence[Rating], spans: Spans) -> tuple[list[int], list[int]]:
    """How many in each span are above the middle, and how many are not."""
    liked, others = [0] * spans.count, [0] * spans.count
    for rating in scored:
        (liked if rating.score is not None and rating.score > 0.5 else others)[spans.of(rating.created)] += 1
    return liked, others


def _volume(axes: Axes, spans: Spans, liked: Sequence[int], others: Sequence[int]) -> None:
    both = [up + down for up, down in zip(liked, others, strict=True)]
    axes.stairs(
        both, spans.edges(), baseline=np.array(liked, dtype=np.float64), fill=True, color=VERMILLION, label="not liked"
    )
    axes.stairs(liked, spans.edges(), fill=True, color=BLUE, label="liked")
    axes.set(ylabel="ratings", title="over time")
    axes.legend(loc="upper left", ncols=2)
    axes.set_ylim(0, 1.25 * max(both))
    time_axis(axes)


def _coverage(axes: Axes, covered: Sequence[Coverage], look: Look) -> None:
    for i, (_, _, _, share, low, high, mean) in enumerate(covered):
        axes.barh(i, share, 0.6, color=SKY, label="share rated" if i == 0 else "")
        axes.plot([low, high], [i, i], color=look.ink, linewidth=1.2)
        if mean is not None:
            axes.plot(mean, i, color=GREEN, marker="D", linestyle="", label="mean score of those" if i == 0 else "")
    axes.set_yticks(range(len(covered)), [f"{who} ({n})" for who, n, *_ in covered])
    axes.set(xlim=(0, 1), ylim=(len(covered) - 0.4, -0.6), title="by expert (answers)")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.1))


def _bias(covered: Sequence[Coverage]) -> str:
    """A warning where some experts' answers are rated far less often than others'."""
    most = max(covered, key=lambda one: one[4])
    least = min(covered, key=lambda one: one[5])
    if least[5] >= most[4] or most[3] < 1.5 * least[3]:
        return "No expert's answers are rated far less often than another's."
    return (
        f"Warning: answers with {least[0]} are rated in {least[3]:.0%} of cases, with {most[0]} in {most[3]:.0%}. "
        "Who cares to rate may think differently from who does not; estimates here are of those who do."
    )
