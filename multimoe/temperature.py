"""One temperature makes a classifier's probabilities true: softmax(logits / T) (Guo et al. 2017).

It is fitted on labelled examples that the classifier did not learn from, by least negative log-likelihood, and changes
no ranking. `fit` takes logits; `listed` makes them of answers, for a classifier that is known by its answers alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # it ships no types
from scipy.special import log_softmax  # type: ignore[import-untyped]

from multimoe.calibration import calibration_error
from multimoe.errors import TooLittleData
from multimoe.outputs import Frozen, Labels

Float = NDArray[np.float64]
Int = NDArray[np.intp]

LEAST, MOST = 0.05, 20.0  # temperatures looked at
SMALLEST = 1e-12  # probability: what an answer leaves for the right label where it leaves none


class Fitted(Frozen):
    """A temperature, and what it changes on examples it was not fitted on: negative log-likelihood (nats) and expected

    calibration error of the likeliest label, before and after.
    """

    temperature: float
    examples: int
    nll_before: float
    nll_after: float
    error_before: float
    error_after: float


def fit(logits: Float, truth: Int) -> float:
    """The temperature of least negative log-likelihood for logits (n, k) whose right columns are `truth` (n,).

    Log-probabilities are logits; a column of -inf is a label that was not to be had. Raises TooLittleData where no
    temperature between 0.05 and 20 is best, as when every example is right.
    """
    low, high = np.log(LEAST), np.log(MOST)
    if not len(truth):
        raise TooLittleData("no labelled example to fit a temperature on")
    found = minimize_scalar(lambda log: _nll(logits, truth, np.exp(log)), bounds=(low, high), method="bounded")
    if min(found.x - low, high - found.x) < 0.01:
        raise TooLittleData(
            f"no temperature between {LEAST:g} and {MOST:g} is best for these {len(truth)} examples; add some that the "
            "classifier gets wrong, and some that it gets right"
        )
    return float(np.exp(found.x))


def calibrate(logits: Float, truth: Int, generator: np.random.Generator, folds: int = 10) -> Fitted:
    """The temperature fitted on all examples, with figures that each example gives under one fitted without it."""
    after = cross_fitted(logits, truth, generator, folds)
    before: Float = log_softmax(logits, axis=1)
    return Fitted(
        temperature=fit(logits, truth),
        examples=len(truth),
        nll_before=_nll(before, truth),
        nll_after=_nll(after, truth),
        error_before=_error(before, truth),
        error_after=_error(after, truth),
    )


def cross_fitted(logits: Float, truth: Int, generator: np.random.Generator, folds: int = 10) -> Float:
    """Log-probabilities (n, k), each example's at the temperature that the other folds give. Raises TooLittleData."""
    found = np.empty_like(logits, dtype=np.float64)
    for held in np.array_split(generator.permutation(len(truth)), min(folds, len(truth))):
        rest = np.setdiff1d(np.arange(len(truth)), held)
        found[held] = log_softmax(logits[held] / fit(logits[rest], truth[rest]), axis=1)
    return found


def listed(answers: Sequence[Labels], truths: Sequence[str]) -> tuple[Float, Int]:
    """Logits (n, k) and right columns (n,) of answers, whose right labels are known by id or name.

    The last column is everything an answer does not list, as one label: the temperature comes out near the one that
    all logits would give, the nearer the less is left out.
    """
    width = max(len(answer.labels) for answer in answers) + 1
    logits = np.full((len(answers), width), -np.inf)
    right = np.full(len(answers), width - 1, dtype=np.intp)
    for row, (answer, truth) in enumerate(zip(answers, truths, strict=True)):
        chances = [label.probability for label in answer.labels]
        logits[row, : len(chances)] = np.log(np.maximum(chances, SMALLEST))
        logits[row, -1] = np.log(max(1 - sum(chances), SMALLEST))
        right[row] = next((i for i, label in enumerate(answer.labels) if truth in (label.id, label.name)), width - 1)
    return logits, right


def tempered(answer: Labels, temperature: float) -> Labels:
    """The same answer at a temperature, for an expert whose engine takes none; what it does not list is one label."""
    logits, _ = listed([answer], [""])
    chances = np.exp(log_softmax(logits[0] / temperature)).tolist()
    pairs = zip(answer.labels, chances, strict=False)  # the last chance is that of the rest
    labels = (label.model_copy(update={"probability": min(chance, 1.0)}) for label, chance in pairs)
    return answer.model_copy(
        update={"labels": tuple(labels), "each": tuple(tempered(one, temperature) for one in answer.each)}
    )


def _nll(logits: Float, truth: Int, temperature: float = 1.0) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(truth)), truth].mean())


def _error(log_probabilities: Float, truth: Int) -> float:
    right = log_probabilities.argmax(axis=1) == truth
    return calibration_error(np.exp(log_probabilities.max(axis=1)), right.astype(np.float64))
