"""What ratings taught of each expert's quality, and how sure that is. numpy only; no cards, no policy, no training.

A request is a short vector z: 1, which modalities it has, and for each its features along the directions in which
requests differ most. Expert e's logit is z . (common + own_e) + slope * card score; `own` has a Gaussian posterior.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimoe.embedding import Embedding
from multimoe.messages import MODALITIES, Modality

Float = NDArray[np.float64]
Single = NDArray[np.float32]

SLOPE = 0.6  # of the standardised card score: the best card of a handful starts near 0.7, a wrong one near 0.35
HEAD = 1 + len(MODALITIES)  # of z: what comes before the features
BIAS_VARIANCE = 0.4  # of an expert's own weights before any rating, in logits squared
PRESENCE_VARIANCE = 0.2
LEAST_SPREAD = 0.005  # in quality
FEATURE_VARIANCE = 0.1  # for features of mean square norm 1


@dataclass(frozen=True, eq=False)
class Axes:
    """z's part for one modality is features @ `basis` - `shift`; `basis` is (d, r), `shift` (r,)."""

    basis: Single
    shift: Single


def _untaught() -> Float:
    return np.array([BIAS_VARIANCE] + [PRESENCE_VARIANCE] * len(MODALITIES))


@dataclass(frozen=True, eq=False)
class Learned:
    """What is known of e experts by name; as it is by default, cards alone.

    z has q = HEAD + the sum of the axes' widths, modalities in the order of `MODALITIES`. `common` (q,) is what makes
    requests easy or hard for all, `own` (e, q) what sets one expert apart, `covariance` (e, q, q) how uncertain that
    is, `variance` (q,) how uncertain it is for an expert never rated. `rated` (e,) counts ratings. `balance` (e,) is
    the bias of loss-free balancing. `tilt` (e, q) is what policy learning adds to utilities. `revisions` name the
    encoders whose features these are.
    """

    experts: tuple[str, ...] = ()
    axes: Mapping[Modality, Axes] = field(default_factory=dict)
    common: Float = field(default_factory=lambda: np.zeros(HEAD))
    own: Float = field(default_factory=lambda: np.zeros((0, HEAD)))
    covariance: Single = field(default_factory=lambda: np.zeros((0, HEAD, HEAD), np.float32))
    variance: Float = field(default_factory=_untaught)
    rated: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    balance: Float = field(default_factory=lambda: np.zeros(0))
    tilt: Float = field(default_factory=lambda: np.zeros((0, HEAD)))
    slope: float = SLOPE
    revisions: Mapping[Modality, str] = field(default_factory=dict)

    def rows(self, experts: Sequence[str]) -> "Learned":
        """The same for other experts, in their order; one never rated has what is common, and the prior's doubt."""
        at = {name: i for i, name in enumerate(self.experts)}
        here = [i for i, name in enumerate(experts) if name in at]
        there = [at[name] for name in experts if name in at]

        def moved(table: NDArray[Any], empty: NDArray[Any]) -> NDArray[Any]:
            rows = np.repeat(empty[None].astype(table.dtype), len(experts), axis=0)
            rows[here] = table[there]
            return rows

        q = len(self.common)
        return replace(
            self,
            experts=tuple(experts),
            own=moved(self.own, np.zeros(q)),
            covariance=moved(self.covariance, np.diag(self.variance)),
            rated=moved(self.rated, np.zeros((), np.int64)),
            balance=moved(self.balance, np.zeros(())),
            tilt=moved(self.tilt, np.zeros(q)),
        )

    @cached_property
    def _weights(self) -> Float:
        """(q, e)."""
        weights: Float = (self.common + self.own).T
        return weights

    @cached_property
    def _tilted(self) -> bool:
        return bool(self.tilt.any())

    def vectors(self, embeddings: Sequence[Embedding]) -> Single:
        """z of each request, (n, q)."""
        return vectors(embeddings, self.axes)

    def logits(self, z: Single, scores: Float) -> Float:
        """(n, e) for requests z (n, q) whose cards score `scores` (n, e)."""
        logits: Float = z @ self._weights + self.slope * scores
        return logits

    def tilts(self, z: Single, experts: NDArray[np.intp]) -> Float | float:
        """What policy learning adds to the utilities of `experts`, (n, experts); 0 where it was not asked."""
        return z @ self.tilt[experts].T if self._tilted else 0.0

    def doubt(self, z: Single) -> Float:
        """Posterior standard deviation of each expert's own part of the logit, given what is common to all, (n, e).

        What is common moves all experts alike, so it is no reason to try one of them.
        """
        e, q, _ = self.covariance.shape
        moved = self.covariance.reshape(e * q, q) @ z.T  # (e q, n): one product is quicker than e
        if len(z) == 1:
            variance = (moved.reshape(e, q) @ z[0])[None]  # what follows would say the same, more slowly
        else:
            variance = np.einsum("eqn,nq->ne", moved.reshape(e, q, len(z)), z)
        doubt: Float = np.sqrt(np.maximum(variance, 1e-12)).astype(np.float64)
        return doubt


def vectors(embeddings: Sequence[Embedding], axes: Mapping[Modality, Axes]) -> Single:
    """1, the modalities present, and where they lie on their axes, (n, q)."""
    z = np.zeros((len(embeddings), HEAD + sum([len(part.shift) for part in axes.values()])), np.float32)
    z[:, 0] = 1
    begin = HEAD
    for i, m in enumerate(MODALITIES, 1):
        part = axes.get(m)
        end = begin + len(part.shift) if part else begin
        rows = [row for row, embedding in enumerate(embeddings) if m in embedding.vectors]
        if rows:
            at = slice(None) if len(rows) == len(z) else rows
            z[at, i] = 1
            if part:
                found = [embeddings[row].vectors[m].features for row in rows]
                features = np.array(found) if len(found) > 1 else found[0]
                z[at, begin:end] = features @ part.basis - part.shift
        begin = end
    return z


def text_vectors(features: Single, axes: Mapping[Modality, Axes]) -> Single:
    """`vectors` of requests of text alone, by their features (n, d)."""
    head = np.zeros((len(features), HEAD), np.float32)
    head[:, [0, 1 + MODALITIES.index("text")]] = 1
    return np.hstack([head, features @ axes["text"].basis - axes["text"].shift]) if "text" in axes else head


def believed(doubt: Float, quality: Float) -> Float:
    """Standard deviation of what is believed of each quality, from that of its logit; never so small that the integrals
    of Thompson sampling, whose step it sets, take long."""
    spread: Float = np.maximum(doubt * quality * (1 - quality), LEAST_SPREAD)
    return spread
