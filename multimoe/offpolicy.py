"""What another gate would have been worth on logged requests, with intervals. numpy only; it knows no gate, no store.

Each estimator is a value and one influence per row, whose spread gives the interval (delta method); the gain of one
policy over another on the same log is the difference of both, so what the two share cancels. Corrections keep intervals
honest where few rows carry most weight: leverage, degrees of freedom from kurtosis, for values a shift by skewness, and
never less spread than rewards of the usual noise would have (ten answers that all were liked do not prove that all will
be), with the weights that were drawn or those that were to be expected (an expert that never was drawn is not better
than the one that was, however bad). benchmarks/estimators.py counts how often the intervals cover the truth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from multimoe.errors import TooLittleData
from multimoe.outputs import Frozen

Float = NDArray[np.float64]

CONFIDENCE = 0.95
LEAST_CHANCE = 1e-9  # of an option; what was as good as never drawn proves nothing, in finite numbers
FEWEST_GROUPS = (
    10  # with fewer raters than this, spread between raters cannot be estimated and rows count as independent
)


class Estimate(Frozen):
    """A value with its 95 % interval from `n` rows that are worth `effective_sample_size` of the policy's own."""

    value: float
    low: float
    high: float
    effective_sample_size: float
    n: int


@dataclass(frozen=True, eq=False)
class Log:
    """n logged choices: `rewards` in [0, 1], `propensities` in (0, 1], all (n,).

    `predicted` is a reward model's guess for the logged choice; it must not have seen these rows. Rows of one `groups`
    number (one rater) may depend on each other. `votes` say how much a row counts, 1 for all by default. `options`
    (n, m) are the logging policy's probabilities of m sets of choices that are all there are, such as all that begin
    with the same expert.
    """

    rewards: Float
    propensities: Float
    predicted: Float | None = None
    groups: NDArray[np.intp] | None = None
    votes: Float | None = None
    options: Float | None = None

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True, eq=False)
class Replay:
    """What a policy would do on a log: `chances` (n,) of the logged choice; `expected` (n,) is the same reward model's
    mean guess over all its choices; `options` (n, m) are its probabilities of the log's options."""

    chances: Float
    expected: Float | None = None
    options: Float | None = None


@dataclass(frozen=True, eq=False)
class _Rows:
    """A value, each row's `influence` (n,) on it, and the `weight` (n,) of each row's reward in n times the value.

    `options` (n, m) are the policy's, where it weighs rewards at all.
    """

    value: float
    influence: Float
    weight: Float
    options: Float | None = None

    def __sub__(self, other: "_Rows") -> "_Rows":
        options = None if self.options is None or other.options is None else self.options - other.options
        return _Rows(self.value - other.value, self.influence - other.influence, self.weight - other.weight, options)


Estimator = Callable[[Log, Replay], _Rows]


def ips(log: Log, policy: Replay) -> Estimate:
    """Inverse propensity scoring (Horvitz & Thompson 1952): unbiased, wide. Raises TooLittleData."""
    return _estimate(_ips, log, policy)


def snips(log: Log, policy: Replay) -> Estimate:
    """Self-normalised IPS (Swaminathan & Joachims 2015, eq. 6): slightly biased, far narrower. Raises TooLittleData."""
    return _estimate(_snips, log, policy)


def direct_method(log: Log, policy: Replay) -> Estimate:
    """The reward model's own opinion: no variance from weights, all of the model's bias. Raises TooLittleData."""
    return _estimate(_direct, log, policy)


def doubly_robust(log: Log, policy: Replay) -> Estimate:
    """The direct method, corrected by IPS on its errors (Dudík et al. 2011): unbiased whatever the model.

    Raises TooLittleData.
    """
    return _estimate(_doubly_robust, log, policy)


def snips_gain(log: Log, candidate: Replay, champion: Replay) -> Estimate:
    """How much more the candidate is worth than the champion, by SNIPS. Raises TooLittleData."""
    return _gain(_snips, log, candidate, champion)


def doubly_robust_gain(log: Log, candidate: Replay, champion: Replay) -> Estimate:
    """How much more the candidate is worth than the champion, by the doubly robust estimate. Raises TooLittleData."""
    return _gain(_doubly_robust, log, candidate, champion)


def clipped_ips(log: Log, policy: Replay, cap: float = 20.0) -> Estimate:
    """IPS with weights cut at `cap` (Ionides 2008): narrower, and biased down, never up. Raises TooLittleData.

    What was cut can only have been worth more than nothing: `high` is that of IPS, and where no weight is above the cap
    so are `value` and `low`.
    """
    whole = ips(log, policy)
    cut = _estimate(_ips, log, Replay(np.minimum(policy.chances, cap * log.propensities), policy.expected))
    return whole.model_copy(update={"value": cut.value, "low": cut.low})


def effective_size(log: Log, policy: Replay) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 of the importance weights; 0 when the policy never agrees."""
    weights = _votes(log) * policy.chances / log.propensities
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _ips(log: Log, policy: Replay) -> _Rows:
    weights = policy.chances / log.propensities
    return _mean(weights * log.rewards, weights, policy.options, log)


def _snips(log: Log, policy: Replay) -> _Rows:
    weights = _votes(log) * policy.chances / log.propensities
    weights = weights / weights.mean()
    value = float((weights * log.rewards).mean())
    leverage = np.minimum(weights / len(log), 0.5)  # of a row on its own residual
    return _Rows(value, weights * (log.rewards - value) / (1 - leverage), weights, policy.options)


def _direct(log: Log, policy: Replay) -> _Rows:
    return _mean(_modelled(policy.expected), np.zeros(len(log)), None, log)


def _doubly_robust(log: Log, policy: Replay) -> _Rows:
    weights = policy.chances / log.propensities
    terms = _modelled(policy.expected) + weights * (log.rewards - _modelled(log.predicted))
    return _mean(terms, weights, policy.options, log)


def _mean(terms: Float, weights: Float, options: Float | None, log: Log) -> _Rows:
    value = float((_votes(log) * terms).mean())
    return _Rows(value, _votes(log) * (terms - value), _votes(log) * weights, options)


def _votes(log: Log) -> Float:
    """How much each row counts, (n,) with mean 1."""
    return np.ones(len(log)) if log.votes is None else log.votes * len(log) / log.votes.sum()


def _modelled(values: Float | None) -> Float:
    if values is None:
        raise ValueError("this estimator needs a reward model: give Log.predicted and Replay.expected")
    return values


def _estimate(estimator: Estimator, log: Log, policy: Replay) -> Estimate:
    _check(log, policy)
    rows = estimator(log, policy)
    return _interval(rows, log, effective_size(log, policy), _shift(_sums(rows, log)) / len(log))


def _gain(estimator: Estimator, log: Log, candidate: Replay, champion: Replay) -> Estimate:
    """Not shifted by skewness: at the same rate of false promotions that proved fewer true gains (promotion.py)."""
    _check(log, candidate)
    _check(log, champion)
    size = min(effective_size(log, candidate), effective_size(log, champion))
    return _interval(estimator(log, candidate) - estimator(log, champion), log, size)


def _check(log: Log, policy: Replay) -> None:
    size = effective_size(log, policy) if len(log) else 0.0
    if size < 2:
        raise TooLittleData(
            f"{len(log)} logged choices are worth {size:.1f} of this policy's own, at least 2 are needed; "
            "collect more ratings, or explore more"
        )


def _interval(rows: _Rows, log: Log, size: float, shift: float = 0.0) -> Estimate:
    n, sums = len(log), _sums(rows, log)
    spread = len(sums) / (len(sums) - 1) * float(sums @ sums)
    squares = max(spread, _noise(log) * max(float(rows.weight @ rows.weight), _expected_squares(rows, log)))
    radius = _student(min(_freedom(sums), _freedom(rows.weight))) * math.sqrt(squares) / n
    middle = rows.value + shift
    return Estimate(value=rows.value, low=middle - radius, high=middle + radius, effective_sample_size=size, n=n)


def _sums(rows: _Rows, log: Log) -> Float:
    """Influences summed by rater, (raters,), where there are enough; else those of rows, (n,)."""
    if log.groups is None or len(np.unique(log.groups)) < FEWEST_GROUPS:
        return rows.influence
    return np.bincount(log.groups, weights=rows.influence).astype(np.float64)


def _shift(sums: Float) -> float:
    """By how much the middle of an interval for the sum lies above it, for skewness (Johnson 1978).

    Heavy rows of a good policy are more often missing from a log than they are in it twice: the sum is often too low.
    """
    squares = float(sums @ sums)
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return (1 + 2 * z**2) / 6 * float((sums**3).sum()) / squares if squares > 0 else 0.0


def _expected_squares(rows: _Rows, log: Log) -> float:
    """The sum of squared weights that was to be expected before anything was drawn (at least, by options).

    Rare choices carry most of it, and are missing from most logs.
    """
    if rows.options is None or log.options is None:
        return 0.0
    return float(_votes(log) ** 2 @ (rows.options**2 / np.maximum(log.options, LEAST_CHANCE)).sum(axis=1))


def _noise(log: Log) -> float:
    """Variance of rewards around what was predicted, by votes but whatever the importance weights."""
    expected = (_votes(log) * log.rewards).mean() if log.predicted is None else log.predicted
    return float((_votes(log) * (log.rewards - expected) ** 2).mean())


def _freedom(terms: Float) -> float:
    """Degrees of freedom of a variance from `terms`, by their kurtosis (Satterthwaite): few when few rows rule it."""
    count, squares = len(terms), float(terms @ terms)
    if squares == 0:
        return count - 1
    kurtosis = count * float((terms**2) @ (terms**2)) / squares**2
    return min(count - 1, 2 * count / max(kurtosis - 1, 1e-9))


def _student(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t (Cornish-Fisher; exact to 2 % from 4 degrees of freedom on)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    nu = max(freedom, 2.0)
    return z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
