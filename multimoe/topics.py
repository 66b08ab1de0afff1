"""What requests are about, roughly: clusters of their embeddings, all modalities together. It gives them no names."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multimoe.embedding import Embedding

Float = NDArray[np.float32]
Int = NDArray[np.intp]

MOST = 12
EACH = 60  # requests that a topic should have on average
ROUNDS = 15


def topics(embeddings: Sequence[Embedding]) -> Int:
    """A number of a topic for each request, (n,) from 0 on. Deterministic."""
    count = max(1, min(MOST, len(embeddings) // EACH))
    if count == 1:
        return np.zeros(len(embeddings), dtype=np.intp)
    points = np.stack([concept(embedding) for embedding in embeddings])
    return k_means(points - points.mean(axis=0), count, np.random.default_rng(0))


def concept(embedding: Embedding) -> Float:
    """Where the request as a whole lies in the space of the text encoder, (384,)."""
    whole: Float = np.sum([vector.concept for vector in embedding.vectors.values()], axis=0, dtype=np.float32)
    return whole


def k_means(points: Float, count: int, generator: np.random.Generator) -> Int:
    """Clusters (n,) of points (n, d): Lloyd's rounds from far-apart beginnings (k-means++, 2007).

    A cluster that lost all its points keeps its centre.
    """
    centres = points[generator.integers(len(points))][None]
    far = _distances(points, centres)[:, 0]
    while len(centres) < count and far.sum() > 0:
        centres = np.vstack([centres, points[generator.choice(len(points), p=far / far.sum())]])
        far = np.minimum(far, _distances(points, centres[-1:])[:, 0])
    near: Int = np.argmin(_distances(points, centres), axis=1)
    for _ in range(ROUNDS):
        for i in np.unique(near):
            centres[i] = points[near == i].mean(axis=0)
        near = np.argmin(_distances(points, centres), axis=1)
    return near


def _distances(points: Float, centres: Float) -> Float:
    """Squared, (n, centres)."""
    squares = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    distances: Float = np.maximum(squares, 0)
    return distances
