"""What the visitor brings: photographs and recordings out of an installed package, a sign, a spoken question."""

import importlib.util
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

ASSETS = Path(__file__).parents[1] / "assets"
GRADIO = Path(str(importlib.util.find_spec("gradio").origin)).parent / "media_assets"  # type: ignore[union-attr]  # a dependency

CHEETAH = GRADIO / "images/cheetah.jpg"
LION = GRADIO / "images/lion.jpg"
SPEECH = GRADIO / "audio/heath_ledger.mp3"  # "If you're good at something, never do it for free."
MUSIC = GRADIO / "audio/cantina.wav"
QUESTION = ASSETS / "question.ogg"  # "What is the capital of France?", spoken by espeak-ng

SIGN = ("FRESH COFFEE", "OPEN DAILY")


def photograph_of_sign(seed: int = 0) -> bytes:
    """A sign as a telephone would take it: tilted, unevenly lit, a little out of focus, noisy; JPEG."""
    sign = Image.new("RGB", (900, 420), (246, 240, 220))
    draw = ImageDraw.Draw(sign)
    draw.rectangle((14, 14, 886, 406), outline=(120, 40, 30), width=8)
    for line, y in zip(SIGN, (130, 290), strict=True):
        draw.text((450, y), line, fill=(40, 30, 25), font=ImageFont.load_default(92), anchor="mm")
    corners = (-40, -70, -15, 480, 960, 455, 925, -30)  # of the sign that the photograph's corners show
    seen = sign.transform((900, 420), Image.Transform.QUAD, corners, Image.Resampling.BICUBIC, fillcolor=(96, 104, 110))
    blurred = np.asarray(seen.filter(ImageFilter.GaussianBlur(1.0)), np.float32)
    light = np.linspace(0.75, 1.05, blurred.shape[1], dtype=np.float32)[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 6, blurred.shape)
    photo = Image.fromarray(np.clip(blurred * light + noise, 0, 255).astype(np.uint8))
    data = io.BytesIO()
    photo.save(data, "JPEG", quality=80)
    return data.getvalue()
