"""Reads the words in a picture: PP-OCRv6 (Baidu), the models that ship inside the rapidocr package, on onnxruntime.

It knows nothing of the question and nothing of layout beyond lines: two columns are read across, not down.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rapidocr
from numpy.typing import NDArray
from pydantic import Field
from rapidocr import RapidOCR
from rapidocr.utils.output import RapidOCROutput

from multimoe.config import ExpertSpec, Settings
from multimoe.errors import WeightsError
from multimoe.expert import Answer, BatchExpert, FindWeights, boxes_in
from multimoe.messages import ChatRequest
from multimoe.outputs import Box, Probability, Words

MODELS = {
    "Det.model_path": "PP-OCRv6_det_small.onnx",
    "Cls.model_path": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec.model_path": "PP-OCRv6_rec_small.onnx",
}
STEP = 32  # pixels: the engine rounds both sides to multiples of it
SLIMMEST = 16  # times as long as it is thick


class Options(Settings):
    """`min_score`: below it a line counts as not read; textures pass for characters up to about 0.75. `max_side`:
    pixels, larger pictures are shrunk to it before reading. `min_side`: pixels, lines are sought with the shorter side
    enlarged to it, which finds smaller print and costs in proportion to its square.
    """

    min_score: Probability = 0.8
    max_side: int = Field(default=1600, ge=STEP)
    min_side: int = Field(default=480, ge=STEP)


class Reader(BatchExpert):
    """It takes no weights: the models are part of the engine."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        options = self.options(Options)
        self._engine = RapidOCR(
            params={
                **_bundled_models(),
                "Global.text_score": options.min_score,
                "Global.max_side_len": options.max_side,
                "Det.limit_side_len": options.min_side,
                "Global.log_level": "error",
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        self.read(np.full((64, 64, 3), 255, np.uint8))  # the engine opens its models when first used: fail early

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(Words(boxes=boxes_in(request, self.read))) for request in requests]

    def read(self, pixels: NDArray[np.uint8]) -> list[Box]:
        """The lines of one picture, (height, width, 3) RGB, in reading order."""
        found = self._engine(np.ascontiguousarray(_thick(pixels)[:, :, ::-1]))  # it takes BGR
        if not isinstance(found, RapidOCROutput) or found.boxes is None:
            return []
        lines = zip(found.boxes, found.txts or (), found.scores or (), strict=True)
        last = np.array(pixels.shape[1::-1])  # what was added to a strip is not in the picture
        return reading_order([_box(corners.clip(0, last), text, score) for corners, text, score in lines])


def reading_order(boxes: Sequence[Box]) -> list[Box]:
    """Lines from top to bottom, each from left to right.

    A box continues the line above it when they share more than half the height of the lower of the two.
    """
    lines: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: (box.y0 + box.y1) / 2):
        if lines and _shared_height(lines[-1][0], box) > 0.5:
            lines[-1].append(box)
        else:
            lines.append([box])
    return [box for line in lines for box in sorted(line, key=lambda box: box.x0)]


def _thick(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A strip with its last row or column repeated. The engine shrinks a picture by its longer side, a strip to naught,
    and then enlarges it by the shorter one, a strip beyond measure.
    """
    least = -(-max(pixels.shape[:2]) // SLIMMEST)
    missing = [max(least - side, 0) for side in pixels.shape[:2]]
    return np.pad(pixels, [(0, missing[0]), (0, missing[1]), (0, 0)], "edge") if any(missing) else pixels


def _box(corners: NDArray[np.float32], text: str, score: float) -> Box:
    """The upright box around a line that may be slanted; `corners` (4, 2)."""
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Box(x0=x0, y0=y0, x1=x1, y1=y1, text=text, score=min(float(score), 1.0))


def _shared_height(one: Box, other: Box) -> float:
    shared = min(one.y1, other.y1) - max(one.y0, other.y0)
    return shared / max(min(one.y1 - one.y0, other.y1 - other.y0), 1.0)


def _bundled_models() -> dict[str, str]:
    """Named by path, because rapidocr offers to download what it thinks is missing."""
    folder = Path(rapidocr.__file__).parent / "models"
    missing = [name for name in MODELS.values() if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"rapidocr does not ship {', '.join(missing)}: install the version the lock file names")
    return {key: str(folder / name) for key, name in MODELS.items()}
