"""Nine things to try. Their media come with Gradio or are drawn on the spot; a missing file drops its example."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gradio
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image, ImageDraw, ImageFont

MEDIA = Path(gradio.__file__).parent / "media_assets"
SIGN = ("HARBOUR CAFE", "Open daily 8 to 17", "Soup of the day: leek")
SIGN_NAME = "sign.png"
THUMB_SIDE = 128  # pixels

Kind = Literal["Words", "Pictures", "Sounds"]


@dataclass(frozen=True)
class Example:
    """`media` is a path below Gradio's media, `SIGN_NAME` for the drawn sign, or empty."""

    kind: Kind
    text: str
    title: str
    media: str = ""

    @property
    def available(self) -> bool:
        return self.media in ("", SIGN_NAME) or (MEDIA / self.media).is_file()

    def files(self) -> list[str]:
        """Its file, put where Gradio may serve it from; again each time, because that is a cache."""
        return [save_bytes_to_cache(self._bytes(), Path(self.media).name, get_upload_folder())] if self.media else []

    def thumbnail(self) -> str:
        """A small JPEG as a data: URL; empty where there is nothing to see."""
        if self.kind != "Pictures":
            return ""
        with Image.open(io.BytesIO(self._bytes())) as picture:
            small = picture.convert("RGB")
        small.thumbnail((THUMB_SIDE * 2, THUMB_SIDE))
        data = io.BytesIO()
        small.save(data, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"

    def _bytes(self) -> bytes:
        return sign() if self.media == SIGN_NAME else (MEDIA / self.media).read_bytes()


EXAMPLES = (
    Example("Words", "Why is the sky blue? Explain it to a child in three sentences.", "Why is the sky blue?"),
    Example("Words", "Write a haiku about rain on a tin roof.", "A haiku about rain"),
    Example("Words", "The battery died after a day, but the people at the shop were lovely.", "How does this feel?"),
    Example("Pictures", "", "What animal is this?", "images/cheetah.jpg"),
    Example("Pictures", "What is this building?", "What is this building?", "images/tower.jpg"),
    Example("Pictures", "Read the words.", "Read the words", SIGN_NAME),
    Example("Sounds", "", "What is said here?", "audio/cate_blanch.mp3"),
    Example("Sounds", "Which notes are played?", "Which notes are played?", "audio/sax.wav"),
    Example("Sounds", "", "Speech or music?", "audio/cantina.wav"),
)


def available() -> tuple[Example, ...]:
    return tuple(example for example in EXAMPLES if example.available)


def sign() -> bytes:
    """A cafe's sign as PNG, for the reader of printed words."""
    picture = Image.new("RGB", (720, 400), "#F3E9D2")
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((24, 24, 696, 376), 24, outline="#24443B", width=6)
    for line, (text, size, top) in enumerate(zip(SIGN, (72, 44, 44), (70, 190, 270), strict=True)):
        font = ImageFont.load_default(size)
        draw.text((360, top), text, "#24443B" if line == 0 else "#3A3A36", font, anchor="ma")
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
