"""The hierarchical logistic model behind the gate, fitted exactly and in linear time. Arrays only.

Statement k says that expert e did well or badly on request x: its logit is z(x) . (common + own_e) + slope * card_e(x).
`common` is what all experts find easy or hard, `own_e` what sets one apart. Both have Gaussian priors whose variances,
one for each block of z, are learned with them (empirical Bayes, MacKay 1992), so that features which tell experts apart
are trusted and features which do not are not. The posterior of `own` is kept: it says how sure one can be of an expert.

The Hessian is an arrow (a block an expert, and a border they share), so a Newton step costs one pass over the
statements and a small solve for each expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit  # type: ignore[import-untyped]

Float = NDArray[np.float64]
Single = NDArray[np.float32]
Int = NDArray[np.intp]

STRENGTH = 30.0  # how many weights the prior guess of a variance counts for
SLOPE_VARIANCE = 0.1
ROUNDS = 10  # of learning the variances
STEPS = 3  # of Newton in each
HALVINGS = 8
LEAST_MOVE = 1e-3  # logits; smaller steps end the search


@dataclass(frozen=True, eq=False)
class Prior:
    """What is believed before any rating: weight j of z belongs to block `block[j]`, (q,); variances are per block."""

    block: Int
    common: Float
    own: Float
    slope: float


@dataclass(frozen=True, eq=False)
class Statements:
    """r statements about n requests z (n, q) and e experts whose cards score `cards` (n, e).

    Row k is about `expert[k]` on request `at[k]` and counts `weight[k]`. A label has `score[k]` in [0, 1] and `pair[k]`
    -1. Rows of one pair number >= 0 are a comparison: the sum of `share[k]` times their logits (positive for the
    winners, negative for the losers) is the logit of what was said.
    """

    z: Single
    cards: Single
    at: Int
    expert: Int
    weight: Float
    score: Float
    pair: Int
    share: Float


def labels(z: Single, at: Int, expert: Int, score: Float, experts: int) -> Statements:
    """Labels alone, each of weight 1, about `experts` experts without cards."""
    r = len(score)
    cards = np.zeros((len(z), experts), np.float32)
    return Statements(z, cards, at, expert, np.ones(r), score, np.full(r, -1), np.ones(r))


@dataclass(frozen=True, eq=False)
class Posterior:
    """Means `common` (q,), `own` (e, q), `slope`; `covariance` (e, q, q) of `own` given `common`; `variance` (q,) of an
    expert's own weights before its first rating."""

    common: Float
    own: Float
    slope: float
    covariance: Float
    variance: Float


def fit(said: Statements, prior: Prior, rounds: int = ROUNDS) -> Posterior:
    """The maximum a posteriori and its Laplace approximation. Deterministic.

    About r * (q + 1)^2 operations a Newton step, at most `rounds` * STEPS of them.
    """
    model = _Arrow(said, prior)
    for last in [False] * (rounds - 1) + [True]:
        for _ in range(STEPS):
            if model.step() < LEAST_MOVE:
                break
        if not last and not model.learn_variances():
            break
    return model.posterior()


class _Arrow:
    """The state of the search. Column q of the design is the card score, whose weight only `common` has."""

    def __init__(self, said: Statements, prior: Prior) -> None:
        order = np.argsort(said.expert, kind="stable")
        self.prior = prior
        self.experts = said.cards.shape[1]
        self.q = said.z.shape[1]
        self.weight, self.score = said.weight[order], said.score[order]
        self.pair, self.share = said.pair[order], said.share[order]
        self.pairs = int(self.pair.max(initial=-1)) + 1
        at, expert = said.at[order], said.expert[order]
        self.design = np.hstack([said.z[at], said.cards[at, expert][:, None]]).astype(np.float32)  # (r, q + 1)
        self.ends = np.searchsorted(expert, np.arange(self.experts + 1))
        self.expert = expert
        self.centre = np.append(np.zeros(self.q), prior.slope)
        self.common = self.centre.copy()
        self.own = np.zeros((self.experts, self.q))
        self.common_variance, self.own_variance = prior.common, prior.own
        self._bend()

    def step(self) -> float:
        """One Newton step, halved while it leads uphill. Returns the largest move of any weight."""
        before = self.loss(self.common, self.own)
        to_common, to_own = self._direction()
        size = 1.0
        for _ in range(HALVINGS):
            common, own = self.common + size * to_common, self.own + size * to_own
            if self.loss(common, own) <= before + 1e-9 * abs(before):
                break
            size /= 2
        else:
            return 0.0
        self.common, self.own = common, own
        self._bend()
        return size * max(float(np.abs(to_common).max()), float(np.abs(to_own).max()))

    def loss(self, common: Float, own: Float) -> float:
        """Minus the log of likelihood times prior, up to a constant."""
        logits = self._logits(common, own)
        labels = self.pair < 0
        each = np.logaddexp(0, logits[labels]) - self.score[labels] * logits[labels]
        total = float(self.weight[labels] @ each)
        if self.pairs:
            said, weight = self._compared(logits)
            total += float(weight @ np.logaddexp(0, -said))
        off = common - self.centre
        return total + float(off**2 @ self._common_precision() + (own**2 @ self._own_precision()).sum()) / 2

    def learn_variances(self) -> bool:
        """MacKay's update, shrunk towards the prior's guess. False once nothing changes any more."""
        border = np.linalg.inv(self.schur)
        leak = self.inverse @ self.gram[:, : self.q, :]  # (experts, q, q + 1): how `own` answers to `common`
        spread = np.diagonal(self.inverse, axis1=1, axis2=2) + np.einsum("eij,jk,eik->ei", leak, border, leak)
        own = self._variance(self.prior.own, self.own_variance, self.own**2, spread)
        common = self._variance(
            self.prior.common,
            self.common_variance,
            self.common[None, : self.q] ** 2,
            np.diagonal(border)[None, : self.q],
        )
        change = max(_change(own, self.own_variance), _change(common, self.common_variance))
        self.own_variance, self.common_variance = own, common
        self._factor()
        return change > 0.01

    def posterior(self) -> Posterior:
        return Posterior(
            common=self.common[: self.q],
            own=self.own,
            slope=float(self.common[self.q]),
            covariance=self.inverse,
            variance=self.own_variance[self.prior.block],
        )

    def _variance(self, guess: Float, now: Float, squares: Float, spread: Float) -> Float:
        """(blocks,) from squared weights and their posterior variances, both (rows, q)."""
        known = 1 - np.minimum(spread / now[self.prior.block], 1)  # how well determined each weight is, in [0, 1]
        blocks = len(guess)
        block = np.broadcast_to(self.prior.block, squares.shape).ravel()
        total = np.bincount(block, weights=squares.ravel(), minlength=blocks)
        count = np.bincount(block, weights=known.ravel(), minlength=blocks)
        variance: Float = (STRENGTH * guess + total) / (STRENGTH + count)
        return variance

    def _logits(self, common: Float, own: Float) -> Float:
        logits = np.empty(len(self.weight))
        for e, rows in self._by_expert():
            weights = common.copy()
            weights[: self.q] += own[e]
            logits[rows] = self.design[rows] @ weights.astype(np.float32)
        return logits

    def _by_expert(self) -> Iterator[tuple[int, slice]]:
        return ((e, slice(self.ends[e], self.ends[e + 1])) for e in range(self.experts))

    def _compared(self, logits: Float) -> tuple[Float, Float]:
        """Logit and weight of every comparison, (pairs,)."""
        rows = self.pair >= 0
        pair = self.pair[rows]
        said = np.bincount(pair, weights=(self.share * logits)[rows], minlength=self.pairs).astype(np.float64)
        weight = np.zeros(self.pairs)
        weight[pair] = self.weight[rows]
        return said, weight

    def _bend(self) -> None:
        """Slope (experts, q + 1) and curvature (experts, q + 1, q + 1) of minus the log-likelihood, here."""
        pull, bend = self._rows()
        self.slopes = np.zeros((self.experts, self.q + 1))
        self.gram = np.zeros((self.experts, self.q + 1, self.q + 1))
        for e, rows in self._by_expert():
            design = self.design[rows]
            self.slopes[e] = design.T @ pull[rows].astype(np.float32)
            self.gram[e] = (design * bend[rows, None].astype(np.float32)).T @ design
        self._factor()

    def _rows(self) -> tuple[Float, Float]:
        """Slope and curvature of every statement in its own logit, (r,).

        A comparison's curvature couples its rows; (sum of c x)^2 <= (sum of |c|) (sum of |c| x^2) bounds it by rows.
        """
        logits = self._logits(self.common, self.own)
        p = sigmoid(logits)
        pull, bend = self.weight * (p - self.score), self.weight * np.maximum(p * (1 - p), 1e-4)
        if self.pairs:
            rows = self.pair >= 0
            said, _ = self._compared(logits)
            lost = sigmoid(-said)[self.pair[rows]]
            share, weight = self.share[rows], self.weight[rows]
            pull[rows] = -weight * lost * share
            bend[rows] = weight * lost * (1 - lost) * 2 * np.abs(share)
        return pull, bend

    def _factor(self) -> None:
        """The arrow's blocks, inverted: `inverse` (experts, q, q), and the border's Schur complement."""
        blocks = self.gram[:, : self.q, : self.q] + np.diag(self._own_precision())
        self.inverse = np.linalg.inv(blocks)
        cross = self.gram[:, : self.q, :]  # (experts, q, q + 1)
        eliminated = self.gram - np.transpose(cross, (0, 2, 1)) @ (self.inverse @ cross)
        self.schur = np.diag(self._common_precision()) + eliminated.sum(axis=0)

    def _direction(self) -> tuple[Float, Float]:
        own_slope = self.slopes[:, : self.q] + self.own * self._own_precision()  # (experts, q)
        solved = np.einsum("eij,ej->ei", self.inverse, own_slope)
        cross = self.gram[:, : self.q, :]
        slope = self.slopes.sum(axis=0) + (self.common - self.centre) * self._common_precision()
        common: Float = -np.linalg.solve(self.schur, slope - np.einsum("eij,ei->j", cross, solved))
        own: Float = -solved - np.einsum("eij,ej->ei", self.inverse, cross @ common)
        return common, own

    def _common_precision(self) -> Float:
        return 1 / np.append(self.common_variance[self.prior.block], SLOPE_VARIANCE)

    def _own_precision(self) -> Float:
        precision: Float = 1 / self.own_variance[self.prior.block]
        return precision


def sigmoid(logits: Float) -> Float:
    p: Float = expit(np.minimum(np.maximum(logits, -30), 30))  # np.clip takes longer than all the rest
    return p


def _change(new: Float, old: Float) -> float:
    return float(np.abs(np.log(new / old)).max())
