"""Says what is in a photograph with any classifier of timm (Wightman, pytorch-image-models).

The model brings its own picture size, normalisation and classes. It must always say one of them, so a likeliest label
that is itself unlikely means that none fits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from multimoe.config import ExpertSpec, Settings
from multimoe.errors import BadConfig
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.hub import device
from multimoe.messages import ChatRequest
from multimoe.outputs import Label
from multimoe.pretrained import list_labels, timm_classifier


class Options(Settings):
    """`architecture`: timm's name of the model, where the weights are one file; a hub folder says it itself.

    `arguments` go to timm's constructor beside it. `labels`, in the order of the model's classes, and `space` name what
    it tells apart, where that is neither ImageNet nor in the folder. `temperature` divides the logits; `top` is how
    many labels to list.
    """

    architecture: str = ""
    arguments: dict[str, Any] = {}
    labels: tuple[str, ...] = ()
    space: str = ""
    temperature: float = Field(default=1.0, gt=0)
    top: int = Field(default=20, ge=1)


class TimmClassifier(BatchExpert):
    """Weights: `model`, a safetensors file, or a folder as timm keeps on a hub (config.json, model.safetensors).

    It runs on a GPU where the spec asks for a share of one.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        torch.set_num_threads(1)
        self._options = self.options(Options)
        path: Path = self.weight("model")
        if path.is_file() and not self._options.architecture:
            raise BadConfig(
                f"expert {spec.name!r}: {path.name} does not say which model it is: set options.architecture"
            )
        self._device = device(spec)
        found = timm_classifier(path, self._options.architecture, self._options.arguments)
        self._network, self._transform = found.network.to(self._device), found.transform
        self._labels, self._space = self._named(found.labels, found.space, found.classes)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """One forward pass for all pictures; several of one request give the mean of their distributions, and each."""
        pictures = [Image.fromarray(image.pixels) for request in requests for image in request.images]
        per_request = torch.split(self.classify(pictures), [len(request.images) for request in requests])
        return [
            Answer(list_labels(probabilities, self._labels, self._space, self._options.top))
            for probabilities in per_request
        ]

    @torch.inference_mode()
    def classify(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> (n, classes) probabilities, on the CPU."""
        batch = torch.stack([self._transform(picture) for picture in pictures]).to(self._device)
        logits: Tensor = self._network(batch)  # (n, classes)
        return (logits.float() / self._options.temperature).softmax(dim=1).cpu()

    def _named(self, known: Sequence[Label], space: str, classes: int) -> tuple[Sequence[Label], str]:
        """The options' names before the model's own. Raises BadConfig where there is not one for each class."""
        labels = [Label(name=name, probability=0) for name in self._options.labels] or known
        if len(labels) != classes:
            told = f"{len(labels)} of its {classes} classes have a name" if labels else f"its {classes} have none"
            raise BadConfig(f"expert {self.spec.name!r}: {told}: list them all under options.labels")
        own = self._options.space or (self.spec.name if self._options.labels else space or self.spec.name)
        return labels, own
