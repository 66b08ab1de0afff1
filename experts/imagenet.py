"""Says what is in a photograph: EfficientNet-Lite (Tan and Le, ICML 2019; the Lite variants are TensorFlow's) over the
1,000 classes of ImageNet.

It knows animals, plants, food, vehicles, instruments and things about the house, and must always say one of them: a
likeliest label under about 0.3 usually means that none fits.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import ChatRequest
from multimoe.outputs import Label, Labels
from multimoe.pretrained import IMAGENET, efficientnet_lite, efficientnet_lite_transform, imagenet_labels


class ImageNetClassifier(BatchExpert):
    """Options: `variant` ("lite0", "lite1", "lite2"), from fast to careful; `temperature` (1.0), which divides the
    logits; `top` (20), how many labels to list.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        torch.set_num_threads(1)
        variant = spec.options.get("variant", "lite0")
        if variant not in ("lite0", "lite1", "lite2"):
            raise BadConfig(f"expert {spec.name!r}: variant {variant!r} is not one of lite0, lite1, lite2")
        self._temperature = float(spec.options.get("temperature", 1.0))
        self._top = int(spec.options.get("top", 20))
        self._transform = efficientnet_lite_transform(variant)
        self._network = efficientnet_lite(self.weight("model"), variant)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self._labels = [(wordnet, synonyms.split(",")[0]) for wordnet, synonyms in imagenet_labels()]

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """One forward pass for all pictures; several pictures of one request give the mean of their distributions."""
        pictures = [Image.fromarray(image.pixels) for request in requests for image in request.images]
        per_picture = self.classify(pictures)
        per_request = torch.split(per_picture, [len(request.images) for request in requests])
        return [Answer(self._named(probabilities.mean(dim=0))) for probabilities in per_request]

    @torch.inference_mode()
    def classify(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any size -> (n, 1000) probabilities."""
        batch = torch.stack([self._transform(picture) for picture in pictures])
        logits: Tensor = self._network(batch.to(memory_format=torch.channels_last))  # (n, 1000)
        return (logits / self._temperature).softmax(dim=1)

    def _named(self, probabilities: Tensor) -> Labels:
        top = probabilities.topk(self._top)
        return Labels(
            space=IMAGENET,
            labels=tuple(
                Label(name=self._labels[index][1], probability=min(probability, 1.0), id=self._labels[index][0])
                for probability, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ),
        )
