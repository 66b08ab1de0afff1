"""The published routers, as their papers define them: functions of a batch's logits (n tokens or requests, e experts).

Chance comes in as arrays, so that every function is a formula. Losses that go with them are in `losses`; what a catalog
selects for single requests is in `strategy`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax  # type: ignore[import-untyped]

from multimoe.strategies.choices import Float, Int, in_order, plackett_luce

Bool = NDArray[np.bool_]

BALANCE_RATE = 0.001  # step of the bias (arXiv 2408.15664, section 3)


@dataclass(frozen=True, eq=False)
class Assignment:
    """Each token's k experts in order of choice: `experts` and `weights` (n, k).

    Where `kept` (n, k) is False the expert had no room, or chance left it out: that part of the output is missing.
    """

    experts: Int
    weights: Float
    kept: Bool

    def combine(self, e: int) -> Float:
        """The weight of every expert in each token's output, (n, e)."""
        table = np.zeros((len(self.experts), e))
        np.put_along_axis(table, self.experts, self.weights * self.kept, axis=1)
        return table


def softmax_top_k(logits: Float, k: int) -> Assignment:
    """Softmax over the k largest (Mixtral, arXiv 2401.04088): the same as softmax, the k largest, renormalised."""
    experts = in_order(logits, k)
    return _all_kept(experts, softmax(np.take_along_axis(logits, experts, axis=1), axis=1))


def noisy_logits(clean: Float, raw_noise: Float, normal: Float) -> Float:
    """Logits with noise of a learned scale, all (n, e): x W_g + N(0, 1) softplus(x W_noise) (Shazeer 2017, eq. 4).

    `clean` is x W_g, `raw_noise` x W_noise, `normal` standard normal numbers.
    """
    return clean + normal * np.logaddexp(0, raw_noise)


def noisy_top_k(clean: Float, raw_noise: Float, normal: Float, k: int) -> Assignment:
    """Softmax(KeepTopK(H, k)) of noisy logits H (Shazeer et al. 2017, arXiv 1701.06538, eq. 3-5); inputs (n, e)."""
    return softmax_top_k(noisy_logits(clean, raw_noise, normal), k)


def capacity(n: int, e: int, factor: float) -> int:
    """How many of n tokens one of e experts takes: its even share times `factor` (Switch, eq. 3), rounded up."""
    return math.ceil(n / e * factor)


def jitter(inputs: Float, chance: Float, epsilon: float = 0.01) -> Float:
    """A router's inputs times U(1 - epsilon, 1 + epsilon) (Switch, section 2.4); `chance` is uniform in [0, 1).

    The catalog does not offer it. It is noise for training by small steps; ours fits a linear model to the whole log,
    for which noise in proportion to the inputs is what weight decay is already (Bishop 1995). In serving it would draw
    choices whose propensity is not known exactly.
    """
    return inputs * (1 - epsilon + 2 * epsilon * chance)


def switch_top_1(logits: Float, room: int) -> Assignment:
    """The likeliest expert alone, by its own probability (Switch, arXiv 2101.03961, eq. 1-3).

    An expert keeps the first `room` tokens that come to it; later ones are dropped.
    """
    shares = softmax(logits, axis=1)  # (n, e)
    experts = in_order(logits, 1)
    taken = _places(experts[:, 0], np.ones(len(logits), dtype=bool), logits.shape[1])
    return Assignment(experts, np.take_along_axis(shares, experts, axis=1), taken[:, None] < room)


def gshard_top_2(logits: Float, chance: Float, room: int) -> Assignment:
    """The two likeliest, the second kept with twice its part of both (GShard, arXiv 2006.16668, algorithm 1).

    `chance` (n,) is uniform in [0, 1). First choices take their places before second ones; an expert keeps `room`.
    Unlike the algorithm as printed, a second choice that chance leaves out takes no place (as in fairseq).
    """
    experts = in_order(logits, 2)
    weights = softmax(np.take_along_axis(logits, experts, axis=1), axis=1)  # g1, g2 over their sum
    drawn = 2 * weights[:, 1] > chance
    everyone = np.ones(len(logits), dtype=bool)
    first = _places(experts[:, 0], everyone, logits.shape[1])
    before = np.bincount(experts[:, 0], minlength=logits.shape[1])  # first choices, whether or not there was room
    second = _places(experts[:, 1], drawn, logits.shape[1]) + before[experts[:, 1]]
    return Assignment(experts, weights, np.stack([first < room, drawn & (second < room)], axis=1))


def expert_choice(logits: Float, room: int) -> tuple[Int, Float]:
    """The `room` tokens each expert likes best and their weights, both (e, room) (Zhou et al. 2022, arXiv 2202.09368).

    Balanced by construction; a token may get any number of experts, also none. A token's experts depend on the rest of
    its batch.
    """
    shares = softmax(logits, axis=1).T  # (e, n)
    tokens = in_order(shares, room)
    return tokens, np.take_along_axis(shares, tokens, axis=1)


def hierarchical_top_k(primary: Float, secondary: Float, groups: int, k: int) -> Assignment:
    """The best `groups` groups and k experts of each (Shazeer et al. 2017, appendix B; Jordan & Jacobs 1994).

    `primary` (n, g) are the groups' logits, `secondary` (n, g, m) those of each group's m experts, -inf where it has
    fewer. Expert j of group i has number i m + j and weight G_primary,i G_i,j, each a softmax over its top.
    """
    n, _, m = secondary.shape
    outer = softmax_top_k(primary, groups)
    inside = np.take_along_axis(secondary, outer.experts[:, :, None], axis=1)  # (n, groups, m)
    inner = in_order(inside, k)  # (n, groups, k)
    weights = softmax(np.take_along_axis(inside, inner, axis=2), axis=2) * outer.weights[:, :, None]
    experts = outer.experts[:, :, None] * m + inner
    there = np.isfinite(np.take_along_axis(inside, inner, axis=2))
    return Assignment(experts.reshape(n, -1), weights.reshape(n, -1), there.reshape(n, -1))


def loss_free_top_k(logits: Float, bias: Float, k: int, groups: int = 1, best_groups: int = 1) -> Assignment:
    """The k largest of sigmoid score plus `bias` (e,), weighted by score alone (DeepSeek-V3, arXiv 2412.19437, eq. 16).

    Where experts lie in `groups` of equal size, only the `best_groups` count whose two best experts sum to most.
    """
    scores = expit(logits)  # (n, e)
    wanted = (scores + bias).reshape(len(logits), groups, -1)
    if groups > 1:
        two = np.sort(wanted, axis=2)[:, :, -2:].sum(axis=2)  # (n, groups)
        others = in_order(two, groups)[:, best_groups:]
        np.put_along_axis(wanted, others[:, :, None], -np.inf, axis=1)
    experts = in_order(wanted.reshape(logits.shape), k)
    chosen = np.take_along_axis(scores, experts, axis=1)
    return _all_kept(experts, chosen / chosen.sum(axis=1, keepdims=True))


def update_bias(bias: Float, counts: Float, rate: float = BALANCE_RATE, even: Float | None = None) -> Float:
    """The bias (e,) after a batch in which each expert was chosen `counts` (e,) times (arXiv 2408.15664, algorithm 1).

    It rises by `rate` where an expert had less than its even share, and falls where it had more. That is the mean of
    the counts, or `even` (e,) where not every expert could have been chosen by every token.
    """
    moved: Float = bias + rate * np.sign((counts.mean() if even is None else even) - counts)
    return moved


def gumbel_top_k(logits: Float, gumbel: Float, k: int) -> tuple[Assignment, Float]:
    """k experts drawn without replacement, and the exact probability (n,) of each row's ordered draw.

    The largest of logits plus Gumbel noise `gumbel` (n, e) are a Plackett-Luce draw (Kool et al. 2019, arXiv
    1903.06059), weighted by their softmax.
    """
    experts = in_order(logits + gumbel, k)
    weights = softmax(np.take_along_axis(logits, experts, axis=1), axis=1)
    return _all_kept(experts, weights), plackett_luce(softmax(logits, axis=1), experts)


def _all_kept(experts: Int, weights: Float) -> Assignment:
    return Assignment(experts, weights, np.ones(experts.shape, dtype=bool))


def _places(experts: Int, asking: Bool, e: int) -> Int:
    """How many that are `asking` (n,) stand before each token at its expert, (n,)."""
    queue = np.zeros((len(experts), e), dtype=np.intp)
    queue[np.arange(len(experts)), experts] = asking
    places: Int = (np.cumsum(queue, axis=0) - queue)[np.arange(len(experts)), experts]
    return places
