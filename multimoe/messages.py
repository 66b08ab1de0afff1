"""A request as the mixture sees it: chat messages of typed parts, media already checked and decoded.

Wire formats (OpenAI JSON, data: URLs) stay in the gateway; bytes become arrays in `multimoe.media`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Modality = Literal["text", "image", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")
Role = Literal["system", "user", "assistant"]

SAMPLE_RATE = 16_000  # Hz, of every AudioPart
LONGEST_SIDE = 2048  # pixels, of every ImagePart


@dataclass(frozen=True)
class TextPart:
    text: str
    modality: Literal["text"] = "text"


@dataclass(frozen=True, eq=False)
class ImagePart:
    """`pixels` is RGB, (height, width, 3) uint8, upright (EXIF rotation applied), `LONGEST_SIDE` at most."""

    pixels: NDArray[np.uint8]
    modality: Literal["image"] = "image"


@dataclass(frozen=True, eq=False)
class AudioPart:
    """`samples` is mono at `SAMPLE_RATE`, (n,) float32 in [-1, 1], finite."""

    samples: NDArray[np.float32]
    modality: Literal["audio"] = "audio"

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


Part = TextPart | ImagePart | AudioPart


@dataclass(frozen=True, eq=False)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart)).strip()


@dataclass(frozen=True, eq=False)
class ChatRequest:
    """One question with its history. The last user message is what is asked; gate and perception read only that.

    `via` are the gateways it has come through, this one last: an expert that is a gateway itself is told of them.
    `seconds` is how long an answer is waited for from now on; what comes later nobody hears.
    """

    id: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    via: tuple[str, ...] = ()
    seconds: float = math.inf

    @property
    def question(self) -> Message:
        """The last user message; an empty one where there is none."""
        return next((m for m in reversed(self.messages) if m.role == "user"), Message("user", ()))

    @property
    def text(self) -> str:
        return self.question.text

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.question.parts if isinstance(part, ImagePart))

    @property
    def audios(self) -> tuple[AudioPart, ...]:
        return tuple(part for part in self.question.parts if isinstance(part, AudioPart))

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the question consists of; blank text does not count."""
        present: Iterator[Modality] = (p.modality for p in self.question.parts if not isinstance(p, TextPart))
        return frozenset(present) | (frozenset(("text",)) if self.text else frozenset())

    def asking(self, text: str, keep: frozenset[Modality] = frozenset()) -> "ChatRequest":
        """The same conversation with the question replaced by `text` and, of its media, those in `keep`."""
        asked = self.question
        media = tuple(part for part in asked.parts if part.modality in keep - {"text"})
        kept = tuple(m if m is not asked else Message("user", (TextPart(text), *media)) for m in self.messages)
        return replace(self, messages=kept)
