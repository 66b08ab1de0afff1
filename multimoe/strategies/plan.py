"""One request's randomised policy: which ordered choice of experts is drawn with which probability.

With probability `1 - explore` the strategy chooses in its own way, otherwise a length from 1 to k and that many experts
are drawn one after the other without replacement. Every ordered choice up to length k can therefore be drawn, so any
other gate can be judged from these logs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import erfc, hypot, sqrt

from multimoe.strategies.choices import (
    LEAST_SHARE,
    Choices,
    Float,
    Int,
    Order,
    PlackettLuce,
    Row,
    Uniform,
)
from multimoe.strategies.strategy import COLDEST, FAINTEST, STRATEGIES, Scored, known, largest, longest

UNIFORM = 0.5  # share of exploration that ignores utilities: what seems bad today must be tried too, to be learned
SQRT2 = sqrt(2)
NOISE = 0.1  # standard deviation of the noisy strategy's noise, in units of utility


@dataclass(frozen=True, eq=False)
class Plan:
    """How one request's experts are drawn among n eligible ones.

    `shares` (n,) sum to 1 and are what weights are made of; `choices` is the strategy's own way; with probability
    `explore` at most `longest` experts are explored instead, and half of that follows `promise` (n,), which sums to 1.
    """

    shares: Row
    choices: Choices
    explore: float
    longest: int
    promise: Row

    @property
    def greedy(self) -> Order:
        """What would be chosen without chance."""
        return self.choices.greedy

    @cached_property
    def exploration(self) -> PlackettLuce:
        """What is drawn when exploring; `shares` (n,) of it are the probabilities of the first."""
        least = UNIFORM / len(self.shares)
        first = [(1 - UNIFORM) * promise + least for promise in self.promise]
        return PlackettLuce(first, explored_lengths(self.longest, len(self.greedy)), self.greedy)

    def draw(self, uniform: Uniform) -> tuple[Order, bool]:
        """An ordered choice, and whether it came from exploration."""
        explored = uniform.random() < self.explore
        return (self.exploration if explored else self.choices).draw(uniform), explored

    def probability(self, order: Sequence[int]) -> float:
        """The exact probability that `draw` gives `order`; 0 for choices it never gives."""
        order = tuple(order)
        if not order or len(set(order)) < len(order):
            return 0.0
        own = (1 - self.explore) * self.choices.probability(order) if self.explore < 1 else 0.0
        return min(1.0, own + self.explore * self.exploration.probability(order) if self.explore else own)

    def drawn_first(self) -> Row:
        """Probabilities (n,) of the first expert drawn, exploring or not."""
        own, share = self.choices.drawn_first(), self.explore
        if not share:
            return own
        rest = 1 - share
        return [rest * mine + share * explored for mine, explored in zip(own, self.exploration.shares, strict=True)]

    def weights(self, order: Sequence[int]) -> Row:
        """The blend's weights of a choice: its shares, renormalised (Mixtral, arXiv 2401.04088)."""
        chosen = [self.shares[i] for i in order]
        total = sum(chosen)
        return [share / total if total > LEAST_SHARE else 1 / len(chosen) for share in chosen]


def plan(
    utility: Float, *, strategy: str, top_k: int, temperature: float, explore: float, spread: Float | None = None,
    noise: float = NOISE, groups: Int | None = None, bias: Float | None = None,
) -> Plan:  # fmt: skip
    """The randomised policy over n >= 1 eligible experts of `utility` (n,). Raises BadInput for an unknown strategy.

    `spread` (n,) is the standard deviation of what is believed of each utility: Thompson sampling draws by it (by
    `noise` where it is not given), and half of any exploration goes where it says the best may be. `noise`, in units of
    utility, is the noisy strategy's. Experts of equal `groups` (n,) belong together; `bias` (n,) is that of loss-free
    balancing.
    """
    name, values = known(strategy), utility.tolist()
    doubt: Row | None = None if spread is None else spread.tolist()
    k = longest(name, top_k, len(values))
    at = Scored(
        values,
        max(temperature, COLDEST),
        k,
        doubt if name == "thompson" and doubt else noise,
        None if groups is None else groups.tolist(),
        None if bias is None else bias.tolist(),
    )
    shares, own = STRATEGIES[name](at)
    return Plan(shares, own, explore, k, promised(values, doubt) if explore and doubt else shares)


def promised(utility: Row, doubt: Row) -> Row:
    """In proportion to how likely each expert is to be better than the best other, (n,) that sum to 1."""
    if len(utility) == 1:
        return [1.0]
    best, second = largest(utility, 2)
    rival, its = utility[best], doubt[best]
    chances = [  # twice the chance of being better than the best
        erfc((rival - mine) / (SQRT2 * max(FAINTEST, hypot(unsure, its))))
        for mine, unsure in zip(utility, doubt, strict=True)
    ]
    chances[best] = 2 - chances[second]
    total = sum(chances)
    return [chance / total for chance in chances]


@lru_cache(maxsize=256)
def explored_lengths(most: int, usual: int) -> tuple[float, ...]:
    """Probabilities (most,) of exploring 1, 2, ... experts: half of the time as many as the greedy choice has, since a
    choice of that length is what another gate would most likely want to be judged by."""
    return tuple(0.5 / most + 0.5 * (length == usual) for length in range(1, most + 1))
