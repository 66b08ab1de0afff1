"""What ratings buy: gates fitted on more and more of the earlier ratings, all held against the same later ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from multimoe.errors import TooLittleData
from multimoe.examples import Example
from multimoe.gate import Gate
from multimoe.offpolicy import Estimate
from multimoe.quality import Learned
from multimoe.report.bench import Value, bench, reward_model
from multimoe.report.history import History
from multimoe.report.plot import BLUE, GREEN, ORANGE, VERMILLION, Cell, Look, Plot, bare, nothing
from multimoe.report.worth import BOUND, CHANCE, SINGLE, baselines, sentence
from multimoe.training import predictions

Float = NDArray[np.float64]

SHARES = (0.125, 0.25, 0.5, 1.0)  # of the earlier rated answers
FEWEST = 20  # rated answers that a gate is fitted on here
FAINTEST = 1e-6  # probability; below it a logarithm only explodes


@dataclass(frozen=True, eq=False)
class Stage:
    """A gate fitted on the first `ratings` of the earlier ratings, which are in `examples`."""

    ratings: int
    examples: Sequence[Example]
    gate: Gate


def learning_curve(history: History) -> Plot:
    """Off-policy value of gates by how many ratings they were fitted on."""
    name, title = "learning-curve", "Learning curve"
    try:
        held = bench(history)
    except TooLittleData as error:
        return nothing(name, title, sentence(error))
    found = stages(history)
    values = [(stage, *held.values(str(stage.ratings), held.of_gate(stage.gate))) for stage in found]
    lines, bound = baselines(held), held.oracle()
    rows = [
        *(_row(f"gate fitted on {s.ratings}", s.ratings, value) for s, *both in values for value in both),
        *(_row(line.policy, None, line) for line in lines),
        _row(BOUND, None, Value(policy=BOUND, estimator="reward model", estimate=bound)),
    ]

    def draw(figure: Figure, look: Look) -> None:
        axes = bare(figure.subplots(), look)
        _with_intervals(axes, [(stage.ratings, by_snips) for stage, by_snips, _ in values], ORANGE, "s")
        _with_intervals(axes, [(stage.ratings, robust) for stage, _, robust in values], BLUE, "o")
        _levels(axes, lines, bound, look)
        axes.set(xlabel="ratings learned from", ylabel="mean rating", ylim=(0, 1))
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return Plot(
        name,
        title,
        f"Gates fitted anew on the first ratings before the {len(held.rows)} later ones, which all of them are judged "
        "by; 0 is the cards alone. A curve that still rises says that more ratings will pay.",
        "Learning curve. " + " ".join(_said(stage, value) for stage, _, value in values) + f" Bound {bound.value:.3f}.",
        ("policy", "ratings", "estimator", "value", "low", "high", "effective sample size"),
        tuple(rows),
        draw,
        3.6,
    )


def losses(history: History) -> Plot:
    """Log loss on the ratings that gates were fitted on and on later ones, by how many those were."""
    name, title = "loss", "Training and validation loss"
    found = [stage for stage in stages(history) if stage.ratings]
    later = predictions(history.later, history.gate)[1]
    if not found or len(later) < FEWEST:
        why = (
            f"{sum(e.ratings for e in history.past)} earlier and {len(later)} later ratings: too few to fit and check."
        )
        return nothing(name, title, why)
    table = [
        (
            stage.ratings,
            log_loss(*predictions(stage.examples, stage.gate)),
            log_loss(*predictions(history.later, stage.gate)),
        )
        for stage in found
    ]
    constant = log_loss(np.full(len(later), later.mean()), later)
    cards = log_loss(*predictions(history.later, history.gate.with_learned(Learned(), 0)))

    def draw(figure: Figure, look: Look) -> None:
        axes = bare(figure.subplots(), look)
        at = [ratings for ratings, _, _ in table]
        axes.plot(at, [fitted for _, fitted, _ in table], color=ORANGE, marker="s", label="fitted on (training)")
        axes.plot(at, [unseen for _, _, unseen in table], color=BLUE, marker="o", label="later (validation)")
        axes.axhline(cards, color=GREEN, linewidth=1.2, linestyle="-.", label="cards alone, later")
        axes.axhline(constant, color=look.ink, linewidth=1, linestyle="--", label="always the mean, later")
        axes.set(xlabel="ratings learned from", ylabel="log loss a rating, nats", xlim=(0, None))
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    last = table[-1]
    return Plot(
        name,
        title,
        "Mean log loss of predicted quality a rating, of the same gates as in the learning curve. Validation far above "
        "training is overfitting; above the dashed line, knowing nothing would predict better.",
        f"Log loss by ratings; at {last[0]} ratings {last[1]:.3f} in training and {last[2]:.3f} in validation; cards "
        f"alone {cards:.3f}, always the mean {constant:.3f}.",
        ("ratings", "training loss", "validation loss", "cards alone, validation", "always the mean, validation"),
        tuple((*row, cards, constant) for row in table),
        draw,
        3.0,
    )


@lru_cache(maxsize=1)
def stages(history: History) -> list[Stage]:
    """The cards alone, then gates fitted on growing parts of the earlier answers, oldest first."""
    past = history.past
    sizes = sorted({n for share in SHARES if (n := round(share * len(past))) >= FEWEST})
    return [
        Stage(0, (), history.gate.with_learned(Learned(), 0)),
        *(Stage(sum(e.ratings for e in past[:n]), past[:n], reward_model(past[:n], history.gate)) for n in sizes),
    ]


def log_loss(predicted: Float, scores: Float) -> float:
    """Mean cross-entropy in nats; both (labels,)."""
    p = np.clip(predicted, FAINTEST, 1 - FAINTEST)
    return float(-(scores * np.log(p) + (1 - scores) * np.log(1 - p)).mean())


def _row(policy: str, ratings: int | None, value: Value) -> tuple[Cell, ...]:
    e = value.estimate
    figures = (e.value, e.low, e.high, e.effective_sample_size) if e else (None, None, None, None)
    return (policy, ratings, value.estimator, *figures)


def _with_intervals(axes: Axes, points: Sequence[tuple[int, Value]], shade: str, marker: str) -> None:
    estimates = [(n, value.estimator, value.estimate) for n, value in points if value.estimate]
    if not estimates:
        return
    at = [n for n, _, _ in estimates]
    values = np.array([e.value for _, _, e in estimates])
    low = values - np.clip([e.low for _, _, e in estimates], 0, 1)
    high = np.clip([e.high for _, _, e in estimates], 0, 1) - values
    label = f"gates, {estimates[0][1]}"
    axes.errorbar(
        at,
        values,
        np.maximum([low, high], 0),
        color=shade,
        marker=marker,
        linewidth=1.8,
        elinewidth=1,
        capsize=3,
        label=label,
    )


def _levels(axes: Axes, lines: Sequence[Value], bound: Estimate, look: Look) -> None:
    for line in lines:
        if line.estimate and line.estimator == "doubly robust":
            shade, style = {SINGLE: (VERMILLION, "-."), CHANCE: (GREEN, ":")}[line.policy]
            e = line.estimate
            label = f"{line.policy} ({max(0.0, e.low):.2f} to {min(1.0, e.high):.2f})"
            axes.axhline(e.value, color=shade, linewidth=1.6, linestyle=style, label=label)
    axes.axhline(bound.value, color=look.ink, linewidth=1, linestyle="--", label=BOUND)


def _said(stage: Stage, value: Value) -> str:
    e = value.estimate
    worth = f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})" if e else "not identifiable"
    return f"{stage.ratings} ratings: {worth}."
