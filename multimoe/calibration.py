"""Expected calibration error (Guo et al. 2017): how far what was predicted lies from what came of it, on average.

Bins are of equal count, so that each says as much. It knows nothing of who predicts, or what.
"""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.intp]

BINS = 10


def calibration_error(predicted: Float, scores: Float, weights: Float | None = None, bins: int = BINS) -> float:
    """Of predictions (n,) in [0, 1] and what came of them, which counts by `weights`; in [0, 1], 0 is perfect."""
    return Reliability(predicted, scores, bins).error(weights)


def equal_counts(predicted: Float, bins: int = BINS) -> Int:
    """The bin of each prediction, (n,): 0 for the lowest; with fewer predictions than bins some stay empty."""
    found = np.empty(len(predicted), dtype=np.intp)
    found[np.argsort(predicted, kind="stable")] = np.arange(len(predicted)) * bins // max(1, len(predicted))
    return found


class Reliability:
    """Predictions (n,) sorted once, for the error under many weightings of what came of them, such as resamples."""

    def __init__(self, predicted: Float, scores: Float, bins: int = BINS) -> None:
        self.missed = predicted - scores
        self.bin = equal_counts(predicted, bins)

    def error(self, weights: Float | None = None) -> float:
        """With `weights` (n,), not negative and not all 0; each counts alike without."""
        counted = np.ones(len(self.missed)) if weights is None else weights
        gaps = np.bincount(self.bin, counted * self.missed)
        return float(np.abs(gaps).sum() / counted.sum()) if len(self.missed) else 0.0
