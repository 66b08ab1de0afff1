"""Fit what the gate learns from ratings: each expert's quality around its card's prior, and how sure that is.

Unrated experts stay where their cards put them, ten ratings move a little, and what does not tell experts apart is
ignored (`multimoe.posterior`). It knows neither log nor files, and does not judge what it has fitted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from multimoe.config import GateSpec
from multimoe.embedding import Embedding
from multimoe.errors import TooLittleData
from multimoe.examples import Example, Label, Shares, Win, about, eligible, label_votes, revisions
from multimoe.forgetting import half_life, recency
from multimoe.gate import Gate
from multimoe.messages import MODALITIES, Modality
from multimoe.policy_learning import tilted
from multimoe.posterior import Posterior, Prior, Statements, sigmoid
from multimoe.posterior import fit as fit_posterior
from multimoe.quality import (
    BIAS_VARIANCE,
    FEATURE_VARIANCE,
    HEAD,
    PRESENCE_VARIANCE,
    SLOPE,
    Axes,
    Learned,
    vectors,
)
from multimoe.strategies.batch import balancing_bias

Float = NDArray[np.float64]
Single = NDArray[np.float32]

RANK = 64  # directions of a modality's features that are looked at
FAINTEST = 1e-12  # variance; below it a direction is rounding
LEAST_SPREAD = 0.05  # root mean square norm of centred features; below it requests do not differ
COMMON_VARIANCES = (1.0, 0.5, 0.2)  # of bias, presence and features, before any rating
OWN_VARIANCES = (BIAS_VARIANCE, PRESENCE_VARIANCE, FEATURE_VARIANCE)


def fit(examples: Sequence[Example], gate: Gate) -> Learned:
    """Learn from examples in the order of time; of `gate` only roster and cards count. Deterministic, linear time.

    Older ratings fade where the log itself shows that tastes have changed (`multimoe.forgetting`).

    Raises TooLittleData when none of them rates an expert of the roster.
    """
    column = {expert.name: i for i, expert in enumerate(gate.experts)}
    labels = about(examples, column)
    wins = [(i, win) for i, e in enumerate(examples) for win in e.wins if _experts(win) <= column.keys()]
    if not labels and not wins:
        raise TooLittleData("no rating is about an expert that is in the catalog today; rate some answers first")
    requests = [e.embedding for e in examples] + [side for _, win in wins for side in (win.request, win.other)]
    seen = axes(requests)
    still = recency(examples, half_life(examples))
    z, cards = vectors(requests, seen), gate.cards.table(requests)
    said = _statements(z, cards, labels, wins, still, column)
    found = fit_posterior(said, prior(seen))
    rated = np.bincount(said.expert[said.pair < 0], minlength=len(gate.experts)).astype(np.int64)
    learned = taught(found, tuple(column), seen, rated, revisions(requests))
    n = len(examples)
    quality = sigmoid(learned.logits(z[:n], cards[:n]))
    learned = replace(learned, balance=_balance(quality, eligible(examples, column), gate.spec))
    if gate.spec.learning.objective != "quality":
        learned = replace(learned, tilt=tilted(examples, z[:n], quality, column, gate.spec))
    return learned


def axes(requests: Sequence[Embedding]) -> dict[Modality, Axes]:
    """The directions in which requests differ most, by modality: principal components, mean square norm 1 in all."""
    found: dict[Modality, Axes] = {}
    for m in MODALITIES:
        rows = [request.vectors[m].features for request in requests if m in request.vectors]
        if len(rows) > 1:
            found[m] = principal(np.stack(rows))
    return found


def principal(features: Single, rank: int = RANK) -> Axes:
    """Of features (n, d), n > 1."""
    centre = features.mean(axis=0)
    variances, directions = _variances((features - centre).astype(np.float64))  # rising
    kept = min(rank, len(features) - 1, features.shape[1])
    scale = 1 / max(float(np.sqrt(max(0.0, variances[::-1][:kept].sum()))), LEAST_SPREAD)
    basis: Single = (directions[:, ::-1][:, :kept] * scale).astype(np.float32)
    shift: Single = (centre @ basis).astype(np.float32)
    return Axes(basis, shift)


def _variances(spread: Float) -> tuple[Float, Float]:
    """Variances (r,) rising, and their directions (d, r), of centred features (n, d); r is the smaller of n and d."""
    n, d = spread.shape
    if n >= d:
        variances, directions = np.linalg.eigh(spread.T @ spread / n)
        return variances, directions
    variances, rows = np.linalg.eigh(spread @ spread.T / n)  # of n requests: less work than of d features
    return variances, spread.T @ rows / np.sqrt(n * np.maximum(variances, FAINTEST))


def prior(axes: Mapping[Modality, Axes]) -> Prior:
    """Blocks of z: the bias, presence of modalities, and each modality's features."""
    widths = [axes[m].basis.shape[1] for m in MODALITIES if m in axes]
    block = [0] + [1] * (HEAD - 1) + [2 + i for i, width in enumerate(widths) for _ in range(width)]
    spread = [*COMMON_VARIANCES[:2], *[COMMON_VARIANCES[2]] * len(widths)]
    own = [*OWN_VARIANCES[:2], *[OWN_VARIANCES[2]] * len(widths)]
    return Prior(np.array(block, dtype=np.intp), np.array(spread), np.array(own), SLOPE)


def taught(
    found: Posterior, experts: tuple[str, ...], axes: Mapping[Modality, Axes], rated: NDArray[np.int64],
    revisions: Mapping[Modality, str],
) -> Learned:  # fmt: skip
    return Learned(
        experts=experts,
        axes=axes,
        common=found.common,
        own=found.own,
        covariance=found.covariance.astype(np.float32),
        variance=found.variance,
        rated=rated,
        balance=np.zeros(len(experts)),
        tilt=np.zeros_like(found.own),
        slope=found.slope,
        revisions=revisions,
    )


def predictions(examples: Sequence[Example], gate: Gate) -> tuple[Float, Float]:
    """Predicted quality and score of every label about an expert of the roster, both (labels,)."""
    column = {expert.name: i for i, expert in enumerate(gate.experts)}
    labels = about(examples, column)
    if not labels:
        return np.zeros(0), np.zeros(0)
    quality = gate.table([example.embedding for example in examples])
    predicted = quality[[i for i, _ in labels], [column[label.expert] for _, label in labels]]
    return predicted, np.array([label.score for _, label in labels])


def _balance(quality: Float, able: NDArray[np.bool_], spec: GateSpec) -> Float:
    """Loss-free balancing's bias (experts,): what evens out the use of the experts this gate would choose itself.

    `quality` and who was `able` to answer are (requests, experts).
    """
    decided = able.any(axis=1)
    if not decided.any():
        return np.zeros(quality.shape[1])
    utility = np.where(able, quality, -np.inf)[decided]
    return balancing_bias(utility, spec.temperature, spec.top_k, spec.balance_rate)


def _statements(
    z: Single, cards: Float, labels: Sequence[tuple[int, Label]], wins: Sequence[tuple[int, Win]], still: Float,
    column: Mapping[str, int],
) -> Statements:  # fmt: skip
    """Labels, then comparisons: win j is about the j-th pair of requests behind those of the examples.

    `still` (examples,) is how much each of them counts today.
    """
    counted = label_votes([label for _, label in labels], [win for _, win in wins])
    counted = counted * still[[i for i, _ in labels] + [i for i, _ in wins]]
    sides = [
        (len(still) + 2 * j + side, column[name], j, sign * part)
        for j, (_, win) in enumerate(wins)
        for side, sign, party in _sides(win)
        for name, part in party
    ]
    pair = np.array([j for _, _, j, _ in sides], dtype=np.intp)
    return Statements(
        z=z,
        cards=cards.astype(np.float32),
        at=np.array([i for i, _ in labels] + [at for at, *_ in sides], dtype=np.intp),
        expert=np.array([column[label.expert] for _, label in labels] + [e for _, e, *_ in sides], dtype=np.intp),
        weight=np.concatenate([counted[: len(labels)], counted[len(labels) :][pair]]),
        score=np.array([label.score for _, label in labels] + [0.0] * len(sides)),
        pair=np.concatenate([np.full(len(labels), -1, dtype=np.intp), pair]),
        share=np.array([1.0] * len(labels) + [share for *_, share in sides]),
    )


def _experts(win: Win) -> set[str]:
    return {name for name, _ in (*win.winners, *win.losers)}


def _sides(win: Win) -> tuple[tuple[int, float, Shares], tuple[int, float, Shares]]:
    return (0, 1.0, win.winners), (1, -1.0, win.losers)
