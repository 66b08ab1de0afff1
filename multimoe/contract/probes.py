"""What an expert is asked in its examination: for each modality two ordinary inputs, and inputs at the edge of sense.

They are made here, so that an examination needs no files; who has better pictures and recordings passes those.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from multimoe.config import Card
from multimoe.messages import SAMPLE_RATE, AudioPart, ImagePart, Modality, Part, TextPart

STORY = "Write a very long story about the sea."
LONGEST = 100_000  # characters: what the gateway lets through by default
_QUESTIONS = ("What is the capital of France?", "I hated every minute of this terrible film.")


@dataclass(frozen=True)
class Probes:
    """Two inputs of each modality, to be answered differently: only then can an expert be caught mixing them up."""

    text: tuple[TextPart, TextPart]
    image: tuple[ImagePart, ImagePart]
    audio: tuple[AudioPart, AudioPart]

    def of(self, modality: Modality) -> tuple[Part, Part]:
        by_modality: dict[Modality, tuple[Part, Part]] = {"text": self.text, "image": self.image, "audio": self.audio}
        return by_modality[modality]


def probes_for(card: Card) -> Probes:
    """The first and last question of the card, a page and a drawing, a melody and a sweep."""
    asked = list(dict.fromkeys((*card.text[:1], *card.text[-1:], *_QUESTIONS)))
    return Probes(
        (TextPart(asked[0]), TextPart(asked[1])),
        (ImagePart(_page()), ImagePart(_drawing())),
        (AudioPart(_melody()), AudioPart(_sweep())),
    )


def edges(modality: Modality) -> Iterator[tuple[str, Part]]:
    """Inputs that the gateway lets through and hardly anybody thinks of, each with its name."""
    if modality == "text":
        yield "blank text", TextPart(" \n\t ")
        yield "a text of one character", TextPart("?")
        yield "emoji and several scripts", TextPart("👩🏽‍🚀🏳️‍🌈 ñ 漢字 العربية עברית ไทย ﷽ e\u0301\u0301\u0301")
        yield "control characters", TextPart("a\x01\x08\x1b[31m\x7f\x85\u2028\u202e\ufeff\ufffd b\r\n")
        yield "half-open markup", TextPart('``` """ <|im_end|> </s> {{ % {0} \\u12 [INST')
        yield f"a text of {LONGEST:,} characters", TextPart("a wave and " * (LONGEST // 11))
        yield "a word of 20,000 characters", TextPart("a" * 20_000)
    elif modality == "image":
        yield "a picture of one pixel", ImagePart(np.zeros((1, 1, 3), np.uint8))
        yield "a picture one pixel high", ImagePart(np.full((1, 2048, 3), 128, np.uint8))
        yield "a picture one pixel wide", ImagePart(np.full((2048, 1, 3), 128, np.uint8))
        yield "a white picture", ImagePart(np.full((64, 64, 3), 255, np.uint8))
    else:
        yield "0.02 s of silence", AudioPart(np.zeros(SAMPLE_RATE // 50, np.float32))
        yield "0.1 s of silence", AudioPart(np.zeros(SAMPLE_RATE // 10, np.float32))
        yield "sound at full scale", AudioPart(np.sign(_sweep()))


def _page() -> NDArray[np.uint8]:
    """(240, 320, 3): two lines of print."""
    page = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(page)
    draw.text((20, 60), "OPEN ALL NIGHT", fill="black", font=ImageFont.load_default(32))
    draw.text((20, 130), "coffee and cake", fill="black", font=ImageFont.load_default(32))
    return np.asarray(page)


def _drawing() -> NDArray[np.uint8]:
    """(200, 300, 3): a house on a green hill below a blue sky."""
    drawing = Image.new("RGB", (300, 200), (135, 190, 235))
    draw = ImageDraw.Draw(drawing)
    draw.ellipse((-60, 120, 360, 320), fill=(60, 140, 60))
    draw.rectangle((110, 80, 190, 150), fill=(180, 60, 40))
    draw.polygon(((100, 80), (200, 80), (150, 40)), fill=(90, 50, 30))
    draw.ellipse((230, 20, 270, 60), fill=(250, 220, 80))
    return np.asarray(drawing)


def _melody() -> NDArray[np.float32]:
    """1.5 s: three plucked notes, C4, E4 and G4."""
    time = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    notes = [np.sin(2 * np.pi * pitch * time) * np.exp(-4 * time) for pitch in (261.6, 329.6, 392.0)]
    return (0.5 * np.concatenate(notes)).astype(np.float32)


def _sweep() -> NDArray[np.float32]:
    """1 s, rising from 200 to 2,000 Hz."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return (0.4 * np.sin(2 * np.pi * (200 * time + 900 * time**2))).astype(np.float32)
