"""From utilities to a weighted choice of experts, and exactly how likely that choice was.

A `Plan` is one request's randomised policy: with probability `1 - explore` the strategy's greedy choice, otherwise a
length from 1 to k and that many experts drawn one after the other without replacement (Plackett-Luce). Every ordered
choice up to length k can therefore be drawn, so any other gate can be judged from these logs. It knows neither
embeddings nor cards; experts are row numbers here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import permutations
from math import perm

import numpy as np
from numpy.typing import NDArray

from multimoe.config import ExpertSpec
from multimoe.decision import Policy
from multimoe.errors import BadInput, UnknownModel
from multimoe.messages import Modality

Float = NDArray[np.float64]
Int = NDArray[np.intp]

LEAST_WEIGHT = 0.1  # a greedy choice drops experts whose share of the blend would be below this
UNIFORM = 0.5  # share of exploration that ignores utilities: what seems bad today must be tried too, to be learned
COLDEST = 1e-6  # temperature; below it a softmax only overflows
ENUMERABLE = 5000  # ordered choices; above that many expectations are drawn instead of summed
DRAWS = 512


@dataclass(frozen=True, eq=False)
class Plan:
    """How one request's experts are drawn among n eligible ones.

    `shares` (n,) sum to 1 and are what weights are made of; `greedy` is the choice without exploration; `explore` is in
    [0, 1]; `longest` is the most experts a choice may have.
    """

    shares: Float
    greedy: tuple[int, ...]
    explore: float
    longest: int

    @cached_property
    def first(self) -> Float:
        """Probabilities (n,) of the first expert drawn when exploring."""
        mixed: Float = (1 - UNIFORM) * self.shares + UNIFORM / len(self.shares)
        return mixed

    @cached_property
    def lengths(self) -> Float:
        """Probabilities (longest,) of drawing 1, 2, ... experts when exploring: half of it as many as the greedy choice

        has, since a choice of that length is what another gate would most likely want to be judged by.
        """
        even = np.full(self.longest, 0.5 / self.longest)
        even[len(self.greedy) - 1] += 0.5
        return even

    def drawn_first(self) -> Float:
        """Probabilities (n,) of the first expert drawn, exploring or not."""
        first = self.explore * self.first
        first[self.greedy[0]] += 1 - self.explore
        return np.minimum(first, 1.0)

    def draw(self, generator: np.random.Generator) -> tuple[tuple[int, ...], bool]:
        """An ordered choice, and whether it came from exploration."""
        if generator.random() >= self.explore:
            return self.greedy, False
        length = 1 + int(np.searchsorted(np.cumsum(self.lengths)[:-1], generator.random(), side="right"))
        return gumbel_top_k(self.first, length, generator), True

    def probability(self, order: Sequence[int]) -> float:
        """The exact probability that `draw` gives `order`; 0 for choices it never gives."""
        if not 1 <= len(order) <= self.longest or len(set(order)) < len(order):
            return 0.0
        drawn = float(plackett_luce(self.first, np.array([order]))[0] * self.lengths[len(order) - 1])
        return min(1.0, self.explore * drawn + (1 - self.explore) * (tuple(order) == self.greedy))

    def weights(self, order: Sequence[int]) -> Float:
        """The blend's weights of a choice: its shares, renormalised (Mixtral, arXiv 2401.04088)."""
        weights: Float = blend_weights(self.shares, np.array([order]))[0]
        return weights

    def expected(self, values: Float) -> float:
        """The mean over all choices of the weighted mean of `values` (n,) over the chosen."""
        greedy = float(self.weights(self.greedy) @ values[list(self.greedy)])
        if self.explore == 0:
            return greedy
        drawn = [self._expected_of_length(values, length) for length in range(1, self.longest + 1)]
        return (1 - self.explore) * greedy + self.explore * float(self.lengths @ drawn)

    def _expected_of_length(self, values: Float, length: int) -> float:
        if perm(len(values), length) > ENUMERABLE:
            generator = np.random.default_rng(0)
            orders = np.array([gumbel_top_k(self.first, length, generator) for _ in range(DRAWS)])
            chances = np.full(DRAWS, 1 / DRAWS)
        else:
            orders = every_order(len(values), length)
            chances = plackett_luce(self.first, orders)
        return float(chances @ (blend_weights(self.shares, orders) * values[orders]).sum(axis=1))


def blend_weights(shares: Float, orders: Int) -> Float:
    """Shares (n,) of the experts in `orders` (choices, length), renormalised within each choice."""
    chosen = shares[orders]  # (choices, length)
    total = chosen.sum(axis=1, keepdims=True)
    even = np.full_like(chosen, 1 / orders.shape[1])
    weights: Float = np.divide(chosen, total, out=even, where=total > 1e-300)
    return weights


def plackett_luce(first: Float, orders: Int) -> Float:
    """Probability (choices,) of drawing each of `orders` (choices, length) one by one without replacement."""
    chosen = first[orders]  # (choices, length)
    left = 1.0 - np.concatenate([np.zeros((len(orders), 1)), np.cumsum(chosen, axis=1)[:, :-1]], axis=1)
    chances: Float = np.prod(chosen / np.maximum(left, chosen), axis=1)
    return chances


def gumbel_top_k(first: Float, length: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Draw `length` without replacement: the order of log-probability plus Gumbel noise (Kool et al. 2019)."""
    noisy = np.log(first) + generator.gumbel(size=len(first))
    return tuple(int(i) for i in np.argsort(-noisy, kind="stable")[:length])


@lru_cache(maxsize=64)
def every_order(n: int, length: int) -> Int:
    """All ordered choices of `length` out of n, (choices, length)."""
    return np.array(list(permutations(range(n), length)), dtype=np.intp).reshape(-1, length)


def softmax_top_k(utility: Float, k: int, temperature: float) -> tuple[Float, tuple[int, ...]]:
    """Softmax, then the k best (Mixtral); the hopeless among them are left out."""
    scaled = (utility - utility.max()) / temperature
    shares = np.exp(scaled)
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")[:k]
    kept = best[shares[best] >= LEAST_WEIGHT * shares[best].sum()]
    return shares, tuple(int(i) for i in kept)


# A strategy turns utilities (n,), k and a temperature into shares (n,) and its greedy choice.
Strategy = Callable[[Float, int, float], tuple[Float, tuple[int, ...]]]
STRATEGIES: Mapping[str, Strategy] = {"softmax": softmax_top_k}


def plan(utility: Float, *, strategy: str, top_k: int, temperature: float, explore: float) -> Plan:
    """The randomised policy over n >= 1 eligible experts. Raises BadInput for an unknown strategy."""
    if strategy not in STRATEGIES:
        raise BadInput(f"no strategy {strategy!r}; there are: {', '.join(STRATEGIES)}", param="strategy")
    longest = min(top_k, len(utility))
    shares, greedy = STRATEGIES[strategy](utility, longest, max(temperature, COLDEST))
    return Plan(shares, greedy, explore, longest)


def utilities(quality: Float, costs: Float, latencies: Float, preference: float) -> Float:
    """Quality less what it costs in money and time, (n,); costs and latencies in [0, 1] of the roster's dearest.

    At `preference` 1 quality alone counts; at 0 the dearest and slowest expert pays a whole unit of quality.
    """
    utility: Float = quality - (1 - preference) * (costs + latencies) / 2
    return utility


def ineligible(
    experts: Sequence[ExpertSpec], present: Sequence[Modality], policy: Policy, unavailable: Mapping[str, str]
) -> dict[str, str]:
    """Why an expert may not answer, in words; experts that may are not listed. Raises UnknownModel."""
    names = {expert.name for expert in experts}
    for name in policy.experts:
        if name not in names:
            raise UnknownModel(f"no expert {name!r}; there are: {', '.join(sorted(names))}", param="experts")
    reasons = ((expert.name, _objection(expert, present, policy, unavailable)) for expert in experts)
    return {name: reason for name, reason in reasons if reason}


def _objection(
    expert: ExpertSpec, present: Sequence[Modality], policy: Policy, unavailable: Mapping[str, str]
) -> str | None:
    if expert.inputs.isdisjoint(present):
        return f"reads {_listed(expert.inputs)}, the request has {_listed(present)}"
    if policy.experts and expert.name not in policy.experts:
        return "not among the experts asked for"
    if expert.name in policy.exclude:
        return "excluded by the request"
    if policy.max_cost is not None and expert.cost > policy.max_cost:
        return f"costs US${expert.cost:g}, the limit is US${policy.max_cost:g}"
    if policy.max_latency_ms is not None and expert.latency_ms > policy.max_latency_ms:
        return f"usually takes {expert.latency_ms:g} ms, the limit is {policy.max_latency_ms:g} ms"
    return unavailable.get(expert.name)


def _listed(modalities: Sequence[Modality] | frozenset[Modality]) -> str:
    return " and ".join(sorted(modalities)) or "nothing"
