"""The strategies a catalog or a request may select: each turns utilities into weights and a distribution of choices.

They are the routers of `routers`, which the papers define for batches of tokens, as they apply to one request whose
experts have utilities instead of a router's logits: logits are utilities over a temperature. Plain numbers, since for a
handful of experts arrays are slower; `batch` says the same in arrays.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, tanh
from typing import get_args

import numpy as np

from multimoe.config import Strategy
from multimoe.errors import BadInput
from multimoe.strategies.choices import (
    LEAST_SHARE,
    Certain,
    Choices,
    NoisyTop,
    Order,
    PlackettLuce,
    Row,
    SecondByChance,
)

NAMES: tuple[Strategy, ...] = get_args(Strategy)
LEAST_WEIGHT = 0.1  # a certain choice drops experts whose share of the blend would be below this
COLDEST = 1e-6  # temperature; below it a softmax only overflows
FAINTEST = 1e-6  # noise, in units of utility


@dataclass(frozen=True, eq=False)
class Scored:
    """What `k` of one request's n experts are chosen by.

    `utility`, its `groups` (numbers) and `bias` (on scores from 0 to 1) have n entries; `noise` has as many, or is the
    same for all: a standard deviation.
    """

    utility: Row
    temperature: float
    k: int
    noise: Row | float
    groups: list[int] | None
    bias: Row | None


def softmax(at: Scored) -> tuple[Row, Choices]:
    """Softmax, then the k largest (Mixtral, arXiv 2401.04088); the hopeless among them are left out."""
    shares = _softmax(at.utility, at.temperature)
    return shares, Certain(_without_hopeless(shares, largest(at.utility, at.k)), len(shares))


def switch(at: Scored) -> tuple[Row, Choices]:
    """The largest alone (Switch, arXiv 2101.03961)."""
    return _softmax(at.utility, at.temperature), Certain(largest(at.utility, 1), len(at.utility))


def gshard(at: Scored) -> tuple[Row, Choices]:
    """The two largest, the second kept with twice its part of both (GShard, arXiv 2006.16668, algorithm 1)."""
    shares, order = _softmax(at.utility, at.temperature), largest(at.utility, at.k)
    if len(order) == 1:
        return shares, Certain(order, len(shares))
    first, second = order
    kept = 2 * shares[second] / (shares[first] + shares[second])
    return shares, SecondByChance((first, second), min(1.0, kept), len(shares))


def hierarchical(at: Scored) -> tuple[Row, Choices]:
    """First the group, then up to k experts of it (Jordan & Jacobs 1994; Shazeer et al. 2017, appendix B).

    A group is as good as its best expert: its logit is the largest of theirs. Shares are p(group) p(expert | group).
    """
    numbers = at.groups or [0] * len(at.utility)
    groups = [[i for i, number in enumerate(numbers) if number == group] for group in sorted(set(numbers))]
    best = [max(at.utility[i] for i in members) for members in groups]
    shares = [0.0] * len(at.utility)
    for part, members in zip(_softmax(best, at.temperature), groups, strict=True):
        for i, share in zip(members, _softmax([at.utility[i] for i in members], at.temperature), strict=True):
            shares[i] = part * share
    chosen = groups[largest(best, 1)[0]]
    order = tuple(chosen[i] for i in largest([at.utility[i] for i in chosen], at.k))
    return shares, Certain(_without_hopeless(shares, order), len(shares))


def loss_free(at: Scored) -> tuple[Row, Choices]:
    """The k largest of sigmoid score plus bias, weighted by score alone (DeepSeek-V3, arXiv 2412.19437, eq. 16).

    A sigmoid, unlike a softmax, has a middle: logits are centred on the experts' mean.
    """
    middle = sum(at.utility) / len(at.utility)
    scores = [0.5 + 0.5 * tanh((u - middle) / (2 * at.temperature)) for u in at.utility]
    total = sum(scores)
    wanted = [score + bias for score, bias in zip(scores, at.bias, strict=True)] if at.bias else scores
    order = largest(wanted, at.k)
    return [score / total for score in scores], Certain(order, len(scores))


def gumbel(at: Scored) -> tuple[Row, Choices]:
    """k drawn without replacement by their softmax: the largest logits after Gumbel noise (Kool et al. 2019)."""
    shares = _softmax(at.utility, at.temperature)
    possible = [max(share, LEAST_SHARE) for share in shares]
    return shares, PlackettLuce(possible, (0.0,) * (at.k - 1) + (1.0,), largest(at.utility, at.k))


def noisy(at: Scored) -> tuple[Row, Choices]:
    """The k largest after normal noise (Shazeer et al. 2017, arXiv 1701.06538); weights are without it."""
    sd = np.maximum(at.noise, np.full(len(at.utility), FAINTEST))
    return _softmax(at.utility, at.temperature), NoisyTop(np.array(at.utility), sd, at.k)


STRATEGIES: Mapping[Strategy, Callable[[Scored], tuple[Row, Choices]]] = {
    "softmax": softmax,
    "switch": switch,
    "gshard": gshard,
    "hierarchical": hierarchical,
    "loss-free": loss_free,
    "gumbel": gumbel,
    "noisy": noisy,
    "thompson": noisy,  # whose noise is what is not known of each expert
}


def known(strategy: str) -> Strategy:
    """The same, checked. Raises BadInput."""
    for name in NAMES:
        if strategy == name:
            return name
    if strategy == "expert-choice":
        raise BadInput(
            "with 'expert-choice' experts pick among many requests, so it needs a batch of them; for one request "
            f"choose among: {', '.join(NAMES)}",
            "x_multimoe.strategy",
        )
    raise BadInput(f"no strategy {strategy[:64]!r}; there are: {', '.join(NAMES)}", "x_multimoe.strategy")


def longest(strategy: Strategy, top_k: int, n: int) -> int:
    """The most experts a choice may have."""
    return min(1 if strategy == "switch" else 2 if strategy == "gshard" else top_k, top_k, n)


def largest(values: Row, k: int) -> Order:
    """The k largest, largest first; of equals the earlier."""
    return tuple(sorted(range(len(values)), key=values.__getitem__, reverse=True)[:k])


def _softmax(utility: Row, temperature: float) -> Row:
    best = max(utility)
    worth = [exp((u - best) / temperature) for u in utility]
    total = sum(worth)
    return [w / total for w in worth]


def _without_hopeless(shares: Row, order: Order) -> Order:
    least = LEAST_WEIGHT * sum([shares[i] for i in order])
    return tuple([i for i in order if shares[i] >= least])
