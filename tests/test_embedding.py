"""An embedding as bytes: what goes in comes out, and damage is named."""

import numpy as np
import pytest
import safetensors.numpy

from multimoe.embedding import CONCEPT, Embedding, Vector
from multimoe.errors import CheckpointError
from multimoe.messages import MODALITIES, Modality

SIZES: dict[Modality, int] = {"text": CONCEPT, "image": 1280, "audio": 384}


def unit(size: int, seed: int) -> Vector:
    draw = np.random.default_rng(seed).normal(size=(2, max(size, CONCEPT))).astype(np.float32)
    features, concept = draw[0, :size], draw[1, :CONCEPT]
    return Vector(features / np.linalg.norm(features), concept / np.linalg.norm(concept))


def embedding(*modalities: Modality) -> Embedding:
    return Embedding(
        {m: unit(SIZES[m], seed) for seed, m in enumerate(modalities)}, {m: f"{m}-encoder-1" for m in modalities}
    )


@pytest.mark.parametrize("modalities", [("text",), ("image", "audio"), MODALITIES, ()])
def test_bytes_come_back_as_the_same_embedding(modalities: tuple[Modality, ...]) -> None:
    before = embedding(*modalities)
    after = Embedding.from_bytes(before.to_bytes())
    assert after.modalities == modalities
    assert dict(after.revisions) == dict(before.revisions)
    for m in modalities:
        for mine, theirs in (
            (before.vectors[m].features, after.vectors[m].features),
            (before.vectors[m].concept, after.vectors[m].concept),
        ):
            assert theirs.dtype == np.float32
            # half precision keeps 11 bits: of a component at most 2**-11 of itself is lost
            np.testing.assert_allclose(theirs, mine, rtol=2**-11, atol=2**-24)
            assert abs(float(np.linalg.norm(theirs)) - 1) < 1e-3
            assert float(theirs @ mine) > 0.9999


def test_a_second_round_trip_loses_nothing() -> None:
    once = Embedding.from_bytes(embedding(*MODALITIES).to_bytes())
    twice = Embedding.from_bytes(once.to_bytes())
    for m in MODALITIES:
        np.testing.assert_array_equal(twice.vectors[m].features, once.vectors[m].features)
        np.testing.assert_array_equal(twice.vectors[m].concept, once.vectors[m].concept)


def test_modalities_are_in_their_usual_order() -> None:
    assert embedding("audio", "text").modalities == ("text", "audio")


def test_sizes_are_as_promised() -> None:
    assert len(embedding("text").to_bytes()) < 2_000
    assert len(embedding("image").to_bytes()) < 4_000


GOOD = embedding("text").to_bytes()


def saved(**changes: np.ndarray) -> bytes:
    tensors = {"text.features": np.ones(384, np.float16), "text.concept": np.ones(384, np.float16)}
    tensors |= {name.replace("_", "."): value for name, value in changes.items()}
    return safetensors.numpy.save(tensors, metadata={"text": "minilm"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an embedding",
        GOOD[:20],
        GOOD[:-10],
        b"\xff" * 8 + GOOD[8:],
        safetensors.numpy.save({"text.features": np.ones(384, np.float16)}),
        safetensors.numpy.save({"text.features": np.ones(384, np.float16)}, metadata={"text": "minilm"}),
        saved(text_concept=np.ones(100, np.float16)),
        saved(text_features=np.ones((2, 384), np.float16)),
        saved(text_features=np.full(384, np.nan, np.float16)),
        saved(text_concept=np.full(384, np.inf, np.float16)),
    ],
    ids=[
        "empty",
        "text",
        "header cut",
        "data cut",
        "header length",
        "no revisions",
        "no concept",
        "wrong size",
        "a matrix",
        "NaN",
        "infinite",
    ],
)
def test_damage_is_named(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="not an embedding, or a damaged one"):
        Embedding.from_bytes(data)


def test_any_cut_is_noticed() -> None:
    for end in range(0, len(GOOD), 97):
        with pytest.raises(CheckpointError):
            Embedding.from_bytes(GOOD[:end])
