"""Many requests at once: the same plans as `plan`, drawn and weighed without a loop over requests.

Only `noisy` and `thompson` with more than two experts loop, over the integrals of their propensities.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import perm
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, softmax  # type: ignore[import-untyped]

from multimoe.config import Strategy
from multimoe.strategies.choices import (
    LEAST_SHARE,
    Float,
    Int,
    every_order,
    in_order,
    plackett_luce,
)
from multimoe.strategies.normal import Normals, in_order_by_row
from multimoe.strategies.plan import NOISE, UNIFORM, explored_lengths
from multimoe.strategies.routers import BALANCE_RATE, capacity, expert_choice, update_bias
from multimoe.strategies.strategy import COLDEST, FAINTEST, LEAST_WEIGHT, known, longest

Generator = np.random.Generator

NOBODY = -1  # where a choice has fewer experts than another of its batch
ENUMERABLE = 1000  # ordered choices; above that many means are drawn instead of summed
DRAWS = 512
BALANCED_AT_ONCE = 32  # requests between two steps of loss-free balancing's bias
ROOM = 2.0  # capacity factor of expert choice, the experts a request has on average


@dataclass(frozen=True, eq=False)
class Routes:
    """What was drawn for each of b requests.

    `order` (b, k) are expert numbers, -1 behind shorter choices; `weights` (b, k) are 0 there and sum to 1;
    `propensity` (b,) is the exact probability of the ordered choice; `explored` (b,) says where it came from.
    """

    order: Int
    weights: Float
    propensity: Float
    explored: NDArray[np.bool_]


def route_batch(
    utility: Float, *, strategy: str, top_k: int, temperature: float, explore: float, generator: Generator,
    spread: Float | None = None, noise: float = NOISE, groups: Int | None = None, bias: Float | None = None,
    capacity_factor: float = ROOM,
) -> Routes:  # fmt: skip
    """Draw for b requests whose n experts all are eligible; `utility` and `spread` are (b, n), the rest as in `plan`.

    Beside the strategies of single requests there is "expert-choice": every expert picks the `capacity_factor` b / n
    requests it likes best, a request nobody picks goes to its likeliest, and the propensity is that given the rest of
    the batch. Raises BadInput for an unknown strategy.
    """
    chances = plans(
        utility, strategy=strategy, top_k=top_k, temperature=temperature, explore=explore, spread=spread, noise=noise,
        groups=groups, bias=bias, capacity_factor=capacity_factor,
    )  # fmt: skip
    order, explored = chances.draw(generator)
    return Routes(order, chances.weights(order), chances.probability(order), explored)


def plans(
    utility: Float, *, strategy: str, top_k: int, temperature: float, explore: float, spread: Float | None = None,
    noise: float = NOISE, groups: Int | None = None, bias: Float | None = None, capacity_factor: float = ROOM,
) -> "Plans":  # fmt: skip
    """What `route_batch` draws from. Raises BadInput for an unknown strategy."""
    name = "expert-choice" if strategy == "expert-choice" else known(strategy)
    k = min(top_k, utility.shape[1]) if name == "expert-choice" else longest(name, top_k, utility.shape[1])
    sd = spread if name == "thompson" and spread is not None else noise
    at = _scored(utility, k, temperature, sd, groups, bias)
    shares, own, usual = _picked(at, capacity_factor) if name == "expert-choice" else _own(name, at)
    promise = shares if spread is None or not explore else promised(utility, spread)
    first = (1 - UNIFORM) * promise + UNIFORM / utility.shape[1]
    lengths = np.stack([explored_lengths(k, n + 1) for n in range(k)])[usual - 1]  # (b, k)
    return Plans(shares, own, _WithoutReplacement(first, lengths), explore)


@dataclass(frozen=True, eq=False)
class Plans:
    """`Plan` of b requests over the same n experts: `shares` (b, n), the strategy's `own` way, and `exploration`."""

    shares: Float
    own: "_Choices"
    exploration: "_WithoutReplacement"
    explore: float

    def draw(self, generator: Generator) -> tuple[Int, NDArray[np.bool_]]:
        """Ordered choices (b, k), and which of them came from exploration (b,)."""
        order = self.own.draw(generator)
        explored = generator.random(len(order)) < self.explore
        if self.explore:
            order[explored] = self.exploration.rows(explored).draw(generator)
        return order, explored

    def probability(self, order: Int) -> Float:
        """The exact probability (b,) of each ordered choice."""
        chances = self.own.probability(order)
        if self.explore:
            chances = (1 - self.explore) * chances + self.explore * self.exploration.probability(order)
        return np.minimum(chances, 1.0)

    def weights(self, order: Int) -> Float:
        """The blend's weights (b, k) of each choice: its shares, renormalised; 0 behind shorter choices."""
        return _weights(self.shares, order)

    def choices(self) -> Iterator[tuple[Int, Float]]:
        """Ordered choices (b, k) with probabilities (b,) that sum to 1: all that can be drawn, or a sample of many."""
        for order, chances in self.own.choices():
            yield order, (1 - self.explore) * chances
        if self.explore:
            for order, chances in self.exploration.choices():
                yield order, self.explore * chances


class _Choices(Protocol):
    """As `choices.Choices`, of b requests: orders are (b, k) with -1 behind."""

    def draw(self, generator: Generator) -> Int: ...

    def probability(self, order: Int) -> Float: ...

    def choices(self) -> Iterator[tuple[Int, Float]]: ...


@dataclass(frozen=True, eq=False)
class _Scored:
    """`strategy.Scored` of b requests: `utility`, `logits`, their softmax `shares` and `sd` are (b, n)."""

    utility: Float
    logits: Float
    shares: Float
    k: int
    sd: Float
    groups: Int
    bias: Float


def _scored(
    utility: Float, k: int, temperature: float, noise: Float | float = 0.0, groups: Int | None = None,
    bias: Float | None = None,
) -> _Scored:  # fmt: skip
    b, n = utility.shape
    logits = (utility - utility.max(axis=1, keepdims=True)) / max(temperature, COLDEST)
    return _Scored(
        utility=utility,
        logits=logits,
        shares=softmax(logits, axis=1),
        k=k,
        sd=np.maximum(noise, np.full((b, n), FAINTEST)),
        groups=np.zeros(n, dtype=np.intp) if groups is None else groups,
        bias=np.zeros(n) if bias is None else bias,
    )


def _own(strategy: Strategy, at: _Scored) -> tuple[Float, _Choices, Int]:
    """Shares (b, n), the strategy's own way, and how many experts its choice without chance has (b,)."""
    every = np.full(len(at.utility), at.k)
    match strategy:
        case "softmax":
            return _without_hopeless(at.shares, in_order(at.logits, at.k))
        case "switch":
            return at.shares, _Certain(in_order(at.logits, 1)), every
        case "gshard":
            return _top_2(at)
        case "hierarchical":
            return _hierarchical(at)
        case "loss-free":
            return _loss_free(at)
        case "gumbel":
            return at.shares, _WithoutReplacement(at.shares, np.eye(at.k)[every - 1]), every
        case "noisy" | "thompson":
            return at.shares, _NoisyTop(at.utility, at.sd, at.k), every


def _top_2(at: _Scored) -> tuple[Float, _Choices, Int]:
    pair = in_order(at.logits, at.k)
    if at.k == 1:
        return at.shares, _Certain(pair), np.ones(len(pair), dtype=np.intp)
    chosen = np.take_along_axis(at.shares, pair, axis=1)
    kept = np.minimum(1.0, 2 * chosen[:, 1] / chosen.sum(axis=1))
    return at.shares, _SecondByChance(pair, kept), np.where(kept >= 0.5, 2, 1)


def _hierarchical(at: _Scored) -> tuple[Float, _Choices, Int]:
    member = at.groups == np.unique(at.groups)[:, None]  # (groups, n)
    inside = np.where(member, at.logits[:, None, :], -np.inf)  # (b, groups, n)
    best = inside.max(axis=2)  # (b, groups)
    shares = (softmax(inside, axis=2) * softmax(best, axis=1)[:, :, None]).sum(axis=1)
    chosen = inside[np.arange(len(best)), best.argmax(axis=1)]  # (b, n)
    return _without_hopeless(shares, in_order(chosen, at.k), np.isfinite(chosen))


def _loss_free(at: _Scored) -> tuple[Float, _Choices, Int]:
    """Where an expert is not eligible, its logit is -inf."""
    there = np.isfinite(at.logits)
    scores = expit(at.logits - at.logits.mean(axis=1, keepdims=True, where=there))
    order = in_order(np.where(there, scores + at.bias, -np.inf), at.k)
    return _certain(scores / scores.sum(axis=1, keepdims=True), order, np.take_along_axis(there, order, axis=1))


def balancing_bias(
    utility: Float, temperature: float, k: int, rate: float = BALANCE_RATE, batch: int = BALANCED_AT_ONCE,
    bias: Float | None = None,
) -> Float:  # fmt: skip
    """The bias (n,) that loss-free balancing ends with over logged requests, in their order.

    `utility` (requests, n) is -inf where an expert was not eligible: an even share is one among those that were.
    Requests are routed `batch` at a time with the bias as it is, which then moves by `rate`.
    """
    bias = np.zeros(utility.shape[1]) if bias is None else bias
    for begin in range(0, len(utility), batch):
        rows = utility[begin : begin + batch]
        _, own, chosen = _loss_free(_scored(rows, min(k, len(bias)), temperature, bias=bias))
        order = own.draw(np.random.default_rng(0))
        counts = np.bincount(order[order != NOBODY], minlength=len(bias)).astype(np.float64)
        there = np.isfinite(rows)
        even = (there * (chosen / there.sum(axis=1))[:, None]).sum(axis=0)
        bias = update_bias(bias, counts, rate, even)
    return bias


def _without_hopeless(
    shares: Float, order: Int, there: NDArray[np.bool_] | None = None
) -> tuple[Float, "_Certain", Int]:
    chosen = np.take_along_axis(shares, order, axis=1)
    if there is not None:
        chosen = chosen * np.take_along_axis(there, order, axis=1)
    return _certain(shares, order, chosen >= LEAST_WEIGHT * chosen.sum(axis=1, keepdims=True))


def _certain(shares: Float, order: Int, kept: NDArray[np.bool_]) -> tuple[Float, "_Certain", Int]:
    """What is kept comes first."""
    return shares, _Certain(np.where(kept, order, NOBODY)), kept.sum(axis=1)


def promised(utility: Float, doubt: Float) -> Float:
    """`plan.promised` of b requests, (b, n)."""
    if utility.shape[1] == 1:
        return np.ones_like(utility)
    best = in_order(utility, 2)
    rival = np.where(np.arange(utility.shape[1]) == best[:, :1], best[:, 1:], best[:, :1])  # (b, n)
    sd = np.maximum(np.hypot(doubt, np.take_along_axis(doubt, rival, axis=1)), FAINTEST)
    better = ndtr((utility - np.take_along_axis(utility, rival, axis=1)) / sd)
    promised: Float = better / better.sum(axis=1, keepdims=True)
    return promised


def _picked(at: _Scored, capacity_factor: float) -> tuple[Float, _Choices, Int]:
    b, n = at.utility.shape
    tokens, _ = expert_choice(at.logits, min(b, capacity(b, n, capacity_factor)))  # (n, room)
    picked = np.zeros((b, n), dtype=bool)
    np.put_along_axis(picked, tokens.T, True, axis=0)
    picked[np.arange(b), at.logits.argmax(axis=1)] |= ~picked.any(axis=1)
    order = in_order(np.where(picked, at.logits, -np.inf), at.k)
    return _certain(at.shares, order, np.take_along_axis(picked, order, axis=1))


@dataclass(frozen=True, eq=False)
class _Certain:
    order: Int

    def draw(self, generator: Generator) -> Int:
        return self.order.copy()

    def probability(self, order: Int) -> Float:
        same: Float = (order == self.order).all(axis=1).astype(np.float64)
        return same

    def choices(self) -> Iterator[tuple[Int, Float]]:
        yield self.order, np.ones(len(self.order))


@dataclass(frozen=True, eq=False)
class _SecondByChance:
    pair: Int
    kept: Float

    def draw(self, generator: Generator) -> Int:
        order = self.pair.copy()
        order[generator.random(len(order)) >= self.kept, 1] = NOBODY
        return order

    def probability(self, order: Int) -> Float:
        alone = order[:, 1] == NOBODY
        chances = np.where(alone, 1 - self.kept, self.kept * (order[:, 1] == self.pair[:, 1]))
        first: Float = chances * (order[:, 0] == self.pair[:, 0])
        return first

    def choices(self) -> Iterator[tuple[Int, Float]]:
        alone = self.pair.copy()
        alone[:, 1] = NOBODY
        yield self.pair, self.kept
        yield alone, 1 - self.kept


@dataclass(frozen=True, eq=False)
class _WithoutReplacement:
    """`shares` (b, n), `lengths` (b, k)."""

    shares: Float
    lengths: Float

    def rows(self, which: NDArray[np.bool_]) -> "_WithoutReplacement":
        return _WithoutReplacement(self.shares[which], self.lengths[which])

    def draw(self, generator: Generator) -> Int:
        noise = generator.gumbel(size=self.shares.shape)
        order = in_order(np.log(np.maximum(self.shares, LEAST_SHARE)) + noise, self.lengths.shape[1])
        before = np.cumsum(self.lengths, axis=1) - self.lengths  # chance of being shorter, (b, k)
        order[generator.random((len(order), 1)) < before] = NOBODY
        return order

    def probability(self, order: Int) -> Float:
        there = order != NOBODY
        lengths = np.take_along_axis(self.lengths, there.sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]
        chances: Float = lengths * plackett_luce(np.maximum(self.shares, LEAST_SHARE), order)
        return chances

    def choices(self) -> Iterator[tuple[Int, Float]]:
        b, n = self.shares.shape
        for length in np.flatnonzero(self.lengths.any(axis=0)) + 1:
            if perm(n, length) > ENUMERABLE:
                yield from self._sample(int(length))
                continue
            for experts in every_order(n, int(length)):
                order = np.full((b, self.lengths.shape[1]), NOBODY)
                order[:, :length] = experts
                yield order, self.probability(order)

    def _sample(self, length: int) -> Iterator[tuple[Int, Float]]:
        logits = np.log(np.maximum(self.shares, LEAST_SHARE))
        for noise in np.random.default_rng(0).gumbel(size=(DRAWS, self.shares.shape[1])):
            order = in_order(logits + noise, self.lengths.shape[1])
            order[:, length:] = NOBODY
            yield order, self.lengths[:, length - 1] / DRAWS


@dataclass(frozen=True, eq=False)
class _NoisyTop:
    """`scores` and `sd` (b, n)."""

    scores: Float
    sd: Float
    k: int

    def draw(self, generator: Generator) -> Int:
        return in_order(self.scores + self.sd * generator.normal(size=self.scores.shape), self.k)

    def probability(self, order: Int) -> Float:
        chances = np.zeros(len(order))
        whole = np.flatnonzero(order[:, -1] != NOBODY)
        if self.k <= 2:
            chances[whole] = in_order_by_row(self.scores[whole], self.sd[whole], order[whole])
        else:
            rows = (Normals(self.scores[i], self.sd[i], self.k).in_order(order[i : i + 1])[0] for i in whole)
            chances[whole] = np.fromiter(rows, np.float64, len(whole))
        return chances

    def choices(self) -> Iterator[tuple[Int, Float]]:
        b, n = self.scores.shape
        if self.k == 1:
            for order in np.arange(n)[:, None, None]:
                yield np.repeat(order, b, axis=0), self.probability(np.repeat(order, b, axis=0))
            return
        for noise in np.random.default_rng(0).normal(size=(DRAWS, n)):
            yield in_order(self.scores + self.sd * noise, self.k), np.full(b, 1 / DRAWS)


def _weights(shares: Float, order: Int) -> Float:
    there = order != NOBODY
    chosen = np.take_along_axis(shares, np.maximum(order, 0), axis=1) * there
    total = chosen.sum(axis=1, keepdims=True)
    weights: Float = np.divide(chosen, total, out=there / there.sum(axis=1, keepdims=True), where=total > LEAST_SHARE)
    return weights
