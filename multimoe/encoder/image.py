"""Pictures as vectors: EfficientNet-Lite0 (Tan & Le 2019), and what of its labels a picture means in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image
from torch.nn.functional import normalize

from multimoe.config import EncoderSpec
from multimoe.embedding import Vector
from multimoe.encoder.text import TextEncoder, weights_uri
from multimoe.encoder.vectors import Vectors, plain, unit
from multimoe.expert import FindWeights
from multimoe.messages import ImagePart
from multimoe.pretrained import efficientnet_lite, efficientnet_lite_transform, imagenet_labels

LIKELIEST = 10  # labels that make up a picture's concept
ANIMALS = 398  # the first classes of ImageNet are animals, the others things, places, food and plants
WORDS_PROBE = Path(__file__).with_name("words.safetensors")  # made by benchmarks/fit_words_probe.py
PRINTED_WORDS = (
    "a page of printed text",
    "a scanned document to read",
    "a photograph of a sign with words on it",
    "a screenshot of text",
    "a menu, a receipt or a label with words and numbers",
)


class ImageEncoder:
    """EfficientNet-Lite0: features are its pooled 1,280 numbers.

    The concept mixes the embeddings of the likeliest ImageNet labels with that of "printed words", for which ImageNet
    has no label; how much of it is words, a linear probe on the features says.
    """

    def __init__(self, spec: EncoderSpec, weights: FindWeights, text: TextEncoder) -> None:
        self._seer = Lite0(weights(weights_uri(spec)))
        self._labels = text.kept([_label_text(i, names) for i, (_, names) in enumerate(imagenet_labels())])
        self._printed = text.describe(PRINTED_WORDS)
        self._probe = safetensors.numpy.load_file(WORDS_PROBE)

    def embed(self, parts: Sequence[ImagePart]) -> list[Vector]:
        features, chances = self._seer.see(parts)
        concepts = self._concepts(chances, self._wordiness(features))
        return [Vector(f, c) for f, c in zip(features, concepts, strict=True)]

    def _wordiness(self, features: Vectors) -> Vectors:
        """Probability that a picture shows printed words, (n,)."""
        odds = np.exp(features @ self._probe["weight"] + self._probe["bias"])
        return np.asarray(odds / (1 + odds), np.float32)

    def _concepts(self, chances: Vectors, words: Vectors) -> Vectors:
        threshold = np.sort(chances, axis=1)[:, -LIKELIEST, None]
        likeliest = np.where(chances >= threshold, chances, 0.0)  # (n, 1000)
        thing = unit(likeliest @ self._labels)  # (n, CONCEPT)
        return unit(words[:, None] * self._printed + (1 - words[:, None]) * thing)


class Lite0:
    """The network alone."""

    def __init__(self, path: Path) -> None:
        model: Any = efficientnet_lite(path, "lite0")
        self._model = model.to(memory_format=torch.channels_last)  # a fifth faster on CPU
        self._transform = efficientnet_lite_transform("lite0")

    @torch.inference_mode()
    def see(self, parts: Sequence[ImagePart]) -> tuple[Vectors, Vectors]:
        """Pooled features (n, 1280), each of length 1, and probabilities of the ImageNet classes (n, 1000)."""
        inputs = torch.stack([self._transform(Image.fromarray(part.pixels)) for part in parts])  # (n, 3, 224, 224)
        states = self._model.forward_features(inputs.to(memory_format=torch.channels_last))
        pooled = self._model.forward_head(states, pre_logits=True)  # (n, 1280)
        return plain(normalize(pooled, dim=-1)), plain(self._model.classifier(pooled).softmax(-1))


def _label_text(index: int, names: str) -> str:
    kind = "an animal" if index < ANIMALS else "a thing"
    return f"a photograph of {kind}: {names.split(',')[0]}"
