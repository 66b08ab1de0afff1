"""Golden requests: what a gate must be able to route whatever its users' ratings say, from a file that no user feeds.

    - text: Is this review positive or negative? I loved it.
      experts: [sentiment]
    - image: a-dog.jpg        # or audio; paths are relative to the file
      experts: [vision-fast, vision-careful]

It knows no encoder: embedding is handed to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field

from multimoe.config import Catalog, Limits, Settings, validate
from multimoe.embedding import Embedding
from multimoe.errors import BadConfig
from multimoe.examples import Example
from multimoe.media import decode_audio, decode_image
from multimoe.messages import MODALITIES, ChatRequest, Message, Modality, Part, TextPart

SAME = 0.99  # mean cosine of features and concepts, from which on a logged request is taken for a golden one


class GoldenRequest(Settings):
    """One of `experts` must be among the best for it."""

    text: str = ""
    image: Path | None = None
    audio: Path | None = None
    experts: tuple[str, ...] = Field(min_length=1)

    @property
    def name(self) -> str:
        """What a person knows it by."""
        return self.text or str((self.image or self.audio or Path("nothing")).name)


class _Requests(Settings):
    requests: tuple[GoldenRequest, ...]


@dataclass(frozen=True, eq=False)
class Golden:
    name: str
    embedding: Embedding
    experts: tuple[str, ...]


def load(path: Path) -> tuple[GoldenRequest, ...]:
    """The file's requests. Raises BadConfig, a line per mistake."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"cannot read the golden requests {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not YAML: {error}") from error
    return validate(_Requests, {"requests": tree}, str(path)).requests


def golden_of(catalog: Catalog, embed: Callable[[ChatRequest], Embedding]) -> tuple[Golden, ...]:
    """The catalog's golden requests; none where it names no file of them. Raises BadConfig."""
    path = catalog.gate.promotion.golden
    return embedded(load(path), path.parent, catalog.limits, embed) if path else ()


def embedded(
    requests: Sequence[GoldenRequest], folder: Path, limits: Limits, embed: Callable[[ChatRequest], Embedding]
) -> tuple[Golden, ...]:
    """The requests as vectors; media are read from `folder`. Raises BadConfig for a file that is not there."""
    return tuple(Golden(r.name, embed(_chat(r, folder, limits)), r.experts) for r in requests)


def kept_apart(examples: Sequence[Example], golden: Sequence[Golden]) -> list[Example]:
    """Without ratings of golden requests: what is learned from proves nothing."""
    if not golden:
        return list(examples)
    logged, kept = [example.embedding for example in examples], [g.embedding for g in golden]
    same = np.all([_same(logged, kept, m) for m in MODALITIES], axis=0)  # (examples, golden)
    return [example for example, leaked in zip(examples, same.any(axis=1), strict=True) if not leaked]


def _chat(request: GoldenRequest, folder: Path, limits: Limits) -> ChatRequest:
    parts: list[Part] = [TextPart(request.text)] if request.text else []
    if request.image:
        parts.append(decode_image(_read(folder / request.image), limits))
    if request.audio:
        parts.append(decode_audio(_read(folder / request.audio), limits))
    return ChatRequest(id="golden", messages=(Message("user", tuple(parts)),))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadConfig(f"cannot read {path}, which a golden request names: {error.strerror}") from error


def _same(logged: Sequence[Embedding], golden: Sequence[Embedding], m: Modality) -> NDArray[np.bool_]:
    """Which have one modality as good as equal, or both lack it, (logged, golden)."""
    here, there = (np.array([m in one.vectors for one in many]) for many in (logged, golden))
    same: NDArray[np.bool_] = ~here[:, None] & ~there
    both = np.ix_(here, there)
    same[both] = (
        (_directions(logged, m) @ _directions(golden, m).T >= 2 * SAME) if here.any() and there.any() else False
    )
    return same


def _directions(embeddings: Sequence[Embedding], m: Modality) -> NDArray[np.float32]:
    """Features and concept, each of length 1, side by side, of those that have the modality: (k, d + CONCEPT)."""
    found = [embedding.vectors[m] for embedding in embeddings if m in embedding.vectors]
    parts = [np.stack([v.features for v in found]), np.stack([v.concept for v in found])]
    return np.hstack([part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9) for part in parts])
