"""Synthetic requests, experts and raters whose truth is known, for the tests of gate and learning."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from multimoe.config import Card, EncoderSpec, ExpertSpec, GateSpec
from multimoe.embedding import CONCEPT, Embedding, Vector
from multimoe.messages import Modality

WIDTHS: Mapping[Modality, int] = {"text": 384, "image": 1280, "audio": 384}
REVISIONS: Mapping[Modality, str] = {"text": "t1", "image": "i1", "audio": "a1"}


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def meaning(text: str, width: int = CONCEPT) -> np.ndarray:
    """A direction that only this text has."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return unit(np.random.default_rng(seed).normal(size=width))


def embed_texts(texts: Sequence[str]) -> np.ndarray:
    return np.stack([meaning(text) for text in texts])


def request(revisions: Mapping[Modality, str] = REVISIONS, noise: float = 0.0, seed: int = 0, **said: str) -> Embedding:
    """`request(text="sum", image="cat")`: vectors near those meanings, `noise` away from them."""
    generator = np.random.default_rng(seed)
    vectors: dict[Modality, Vector] = {}
    for modality, text in said.items():
        width = WIDTHS[modality]
        concept = unit(meaning(text) + noise * unit(generator.normal(size=CONCEPT)))
        features = (
            concept if modality == "text" else unit(meaning(text, width) + noise * unit(generator.normal(size=width)))
        )
        vectors[modality] = Vector(features, concept)
    return Embedding(vectors, {m: revisions[m] for m in vectors})


def expert(
    name: str, *inputs: Modality, cost: float = 0.0, latency_ms: float = 100.0, **card: tuple[str, ...]
) -> ExpertSpec:
    return ExpertSpec(
        name=name,
        backend="experts.echo:Echo",
        inputs=frozenset(inputs or ("text",)),
        output="text",
        card=Card(description=f"about {name}", **card),
        cost=cost,
        latency_ms=latency_ms,
    )


def gate_spec(**changes: object) -> GateSpec:
    encoders = {m: EncoderSpec(backend="multimoe.encoder:TextEncoder", revision=r) for m, r in REVISIONS.items()}
    return GateSpec.model_validate({"encoders": encoders, **changes})
