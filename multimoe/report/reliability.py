"""Is a predicted quality of 0.8 liked eight times of ten? Predictions against later ratings, before and after."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from multimoe.calibration import BINS, calibration_error, equal_counts
from multimoe.quality import Learned
from multimoe.report.history import History
from multimoe.report.intervals import wilson
from multimoe.report.plot import BLUE, ORANGE, Look, Plot, bare, nothing
from multimoe.training import predictions

Float = NDArray[np.float64]

FEWEST = 20  # rated parts of answers


@dataclass(frozen=True)
class Bin:
    """Of predictions near each other: their mean, the mean score with its 95 % interval, and how many."""

    predicted: float
    observed: float
    low: float
    high: float
    count: int


def reliability(history: History) -> Plot:
    """Predicted quality against later scores, in bins of equal count, of the cards alone and of the serving gate."""
    name, title = "reliability", "Reliability of predicted quality"
    predicted, scores = predictions(history.later, history.gate)
    if len(scores) < FEWEST:
        return nothing(
            name,
            title,
            f"{len(scores)} ratings came after what the gate learned from, {FEWEST} are needed to compare them.",
        )
    cards, _ = predictions(history.later, history.gate.with_learned(Learned(), 0))
    guesses = {"cards alone": cards}
    if history.gate.version > 0:
        guesses[f"gate {history.gate.version}"] = predicted
    gates = {label: bins(guess, scores) for label, guess in guesses.items()}
    errors = {label: calibration_error(guess, scores) for label, guess in guesses.items()}
    rows = [
        (label, b.predicted, b.observed, b.low, b.high, b.count, errors[label])
        for label, found in gates.items()
        for b in found
    ]

    def draw(figure: Figure, look: Look) -> None:
        axes = bare(figure.subplots(), look, "both")
        axes.plot([0, 1], [0, 1], color=look.soft, linewidth=1, linestyle="--", label="as predicted")
        for (label, found), colour, marker in zip(gates.items(), (ORANGE, BLUE), "so", strict=False):
            x, y = [b.predicted for b in found], [b.observed for b in found]
            error = [[b.observed - b.low for b in found], [b.high - b.observed for b in found]]
            text = f"{label}: calibration error {errors[label]:.3f}"
            axes.errorbar(x, y, error, color=colour, marker=marker, linewidth=1.4, elinewidth=1, capsize=2, label=text)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted quality", ylabel="mean rating")
        axes.set_aspect("equal")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    said = "; ".join(f"{label} {error:.3f}" for label, error in errors.items())
    return Plot(
        name,
        title,
        f"Predictions for {len(scores)} rated parts of answers that the gate had not learned from, in bins of equal "
        "count, with 95 % intervals. On the dashed line a prediction means what it says. The expected calibration "
        f"error is the mean distance from it: {said}.",
        f"Reliability diagram of {len(scores)} predictions. Expected calibration error: {said}.",
        ("gate", "predicted", "observed", "low", "high", "ratings", "calibration error"),
        tuple(rows),
        draw,
        3.8,
    )


def bins(predicted: Float, scores: Float, count: int = BINS) -> list[Bin]:
    bin = equal_counts(predicted, count)
    parts = [part for part in (np.flatnonzero(bin == i) for i in range(count)) if len(part)]
    return [
        Bin(
            float(predicted[part].mean()),
            float(scores[part].mean()),
            *wilson(float(scores[part].sum()), len(part)),
            len(part),
        )
        for part in parts
    ]
