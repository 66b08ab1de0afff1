"""Texts as vectors: all-MiniLM-L6-v2 (Wang et al. 2020; sentence-transformers). Its space is where concepts lie."""

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch.nn.functional import normalize

from multimoe.config import EncoderSpec
from multimoe.embedding import CONCEPT, Vector
from multimoe.encoder.prompt import prompt_features
from multimoe.encoder.vectors import Vectors, plain, unit
from multimoe.errors import BadConfig
from multimoe.expert import FindWeights
from multimoe.pretrained import minilm

logger = logging.getLogger(__name__)

TOKENS = 256  # of a text that are read; the encoder was trained on 128
TEXTS_AT_ONCE = 64


class TextEncoder:
    """all-MiniLM-L6-v2: mean over tokens, length 1. Its features are that and what can be counted in the prompt."""

    def __init__(self, spec: EncoderSpec, weights: FindWeights, text: "TextEncoder | None" = None) -> None:
        self.folder = weights(weights_uri(spec))
        self.revision = spec.revision
        self._model, self._tokenizer = minilm(self.folder)
        self._tokenizing = threading.Lock()  # fast tokenizers refuse to be used by two threads

    def embed(self, parts: Sequence[str]) -> list[Vector]:
        concepts = self.embed_texts(parts)
        return [Vector(f, c) for f, c in zip(features(concepts, parts), concepts, strict=True)]

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """(n, CONCEPT) float32, each of length 1."""
        batches = [self._embed(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        return np.concatenate(batches) if batches else np.zeros((0, CONCEPT), np.float32)

    def describe(self, alternatives: Sequence[str]) -> Vectors:
        """(CONCEPT,): one idea said in several ways."""
        return unit(self.embed_texts(alternatives).mean(axis=0))

    def kept(self, texts: Sequence[str]) -> Vectors:
        """`embed_texts` of fixed texts, kept beside the weights: seconds the first time, nothing after."""
        key = hashlib.sha256(json.dumps([self.revision, TOKENS, *texts]).encode()).hexdigest()[:16]
        path = self.folder / f"texts-{key}.safetensors"
        try:
            vectors: Vectors = safetensors.numpy.load_file(path)["vectors"]
            if vectors.shape == (len(texts), CONCEPT):
                return vectors
        except (OSError, SafetensorError, KeyError):
            pass  # not there yet, or cut short: made again
        vectors = self.embed_texts(texts)
        try:
            _write(path, safetensors.numpy.save({"vectors": vectors}))
        except OSError as error:
            logger.warning("cannot keep embeddings in %s (%s): the next start makes them again", path, error)
        return vectors

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> Vectors:
        with self._tokenizing:
            tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        states = self._model(**tokens).last_hidden_state  # (n, tokens, d)
        mask = tokens["attention_mask"].unsqueeze(-1)  # (n, tokens, 1)
        return plain(normalize((states * mask).sum(1) / mask.sum(1), dim=-1))


def features(concepts: Vectors, prompts: Sequence[str]) -> Vectors:
    """What the gate learns from, (n, CONCEPT + PROMPT): a prompt's embedding, and what can be counted in it."""
    return np.hstack([concepts, prompt_features(prompts)])


def weights_uri(spec: EncoderSpec, name: str = "model") -> str:
    """Raises BadConfig where the catalog lists no weights of that name."""
    if name not in spec.weights:
        listed = ", ".join(spec.weights) or "none"
        raise BadConfig(f"encoder {spec.backend!r} needs weights named {name!r}; the catalog lists: {listed}")
    return spec.weights[name]


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
