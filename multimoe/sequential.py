"""Is a mean above a bar? Answered after every observation, and wrong in at most 5 % of runs however often one looks.

By betting (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86): a gambler
stakes part of his wealth on each next term being above the bar. Where the bar is the mean or more, no strategy can
expect to win, so wealth of 20 from 1 has a chance of 1/20 at most (Ville 1939). numpy only.
"""

import math

import numpy as np
from numpy.typing import NDArray

from multimoe.outputs import Frozen

Float = NDArray[np.float64]

ERROR = 0.05  # the chance, over a whole run, that a bar is called passed that is not
BOLDEST = 0.5  # of the stake that one term could wipe out
NULLS = np.linspace(-0.99, 0.99, 199)  # bars that an interval for a difference of rewards is made from


class Bounds(Frozen):
    """A mean of `n` terms; `low` and `high` each hold at all times with 95 %."""

    value: float
    low: float
    high: float
    n: int


def passes(terms: Float, floors: Float, bar: float) -> bool:
    """Whether the mean of `terms` (n,) was at any time shown to lie above `bar`.

    Terms may depend on what was before; the mean is that of each, given what was before. `floors` (n,) bound each term
    from below and are known before it.
    """
    return bool(len(terms) and log_wealth(terms, floors, bar).max() >= math.log(1 / ERROR))


def bounds(terms: Float, floors: Float, ceilings: Float) -> Bounds:
    """What is known of the mean of `terms` (n,), a difference of rewards in [-1, 1]."""
    low = next((bar for bar in NULLS if not passes(terms, floors, bar)), 1.0)
    high = next((bar for bar in NULLS if not passes(-terms, -ceilings, bar)), 1.0)
    value = float(terms.mean()) if len(terms) else 0.0
    return Bounds(value=value, low=_before(low), high=-_before(high), n=len(terms))


def log_wealth(terms: Float, floors: Float, bar: float) -> Float:
    """Of a gambler who starts with 1 and bets on terms above `bar`, (n,), in nats.

    His stakes are aGRAPA's (section B.3): the growth-optimal ones for the mean and variance seen so far.
    """
    seen = np.arange(1, len(terms) + 1)  # terms before each, and one of mean 0 and variance 1 to begin with
    mean = _sum_before(terms) / seen
    variance = (1 + _sum_before((terms - mean) ** 2)) / seen
    wanted = (mean - bar) / (variance + (mean - bar) ** 2)
    stakes = np.clip(wanted, 0, BOLDEST / np.maximum(bar - floors, 0.01))
    wealth: Float = np.cumsum(np.log1p(stakes * (terms - bar)))
    return wealth


def _sum_before(terms: Float) -> Float:
    return np.concatenate([[0.0], np.cumsum(terms)[:-1]])


def _before(bar: float) -> float:
    """The last bar of the grid that was passed, -1 where none was."""
    passed = NULLS[bar - 1e-9 > NULLS]
    return float(passed[-1]) if len(passed) else -1.0
