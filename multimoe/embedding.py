"""A request as vectors: what the encoders give, the gate reads and the store keeps. numpy only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from multimoe.messages import MODALITIES, Modality

CONCEPT = 384  # dimensions of the text encoder's space, in which expert cards lie

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Vector:
    """One modality of a request, both parts (d,) float32 of length 1.

    `features` are the frozen encoder's own, for learning. `concept` (384,) is where that lies in the space of the
    text encoder, so that it can be compared with a card before anything is learned. For text they are the same.
    """

    features: Float
    concept: Float


@dataclass(frozen=True, eq=False)
class Embedding:
    """The vectors of the modalities a request has; `revisions` name the encoders that made them."""

    vectors: Mapping[Modality, Vector]
    revisions: Mapping[Modality, str]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(m for m in MODALITIES if m in self.vectors)

    def to_bytes(self) -> bytes:
        """Safetensors, float16: about 5 kB for a text, 6 kB for a picture."""
        tensors = {
            f"{m}.{part}": getattr(vector, part).astype(np.float16)
            for m, vector in self.vectors.items()
            for part in ("features", "concept")
        }
        return safetensors.numpy.save(tensors, metadata={m: name for m, name in self.revisions.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Embedding":
        tensors = safetensors.numpy.load(data)
        header = np.frombuffer(data[:8], "<u8")[0]
        revisions: dict[Modality, str] = json.loads(data[8 : 8 + int(header)])["__metadata__"]
        vectors = {
            m: Vector(*(tensors[f"{m}.{part}"].astype(np.float32) for part in ("features", "concept")))
            for m in MODALITIES
            if f"{m}.features" in tensors
        }
        return cls(vectors, revisions)
