"""Small arithmetic on vectors that every encoder needs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Vectors = NDArray[np.float32]


def unit(vectors: NDArray[Any]) -> Vectors:
    """Each row (or the one vector) at length 1."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    return np.asarray(vectors / lengths, np.float32)


def plain(tensor: Tensor) -> Vectors:
    """A tensor on the CPU as numpy sees it."""
    array: Vectors = tensor.numpy()
    return array
