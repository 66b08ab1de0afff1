"""Classifies text, pictures or sound with any classifier of a hub, in transformers.

What its labels mean is the model's affair. One that may say several things at once (a tagger) gives each its own
probability: as `events` these are said of each stretch of a recording, as `labels` they are scaled down to sum to 1.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from multimoe import hub
from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import SAMPLE_RATE, ChatRequest, Modality
from multimoe.outputs import Event, Events, Label, Labels
from multimoe.passage import passage
from multimoe.pretrained import list_labels, timm_labels

KINDS: dict[Modality, tuple[Any, Any]] = {
    "text": (AutoModelForSequenceClassification, AutoTokenizer),
    "image": (AutoModelForImageClassification, AutoImageProcessor),
    "audio": (AutoModelForAudioClassification, AutoFeatureExtractor),
}
SHORTEST = SAMPLE_RATE // 10  # samples: what is left over at the end and shorter is not heard alone


class ClassifyOptions(hub.HubOptions):
    """`space` is the name of what the labels are of (left out, "imagenet-1k" where they are those, else that of the
    expert); `temperature` divides the logits; `top`, how many labels to list; `scores` "softmax" for one label or
    "sigmoid" for several at once (left out, as the model says). Of a recording `seconds` are looked at at once, and as
    `events` come labels of at least `least`.
    """

    space: str = ""
    temperature: float = Field(default=1.0, gt=0)
    top: int = Field(default=20, ge=1)
    scores: Literal["softmax", "sigmoid"] | None = None
    seconds: float = Field(default=10.0, gt=0)
    least: float = Field(default=0.2, ge=0, le=1)


class Classifier(BatchExpert):
    """Weights: `model`, a folder with safetensors and a tokenizer, image processor or feature extractor.

    It reads the one modality of its `inputs`. Several pictures of a request count the mean of their probabilities;
    recordings count as played one after the other.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self._options = self.options(ClassifyOptions)
        if len(spec.inputs) != 1 or spec.output not in ("labels", "events"):
            raise BadConfig(f"expert {spec.name!r}: a classifier has one of text, image and audio in, labels out")
        (self._modality,) = spec.inputs
        if spec.output == "events" and self._modality != "audio":
            raise BadConfig(f"expert {spec.name!r}: only of audio there are events")
        folder = self.weight("model")
        model, beside = KINDS[self._modality]
        self._prepare = hub.load_beside(beside, folder)
        self._network = hub.load(model, folder, spec, self._options)
        self._several = self._scores_several()
        self._labels, self._space = self._named(self._network.config.id2label)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        pieces = [self._pieces(request) for request in requests]
        with hub.running(self.spec.name):
            found = self._classify([piece for some in pieces for piece in some])  # (pieces, labels)
        per_request = torch.split(found, [len(some) for some in pieces])
        return [Answer(self._said(*pair)) for pair in zip(requests, per_request, strict=True)]

    def _pieces(self, request: ChatRequest) -> list[Any]:
        """What is looked at at once: a text, each picture, each stretch of a recording."""
        if self._modality == "text":
            return [passage(request.text)]
        if self._modality == "image":
            return [Image.fromarray(image.pixels) for image in request.images]
        samples = np.concatenate([audio.samples for audio in request.audios])
        samples = np.pad(samples, (0, max(SHORTEST - len(samples), 0)))
        length = round(self._options.seconds * SAMPLE_RATE)
        starts = range(0, max(len(samples) - SHORTEST, 1), length)
        return [samples[start : start + length] for start in starts]

    @torch.inference_mode()
    def _classify(self, pieces: list[Any]) -> Tensor:
        """(n, labels) float32 probabilities, at most `batch.size` pieces at once."""
        logits = [
            self._network(**self._inputs(pieces[at : at + self.spec.batch.size])).logits.float().cpu()
            for at in range(0, len(pieces), self.spec.batch.size)
        ]
        scaled = torch.cat(logits) / self._options.temperature
        return scaled.sigmoid() if self._several else scaled.softmax(dim=1)

    def _inputs(self, pieces: list[Any]) -> Any:
        if self._modality == "text":
            limit = min(self._prepare.model_max_length, self._network.config.max_position_embeddings)
            prepared = self._prepare(pieces, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        elif self._modality == "image":
            prepared = self._prepare(pieces, return_tensors="pt")
        else:
            prepared = self._prepare(pieces, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
        floats = {
            name: self._network.dtype if tensor.is_floating_point() else None for name, tensor in prepared.items()
        }
        return {name: tensor.to(self._network.device, floats[name]) for name, tensor in prepared.items()}

    def _said(self, request: ChatRequest, found: Tensor) -> Labels | Events:
        if self.spec.output == "events":
            return self._events(sum(audio.seconds for audio in request.audios), found)
        shares = found / found.sum(dim=1, keepdim=True).clamp(min=1.0)  # of a tagger's, which sum to more
        pictures = shares if self._modality == "image" else shares.mean(dim=0, keepdim=True)
        return list_labels(pictures, self._labels, self._space, self._options.top)

    def _events(self, duration: float, found: Tensor) -> Events:
        """Of each stretch the labels that are likely enough, the likeliest first."""
        events = []
        for at, probabilities in enumerate(found):
            start = at * self._options.seconds
            end = duration if at == len(found) - 1 else start + self._options.seconds
            top = probabilities.topk(min(self._options.top, len(probabilities)))
            events += [
                Event(label=self._labels[index].name, start=start, end=end, score=score)
                for score, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
                if score >= self._options.least
            ]
        return Events(space=self._space, duration=duration, events=tuple(events))

    def _scores_several(self) -> bool:
        said = self._options.scores
        return self._network.config.problem_type == "multi_label_classification" if said is None else said == "sigmoid"

    def _named(self, names: dict[int, str]) -> tuple[Sequence[Label], str]:
        """The labels in the order of the logits, and their space: ImageNet's with WordNet ids where they are those."""
        listed = [names[index] for index in range(len(names))]
        known, space = timm_labels({}, len(listed)) if self._modality == "image" else ((), "")
        if known and all(label.name == name.split(",")[0] for label, name in zip(known, listed, strict=True)):
            return known, self._options.space or space
        return [Label(name=name, probability=0.0) for name in listed], self._options.space or self.spec.name
