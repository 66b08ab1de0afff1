"""Finds faces in a picture: MTCNN (Zhang, Zhang, Li and Qiao, "Joint Face Detection and Alignment Using Multitask
Cascaded Convolutional Networks", IEEE SPL 2016) with the weights of the facenet-pytorch package.

Three small nets, each asking the next only about what it lets pass: the first scans the picture at many sizes, the
second and third look at its candidates at 24 and 48 pixels. It says where a face is, never whose.

Boxes are (n, 4) float tensors of corners x0, y0, x1, y1 in pixels of the picture.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import nms  # type: ignore[import-untyped]  # it ships no types

from multimoe.config import ExpertSpec, Settings
from multimoe.expert import Answer, BatchExpert, FindWeights, boxes_in
from multimoe.messages import ChatRequest
from multimoe.outputs import Box, Objects, Probability

WINDOW = 12  # pixels: the side of the face the first net knows
STRIDE = 2  # pixels between two of its windows
SHRINK = 0.709  # from one size of the picture to the next: about half its area
HEADS = {  # of the published state dicts
    **{"conv4_1": "face", "dense5_1": "face", "dense6_1": "face"},
    **{"conv4_2": "shift", "dense5_2": "shift", "dense6_2": "shift"},
}
LANDMARKS = "dense6_3"


class Options(Settings):
    """`short_side`: pixels to which larger pictures are shrunk; `min_face`: pixels of that, the smallest face looked
    for; `thresholds`: the probability each net must give.
    """

    short_side: int = Field(default=640, ge=WINDOW)
    min_face: float = Field(default=20, ge=WINDOW)
    thresholds: tuple[Probability, Probability, Probability] = (0.6, 0.7, 0.9)


class FaceFinder(BatchExpert):
    """Weights: `pnet`, `rnet` and `onet`, one for each net."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        torch.set_num_threads(1)
        options = self.options(Options)
        self._short_side, self._min_face, self._thresholds = options.short_side, options.min_face, options.thresholds
        scan = ((3, 10, 3, 2), (10, 16, 3, 0), (16, 32, 3, 0))
        look = ((3, 28, 3, 3), (28, 48, 3, 3), (48, 64, 2, 0))
        judge = ((3, 32, 3, 3), (32, 64, 3, 3), (64, 64, 3, 2), (64, 128, 2, 0))
        self._scan = _load(_net(scan), self.weight("pnet"))
        self._look = _load(_net(look, dense=(576, 128)), self.weight("rnet"))
        self._judge = _load(_net(judge, dense=(1152, 256)), self.weight("onet"))

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(Objects(boxes=boxes_in(request, self.find))) for request in requests]

    def find(self, pixels: NDArray[np.uint8]) -> list[Box]:
        """The faces of one picture, (height, width, 3) RGB, surest first."""
        height, width = pixels.shape[:2]
        ratio = max(min(height, width) / self._short_side, 1.0)
        if ratio > 1:
            shrunk = max(round(width / ratio), 1), max(round(height / ratio), 1)
            pixels = np.asarray(Image.fromarray(pixels).resize(shrunk, Image.Resampling.BOX))
        boxes, scores = self._detect(pixels)
        boxes = (boxes * ratio).clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        return [
            Box(x0=x0, y0=y0, x1=x1, y1=y1, text="face", score=score)
            for (x0, y0, x1, y1), score in zip(boxes.tolist(), scores.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def _detect(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) and their scores (n,)."""
        picture = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]  # (1, 3, height, width)
        picture = (picture - 127.5) / 128
        boxes = self._propose(picture)
        boxes, scores, shifts = _examine(self._look, picture, boxes, 24, self._thresholds[1])
        kept = nms(boxes, scores, 0.7)
        boxes = _square(_moved(boxes[kept], shifts[kept], extent=1))
        boxes, scores, shifts = _examine(self._judge, picture, boxes, 48, self._thresholds[2])
        boxes = _moved(boxes, shifts, extent=1)
        surest = _without_nested(boxes, scores)
        return boxes[surest], scores[surest]

    def _propose(self, picture: Tensor) -> Tensor:
        """Square candidates from every size of the picture, (n, 4)."""
        height, width = picture.shape[2:]
        scale = WINDOW / self._min_face
        boxes, scores, shifts = [torch.empty(0, 4)], [torch.empty(0)], [torch.empty(0, 4)]
        while min(height, width) * scale >= WINDOW:
            shrunk = interpolate(picture, (int(height * scale + 1), int(width * scale + 1)), mode="area")
            face, shift = self._scan(shrunk)
            found = _windows(face, shift, scale, self._thresholds[0])
            kept = nms(found[0], found[1], 0.5)
            for all_sizes, here in zip((boxes, scores, shifts), found, strict=True):
                all_sizes.append(here[kept])
            scale *= SHRINK
        candidates, sure, moves = torch.cat(boxes), torch.cat(scores), torch.cat(shifts)
        kept = nms(candidates, sure, 0.7)
        return _square(_moved(candidates[kept], moves[kept], extent=0))


class Net(nn.Module):
    """A trunk and two heads: whether it is a face, and by what share of its size each edge of the box is off."""

    def __init__(self, trunk: nn.Sequential, face: nn.Module, shift: nn.Module) -> None:
        super().__init__()
        self.trunk, self.face, self.shift = trunk, face, shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, h, w) -> probability (n, ...) and shift (n, 4, ...)."""
        features = self.trunk(x)
        return self.face(features).softmax(dim=1)[:, 1], self.shift(features)


class Flat(nn.Module):
    """The weights come from Caffe, by way of MATLAB: width before height before channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1).flatten(1)


def _net(convolutions: Sequence[tuple[int, int, int, int]], dense: tuple[int, int] | None = None) -> Net:
    """`convolutions`: channels before and after, kernel, pooling window (0: none). `dense`: features before and after.

    Layers keep their published names, so that the published weights load strictly.
    """
    trunk = nn.Sequential()
    for number, (before, after, kernel, pool) in enumerate(convolutions, start=1):
        trunk.add_module(f"conv{number}", nn.Conv2d(before, after, kernel))
        trunk.add_module(f"prelu{number}", nn.PReLU(after))
        if pool:
            trunk.add_module(f"pool{number}", nn.MaxPool2d(pool, 2, ceil_mode=True))
    if dense is None:  # the first net slides over pictures of any size
        return Net(trunk, nn.Conv2d(after, 2, 1), nn.Conv2d(after, 4, 1))
    number, (before, after) = number + 1, dense
    trunk.add_module("flat", Flat())
    trunk.add_module(f"dense{number}", nn.Linear(before, after))
    trunk.add_module(f"prelu{number}", nn.PReLU(after))
    return Net(trunk, nn.Linear(after, 2), nn.Linear(after, 4))


def _load(net: Net, path: Path) -> Net:
    state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  # pinned by hash, tensors alone
    renamed = {}
    for name, value in state.items():
        layer, _, leaf = name.partition(".")
        if layer != LANDMARKS:
            renamed[f"{HEADS.get(layer, f'trunk.{layer}')}.{leaf}"] = value
    net.load_state_dict(renamed)
    return net.eval()


def _windows(face: Tensor, shift: Tensor, scale: float, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """What the first net saw in a picture shrunk by `scale`: boxes (n, 4), scores (n,), shifts (n, 4)."""
    rows, columns = torch.nonzero(face[0] >= least, as_tuple=True)
    corner = torch.stack((columns, rows), dim=1) * STRIDE
    boxes = torch.cat((((corner + 1) / scale).floor(), ((corner + WINDOW) / scale).floor()), dim=1)
    return boxes, face[0, rows, columns], shift[0, :, rows, columns].T


def _examine(net: Net, picture: Tensor, boxes: Tensor, side: int, least: float) -> tuple[Tensor, Tensor, Tensor]:
    """What `net` lets pass of the candidates, each seen at `side` pixels: boxes (n, 4), scores (n,), shifts (n, 4)."""
    boxes, crops = _crops(picture, boxes, side)
    parts = [net(part) for part in torch.split(crops, 512)]
    scores, shifts = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    passed = scores > least
    return boxes[passed], scores[passed], shifts[passed]


def _crops(picture: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Boxes that lie on the picture, and what is in them: (n, 4) and (n, 3, side, side)."""
    height, width = picture.shape[2:]
    edges = boxes.trunc().int()  # counted from 1, both ends inside
    x0, y0 = edges[:, 0].clamp(min=1) - 1, edges[:, 1].clamp(min=1) - 1
    x1, y1 = edges[:, 2].clamp(max=width), edges[:, 3].clamp(max=height)
    inside = (x1 > x0) & (y1 > y0)
    corners = torch.stack((x0, y0, x1, y1), dim=1)[inside].tolist()
    crops = [interpolate(picture[:, :, y0:y1, x0:x1], (side, side), mode="area") for x0, y0, x1, y1 in corners]
    return boxes[inside], torch.cat([torch.empty(0, 3, side, side), *crops])


def _moved(boxes: Tensor, shifts: Tensor, extent: int) -> Tensor:
    """The later nets count a box's last pixel into its size (`extent` 1), the first does not."""
    size = boxes[:, 2:] - boxes[:, :2] + extent  # (n, 2)
    return boxes + shifts * size.repeat(1, 2)


def _square(boxes: Tensor) -> Tensor:
    """The smallest square around the same middle."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) / 2
    return torch.cat((middle - half, middle + half), dim=1)


def _without_nested(boxes: Tensor, scores: Tensor) -> list[int]:
    """Surest first, dropping a box when over 0.7 of the smaller of it and a surer one is shared."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low + 1).clamp(min=0).prod(dim=2)  # (n, n)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    nested = shared / torch.minimum(area[:, None], area[None, :]) > 0.7
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if not any(nested[index, other] for other in kept):
            kept.append(index)
    return kept
