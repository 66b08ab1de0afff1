"""A request as vectors: what the encoders give, the gate reads and the store keeps. numpy only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from multimoe.errors import CheckpointError
from multimoe.messages import MODALITIES, Modality

CONCEPT = 384  # dimensions of the text encoder's space, in which expert cards lie

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Vector:
    """One modality of a request, both parts (d,) float32.

    `features` are the frozen encoder's own, for learning. `concept` (384,), of length 1, is where that lies in the
    space of the text encoder, so that it can be compared with a card before anything is learned.
    """

    features: Float
    concept: Float


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vectors of the modalities a request has; `revisions` name the encoders that made them."""

    vectors: Mapping[Modality, Vector]
    revisions: Mapping[Modality, str]

    @cached_property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(m for m in MODALITIES if m in self.vectors)

    def to_bytes(self) -> bytes:
        """Safetensors, float16: about 2 kB for a text, under 4 kB for a picture."""
        tensors = {
            f"{m}.{part}": getattr(vector, part).astype(np.float16)
            for m, vector in self.vectors.items()
            for part in ("features", "concept")
        }
        if not tensors:  # safetensors writes a broken header where there is no tensor at all
            tensors["none"] = np.zeros(0, np.float16)
        return safetensors.numpy.save(tensors, metadata={str(m): name for m, name in self.revisions.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Embedding":
        """What `to_bytes` wrote. Raises CheckpointError for anything else."""
        try:
            tensors = safetensors.numpy.load(data)
            header = np.frombuffer(data[:8], "<u8")[0]
            revisions: dict[Modality, str] = json.loads(data[8 : 8 + int(header)])["__metadata__"]
            vectors = {m: _vector(tensors, m) for m in MODALITIES if f"{m}.features" in tensors}
            if missing := vectors.keys() - revisions.keys():
                raise KeyError(f"no revision of {', '.join(sorted(missing))}")
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(f"not an embedding, or a damaged one ({error}); leave out its row") from error
        return cls(vectors, revisions)


def _vector(tensors: Mapping[str, NDArray[np.generic]], modality: Modality) -> Vector:
    """Raises KeyError or ValueError."""
    features, concept = (tensors[f"{modality}.{part}"].astype(np.float32) for part in ("features", "concept"))
    if features.ndim != 1 or concept.shape != (CONCEPT,):
        raise ValueError(f"{modality} has shapes {features.shape} and {concept.shape}")
    if not (np.isfinite(features).all() and np.isfinite(concept).all()):
        raise ValueError(f"{modality} holds numbers that are not finite")
    return Vector(features, concept)
