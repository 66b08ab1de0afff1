"""Distributions over ordered choices of experts, each with exact probabilities. Experts are row numbers here.

What a routing strategy does with one request is one of these: a certain choice, a second expert by chance, a draw
without replacement, or the largest of noisy scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import permutations
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]

from multimoe.strategies.normal import Normals

Float = NDArray[np.float64]
Int = NDArray[np.intp]
Row = list[float]
Order = tuple[int, ...]

LEAST_SHARE = 1e-300  # experts less likely than that are equally hopeless


class Uniform(Protocol):
    """Where chance comes from: `random.Random` and `numpy.random.Generator` are both such."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


class Choices(Protocol):
    """A distribution over ordered choices among n experts."""

    @property
    def greedy(self) -> Order:
        """What would be chosen without chance."""
        ...

    def draw(self, uniform: Uniform) -> Order: ...

    def probability(self, order: Order) -> float:
        """The exact probability that `draw` gives this order of different experts; 0 where it never does."""
        ...

    def drawn_first(self) -> Row:
        """Probability (n,) of each expert being drawn first."""
        ...


@dataclass(frozen=True, eq=False)
class Certain:
    """Always `greedy`, out of `n`."""

    greedy: Order
    n: int

    def draw(self, uniform: Uniform) -> Order:
        return self.greedy

    def probability(self, order: Order) -> float:
        return float(order == self.greedy)

    def drawn_first(self) -> Row:
        first = [0.0] * self.n
        first[self.greedy[0]] = 1.0
        return first


@dataclass(frozen=True, eq=False)
class SecondByChance:
    """The first of `pair` always, the second with probability `kept`; out of `n`."""

    pair: tuple[int, int]
    kept: float
    n: int

    @property
    def greedy(self) -> Order:
        return self.pair if self.kept >= 0.5 else self.pair[:1]

    def draw(self, uniform: Uniform) -> Order:
        return self.pair if uniform.random() < self.kept else self.pair[:1]

    def probability(self, order: Order) -> float:
        return self.kept * (order == self.pair) + (1 - self.kept) * (order == self.pair[:1])

    def drawn_first(self) -> Row:
        return Certain(self.pair, self.n).drawn_first()


@dataclass(frozen=True, eq=False)
class PlackettLuce:
    """One after the other without replacement, by `shares` (n,) of those left (Plackett 1975).

    The same as the largest of log-shares plus Gumbel noise, in order (Kool et al. 2019). No share is 0. `lengths`
    (longest,) are the probabilities of drawing 1, 2, ... experts; `greedy` is what chance is to be compared with.
    """

    shares: Row
    lengths: Sequence[float]
    greedy: Order

    def draw(self, uniform: Uniform) -> Order:
        length = 1 + pick(self.lengths, uniform)
        left, order = list(self.shares), []
        for _ in range(length):
            order.append(pick(left, uniform))
            left[order[-1]] = 0.0
        return tuple(order)

    def probability(self, order: Order) -> float:
        chance = self.lengths[len(order) - 1] if len(order) <= len(self.lengths) else 0.0
        left = list(self.shares)
        for i in order:
            chance *= left[i] / sum(left)
            left[i] = 0.0
        return chance

    def drawn_first(self) -> Row:
        return self.shares


@dataclass(frozen=True, eq=False)
class NoisyTop:
    """The `k` largest of `scores` (n,) plus independent normal noise of standard deviation `sd` (n,) > 0, in order."""

    scores: Float
    sd: Float
    k: int

    @property
    def greedy(self) -> Order:
        return tuple(in_order(self.scores, self.k).tolist())

    def draw(self, uniform: Uniform) -> Order:
        chances = np.array([uniform.random() for _ in self.scores])
        noisy = self.scores + self.sd * ndtri(np.maximum(chances, LEAST_SHARE))
        return tuple(in_order(noisy, self.k).tolist())

    def probability(self, order: Order) -> float:
        if len(order) != self.k:
            return 0.0
        return self._first[order[0]] if self.k == 1 else float(self._normals.in_order(np.array([order]))[0])

    def drawn_first(self) -> Row:
        return self._first

    @cached_property
    def _normals(self) -> Normals:
        return Normals(self.scores, self.sd, self.k)

    @cached_property
    def _first(self) -> Row:
        chances: Row = self._normals.largest().tolist()
        return chances


def pick(weights: Sequence[float], uniform: Uniform) -> int:
    """A position, drawn in proportion to `weights`, which are not all 0; never one whose weight is 0."""
    left = uniform.random() * sum(weights)
    chosen = 0
    for i, weight in enumerate(weights):
        if weight > 0:
            chosen = i
            left -= weight
            if left < 0:
                break
    return chosen


def in_order(scores: Float, k: int) -> Int:
    """The k largest of each row, largest first, (..., n) -> (..., k); of equals the earlier."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def plackett_luce(shares: Float, orders: Int) -> Float:
    """Probability (choices,) of drawing each of `orders` (choices, length) one by one without replacement.

    `shares` are (n,), or (choices, n) where each choice has its own; behind a shorter choice stands -1.
    """
    left = np.broadcast_to(shares, (len(orders), shares.shape[-1])).copy()
    chances = np.ones(len(orders))
    for column in orders.T[:, :, None]:  # (choices, 1)
        drawn = np.take_along_axis(left, column, axis=1)[:, 0] / left.sum(axis=1)
        chances *= np.where(column[:, 0] >= 0, drawn, 1.0)
        np.put_along_axis(left, column, 0.0, axis=1)
    return chances


@lru_cache(maxsize=64)
def every_order(n: int, length: int) -> Int:
    """All ordered choices of `length` out of n, (choices, length)."""
    return np.array(list(permutations(range(n), length)), dtype=np.intp).reshape(-1, length)
