"""What another gate would have been worth on logged requests, with intervals. numpy only; it knows no gate, no store.

Each estimator is a value and one influence per row, whose spread gives the interval (delta method); the gain of one
policy over another on the same log is the difference of both, so what the two share cancels. Three corrections keep
intervals honest where few rows carry most weight: leverage, degrees of freedom from kurtosis, and never less spread
than rewards of the usual noise would have (ten answers that all were liked do not prove that all will be).
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
    number (one rater) may depend on each other. `votes` say how much a row counts, 1 for all by default.
    """

    rewards: Float
    propensities: Float
    predicted: Float | None = None
    groups: NDArray[np.intp] | None = None
    votes: Float | None = None

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True, eq=False)
class Replay:
    """What a policy would do on a log: `chances` (n,) of the logged choice; `expected` (n,) is the same reward model's
    mean guess over all its choices."""

    chances: Float
    expected: Float | None = None


@dataclass(frozen=True, eq=False)
class _Rows:
    """A value, each row's `influence` (n,) on it, and the `weight` (n,) of each row's reward in n times the value."""

    value: float
    influence: Float
    weight: Float

    def __sub__(self, other: "_Rows") -> "_Rows":
        return _Rows(self.value - other.value, self.influence - other.influence, self.weight - other.weight)


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
    """IPS with weights cut at `cap` (Ionides 2008): biased down, and `low` holds in any sample, however small.

    The interval is an empirical Bernstein bound for terms in [0, cap] (Maurer & Pontil 2009, theorem 4), so `low` is a
    guaranteed lower bound of the value and `high` an upper one of what the cap leaves of it. Rows count as independent.
    """
    n = len(log)
    _check(log, policy)
    terms = np.minimum(policy.chances / log.propensities, cap) * log.rewards
    tail = math.log(4 / (1 - CONFIDENCE))
    radius = math.sqrt(2 * float(terms.var(ddof=1)) * tail / n) + 7 * cap * tail / (3 * (n - 1))
    value = float(terms.mean())
    return Estimate(
        value=value, low=value - radius, high=value + radius, effective_sample_size=effective_size(log, policy), n=n
    )


def effective_size(log: Log, policy: Replay) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 of the importance weights; 0 when the policy never agrees."""
    weights = _votes(log) * policy.chances / log.propensities
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _ips(log: Log, policy: Replay) -> _Rows:
    weights = policy.chances / log.propensities
    return _mean(weights * log.rewards, weights, log)


def _snips(log: Log, policy: Replay) -> _Rows:
    weights = _votes(log) * policy.chances / log.propensities
    weights = weights / weights.mean()
    value = float((weights * log.rewards).mean())
    leverage = np.minimum(weights / len(log), 0.5)  # of a row on its own residual
    return _Rows(value, weights * (log.rewards - value) / (1 - leverage), weights)


def _direct(log: Log, policy: Replay) -> _Rows:
    return _mean(_modelled(policy.expected), np.zeros(len(log)), log)


def _doubly_robust(log: Log, policy: Replay) -> _Rows:
    weights = policy.chances / log.propensities
    return _mean(_modelled(policy.expected) + weights * (log.rewards - _modelled(log.predicted)), weights, log)


def _mean(terms: Float, weights: Float, log: Log) -> _Rows:
    value = float((_votes(log) * terms).mean())
    return _Rows(value, _votes(log) * (terms - value), _votes(log) * weights)


def _votes(log: Log) -> Float:
    """How much each row counts, (n,) with mean 1."""
    return np.ones(len(log)) if log.votes is None else log.votes * len(log) / log.votes.sum()


def _modelled(values: Float | None) -> Float:
    if values is None:
        raise ValueError("this estimator needs a reward model: give Log.predicted and Replay.expected")
    return values


def _estimate(estimator: Estimator, log: Log, policy: Replay) -> Estimate:
    _check(log, policy)
    return _interval(estimator(log, policy), log, effective_size(log, policy))


def _gain(estimator: Estimator, log: Log, candidate: Replay, champion: Replay) -> Estimate:
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


def _interval(rows: _Rows, log: Log, size: float) -> Estimate:
    n = len(log)
    sums = rows.influence
    count = n if log.groups is None else len(np.unique(log.groups))
    if log.groups is not None and count >= FEWEST_GROUPS:
        sums = np.bincount(log.groups, weights=sums).astype(np.float64)
    count = len(sums)
    squares = max(count / (count - 1) * float(sums @ sums), _noise(log) * float(rows.weight @ rows.weight))
    radius = _student(min(_freedom(sums), _freedom(rows.weight))) * math.sqrt(squares) / n
    return Estimate(
        value=rows.value, low=rows.value - radius, high=rows.value + radius, effective_sample_size=size, n=n
    )


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
