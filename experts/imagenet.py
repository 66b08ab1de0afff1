"""Says what is in a photograph: EfficientNet-Lite (Tan and Le, ICML 2019; the Lite variants are TensorFlow's) over the
1,000 classes of ImageNet.

It knows animals, plants, food, vehicles, instruments and things about the house, and must always say one of them: a
likeliest label under about 0.3 usually means that none fits.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from multimoe.config import ExpertSpec, Settings
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import ChatRequest
from multimoe.pretrained import LiteVariant, efficientnet_lite, efficientnet_lite_transform, list_labels, timm_labels


class Options(Settings):
    """`variant`: from fast to careful. `temperature` divides the logits; `multimoe.temperature` finds the one that
    makes probabilities true. `top`: how many labels to list.
    """

    variant: LiteVariant = "lite0"
    temperature: float = Field(default=1.0, gt=0)
    top: int = Field(default=20, ge=1)


class ImageNetClassifier(BatchExpert):
    """Weights: `model`, as the efficientnet-lite-pytorch packages carry them."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        torch.set_num_threads(1)
        options = self.options(Options)
        variant, self._temperature, self._top = options.variant, options.temperature, options.top
        self._transform = efficientnet_lite_transform(variant)
        self._network = efficientnet_lite(self.weight("model"), variant)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self._labels, self._space = timm_labels({}, 1000)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """One forward pass for all pictures; several of one request give the mean of their distributions, and each."""
        pictures = [Image.fromarray(image.pixels) for request in requests for image in request.images]
        per_picture = self.classify(pictures)
        per_request = torch.split(per_picture, [len(request.images) for request in requests])
        return [Answer(list_labels(each, self._labels, self._space, self._top)) for each in per_request]

    def classify(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> (n, 1000) probabilities."""
        return (self.logits(pictures) / self._temperature).softmax(dim=1)

    @torch.inference_mode()
    def logits(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> (n, 1000), before the temperature; classes in the order of `imagenet_labels`."""
        batch = torch.stack([self._transform(picture) for picture in pictures])
        logits: Tensor = self._network(batch.to(memory_format=torch.channels_last))
        return logits
