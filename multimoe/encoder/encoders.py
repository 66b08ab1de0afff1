"""Requests as embeddings: what is read of a question, and the encoders of one gate."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from multimoe.config import EncoderSpec, GateSpec
from multimoe.embedding import CONCEPT, Embedding, Vector
from multimoe.encoder.vectors import Vectors, unit
from multimoe.errors import BadConfig
from multimoe.expert import FindWeights
from multimoe.messages import MODALITIES, ChatRequest, Modality

FOLLOW_UP_WORDS = 4  # a question this short ("and in French?") is read together with the one before


class Encoder(Protocol):
    """What the catalog names as an encoder's backend: a class made as `Class(spec, weights, text)`.

    `text` is the text encoder, in whose space concepts lie (None for the text encoder itself). `embed` takes parts of
    its modality (texts as plain strings) and must be callable from several threads.
    """

    def embed(self, parts: Sequence[Any]) -> list[Vector]: ...


class Encoders:
    """The encoders of one gate. `revisions` names what they give; vectors of other revisions are not comparable."""

    def __init__(self, encoders: Mapping[Modality, Encoder], revisions: Mapping[Modality, str]) -> None:
        self._encoders = encoders
        self.revisions = dict(revisions)

    @classmethod
    def load(cls, spec: GateSpec, weights: FindWeights) -> "Encoders":
        """Raises BadConfig where an encoder cannot be made of what the catalog says, WeightsError without weights."""
        if "text" not in spec.encoders:
            raise BadConfig("gate.encoders needs one for text: cards are read by it")
        torch.set_num_threads(1)  # beside other replicas a second thread only spins
        text = _backend(spec.encoders["text"])(spec.encoders["text"], weights, None)
        encoders: dict[Modality, Encoder] = {
            m: text if m == "text" else _backend(one)(one, weights, text) for m, one in spec.encoders.items()
        }
        return cls(encoders, {m: one.revision for m, one in spec.encoders.items()})

    def embed(self, requests: Sequence[ChatRequest]) -> list[Embedding]:
        """What each request's question consists of; one batch a modality.

        Of several pictures or sounds in a question the mean counts. System prompts and history are not read, but for
        the turn before a very short question without media. A modality without an encoder is left out.
        """
        parts: dict[Modality, list[Sequence[Any]]] = {
            "text": [[text] if (text := _asked(request)) else [] for request in requests],
            "image": [request.images for request in requests],
            "audio": [request.audios for request in requests],
        }
        vectors = {m: self._embed(m, parts[m]) for m in MODALITIES if m in self._encoders}
        return [self._embedding({m: found[i] for m, found in vectors.items()}) for i in range(len(requests))]

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(n, CONCEPT) float32, each of length 1."""
        vectors = self._encoders["text"].embed(list(texts))
        return np.stack([vector.concept for vector in vectors]) if vectors else np.zeros((0, CONCEPT), np.float32)

    def _embed(self, modality: Modality, parts: Sequence[Sequence[Any]]) -> list[Vector | None]:
        """One vector for each request that has parts of the modality."""
        flat = [part for of_request in parts for part in of_request]
        vectors = iter(self._encoders[modality].embed(flat) if flat else [])
        return [_mean([next(vectors) for _ in of_request]) for of_request in parts]

    def _embedding(self, found: Mapping[Modality, Vector | None]) -> Embedding:
        present = {m: vector for m, vector in found.items() if vector is not None}
        return Embedding(present, {m: self.revisions[m] for m in present})


def _asked(request: ChatRequest) -> str:
    text = request.text
    if request.images or request.audios or len(text.split()) > FOLLOW_UP_WORDS:
        return text
    earlier = [m.text for m in request.messages if m.role == "user" and m is not request.question and m.text]
    return f"{earlier[-1]}\n{text}" if earlier and text else text


def _mean(vectors: Sequence[Vector]) -> Vector | None:
    if len(vectors) < 2:
        return vectors[0] if vectors else None
    features, concept = (np.mean([getattr(v, part) for v in vectors], axis=0) for part in ("features", "concept"))
    return Vector(unit(features), unit(concept))


def _backend(spec: EncoderSpec) -> Any:
    module, name = spec.backend.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadConfig(f"encoder backend {spec.backend!r} cannot be imported: {error}") from error
