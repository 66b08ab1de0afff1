"""Fits the probe that tells pictures of printed words from other pictures, on pictures made on the spot.

    python benchmarks/fit_words_probe.py --catalog deploy/local.yaml

Words are rendered as pages, menus, receipts, screenshots and signs, then photographed (turned, shaded, blurred,
compressed); the rest are crops and cut-outs of the photographs that scikit-image and gradio carry, and plain shapes.
A linear logistic model on the image encoder's features is fitted by L-BFGS and written beside the image encoder,
with its accuracy on held-out photographs and fonts. ImageNet has no class for a page (they come out as "web site",
"menu", "envelope", "brass"), but its features hold what is needed.
"""

import argparse
import importlib.util
import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps
from torch.nn.functional import binary_cross_entropy_with_logits

from multimoe.config import load
from multimoe.encoder.image import WORDS_PROBE, Lite0
from multimoe.messages import ImagePart
from multimoe.pretrained import imagenet_labels
from multimoe.weights import Weights

PHOTOGRAPHS = {  # package -> pictures in it without printed words
    "skimage": (
        *("camera", "astronaut", "coffee", "chelsea", "rocket", "motorcycle_left", "coins", "moon", "grass"),
        *("gravel", "brick", "hubble_deep_field", "retina", "ihc", "cell", "horse", "clock_motion"),
    ),
    "gradio": ("cheetah", "cheetah1", "cheetah2", "groot", "lion", "tower"),
}
PER_CLASS = 700
WEIGHT_DECAY = 1e-4
FONTS = [path for path in sorted(Path("/usr/share/fonts/truetype").rglob("*.ttf")) if "Emoji" not in path.name]

Colour = tuple[int, int, int]


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed; pip install -e .[dev]")
    return Path(spec.origin).parent


def photographs() -> list[Image.Image]:
    found = []
    for name, stems in PHOTOGRAPHS.items():
        files = {path.stem: path for path in package(name).rglob("*") if path.suffix in {".png", ".jpg", ".jpeg"}}
        found += [Image.open(files[stem]).convert("RGB") for stem in stems if stem in files]
    return found


def crop(dice: random.Random, photo: Image.Image) -> Image.Image:
    share = dice.uniform(0.3, 1.0)
    width, height = int(photo.width * share), int(photo.height * share)
    x, y = dice.randint(0, photo.width - width), dice.randint(0, photo.height - height)
    piece = photo.crop((x, y, x + width, y + height)).resize((dice.randint(224, 480), dice.randint(224, 480)))
    piece = ImageOps.mirror(piece) if dice.random() < 0.5 else piece
    return ImageEnhance.Color(piece).enhance(0) if dice.random() < 0.15 else piece


def cut_out(dice: random.Random, photo: Image.Image) -> Image.Image:
    """A piece of a photograph on a plain ground, as in a catalogue or on a stamp."""
    piece = crop(dice, photo)
    mask = Image.new("L", piece.size, 0)
    draw, margin = ImageDraw.Draw(mask), dice.randint(10, 60)
    corners = [
        (
            piece.width * (0.5 + dice.uniform(0.25, 0.48) * np.cos(a)),
            piece.height * (0.5 + dice.uniform(0.25, 0.48) * np.sin(a)),
        )
        for a in np.linspace(0, 2 * np.pi, dice.randint(5, 14), endpoint=False)
    ]
    draw.ellipse((margin, margin, piece.width - margin, piece.height - margin), fill=255) if dice.random() < 0.5 else (
        draw.polygon(corners, fill=255)
    )
    ground = Image.new("RGB", piece.size, (255, 255, 255) if dice.random() < 0.7 else colour(dice))
    ground.paste(piece, mask=mask.filter(ImageFilter.GaussianBlur(1)))
    return ground


def shapes(dice: random.Random, _: Image.Image) -> Image.Image:
    """Plain drawings without a letter."""
    picture = Image.new("RGB", (320, 320), (255, 255, 255) if dice.random() < 0.7 else colour(dice))
    draw = ImageDraw.Draw(picture)
    for _shape in range(dice.randint(1, 6)):
        x, y, r = dice.randint(0, 260), dice.randint(0, 260), dice.randint(20, 160)
        kind = dice.choice([draw.ellipse, draw.rectangle])
        kind((x, y, x + r, y + r), fill=colour(dice) if dice.random() < 0.6 else None, outline=colour(dice), width=3)
        draw.line([(dice.randint(0, 320), dice.randint(0, 320)) for _ in range(3)], fill=colour(dice), width=2)
    return picture


def colour(dice: random.Random) -> Colour:
    return dice.randint(0, 255), dice.randint(0, 255), dice.randint(0, 255)


def inks(dice: random.Random) -> tuple[Colour, Colour]:
    """Ground and ink that can be told apart."""
    if dice.random() < 0.5:
        return (255, 255, 255), (0, 0, 0)
    while True:
        ground, ink = colour(dice), colour(dice)
        if abs(sum(ground) - sum(ink)) > 300:
            return ground, ink


def words(dice: random.Random, count: int) -> str:
    names = [name for _, names in VOCABULARY for name in names.split(", ")]
    picked = [dice.choice(names) if dice.random() < 0.8 else str(dice.randint(1, 9999)) for _ in range(count)]
    return " ".join(picked) if dice.random() < 0.8 else " ".join(picked).upper()


def font(dice: random.Random, size: int, fonts: list[Path]) -> ImageFont.FreeTypeFont:
    found = ImageFont.truetype(str(dice.choice(fonts)), size) if fonts else ImageFont.load_default(size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise SystemExit("Pillow was built without FreeType; install the wheel")
    return found


def page(dice: random.Random, _: Image.Image, fonts: list[Path]) -> Image.Image:
    """Paragraphs, a menu, a receipt or a window of text."""
    ground, ink = inks(dice)
    picture = Image.new("RGB", (dice.randint(280, 640), dice.randint(280, 640)), ground)
    draw, size = ImageDraw.Draw(picture), dice.randint(10, 30)
    face, y = font(dice, size, fonts), dice.randint(5, 40)
    columns = max(8, int(picture.width / size * 1.9))
    if dice.random() < 0.3:  # a title bar or a frame
        draw.rectangle((0, 0, picture.width, y + size), fill=colour(dice))
    while y < picture.height * dice.uniform(0.3, 1.0):
        for line in textwrap.wrap(words(dice, dice.randint(1, 12)), columns):
            x = dice.choice([10, 10, 10, picture.width // 4])
            draw.text((x, y), line, fill=ink, font=face)
            if dice.random() < 0.15:
                draw.text((picture.width - 4 * size, y), f"{dice.uniform(0, 99):.2f}", fill=ink, font=face)
            y += int(size * dice.uniform(1.1, 1.6))
        y += dice.randint(0, size)
    return picture


def sign(dice: random.Random, photo: Image.Image, fonts: list[Path]) -> Image.Image:
    """A few large words, alone or on a board in a photograph."""
    ground, ink = inks(dice)
    board = Image.new("RGB", (dice.randint(200, 420), dice.randint(120, 320)), ground)
    lines = textwrap.wrap(words(dice, dice.randint(1, 5)), 14)[:5]
    size = max(16, min(board.height // (len(lines) + 1), int(board.width / max(map(len, lines)) * 1.6)))
    draw = ImageDraw.Draw(board)
    for i, line in enumerate(lines):
        draw.text((12, 8 + i * size * 1.15), line, fill=ink, font=font(dice, size, fonts))
    if dice.random() < 0.3:
        return board
    scene = crop(dice, photo)
    share = dice.uniform(0.6, 0.95)
    board = board.resize((int(scene.width * share), int(scene.height * share)))
    turned = board.convert("RGBA").rotate(dice.uniform(-10, 10), expand=True, resample=Image.Resampling.BICUBIC)
    scene.paste(turned, ((scene.width - turned.width) // 2, (scene.height - turned.height) // 2), turned)
    return scene


def photographed(dice: random.Random, picture: Image.Image) -> Image.Image:
    """What a camera and a file format do to it; the same for both classes."""
    if dice.random() < 0.3:
        picture = picture.rotate(dice.uniform(-8, 8), resample=Image.Resampling.BICUBIC, fillcolor=colour(dice))
    if dice.random() < 0.4:
        shade = np.linspace(dice.uniform(0.5, 1), dice.uniform(0.5, 1), picture.width)[None, :, None]
        picture = Image.fromarray((np.asarray(picture) * shade).astype(np.uint8))
    if dice.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(dice.uniform(0.3, 1.5)))
    if dice.random() < 0.3:
        noise = np.random.default_rng(dice.randint(0, 2**31)).normal(0, dice.uniform(2, 14), (*picture.size[::-1], 3))
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    return picture


VOCABULARY = imagenet_labels()
Maker = Callable[[random.Random, Image.Image], Image.Image]


def dataset(
    dice: random.Random, photos: list[Image.Image], fonts: list[Path], count: int
) -> tuple[list[Image.Image], list[int]]:
    def written(maker: Callable[[random.Random, Image.Image, list[Path]], Image.Image]) -> Maker:
        return lambda rolled, photo: maker(rolled, photo, fonts)

    makers: dict[int, list[Maker]] = {
        1: [written(page), written(page), written(sign)],
        0: [crop, crop, crop, cut_out, cut_out, shapes],
    }
    pictures, truth = [], []
    for i in range(2 * count):
        label = i % 2
        pictures.append(photographed(dice, dice.choice(makers[label])(dice, dice.choice(photos))))
        truth.append(label)
    return pictures, truth


def fit(features: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(d,) weights and () bias of a logistic model with weight decay."""
    weight = torch.zeros(features.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimiser: Any = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = binary_cross_entropy_with_logits(features @ weight + bias, truth) + WEIGHT_DECAY * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--catalog", type=Path, default=Path("deploy/local.yaml"))
    catalog = load(arguments.parse_args().catalog)
    seer = Lite0(Weights(catalog.weights).find(catalog.gate.encoders["image"].weights["model"]))

    def features(pictures: list[Image.Image]) -> torch.Tensor:
        pieces = [seer.see([ImagePart(np.asarray(picture))])[0] for picture in pictures]
        return torch.from_numpy(np.concatenate(pieces))

    photos = photographs()
    half, half_fonts = photos[::2], FONTS[::2]
    seen, truth = dataset(random.Random(0), half, half_fonts, PER_CLASS // 2)
    unseen, answer = dataset(random.Random(1), photos[1::2], FONTS[1::2], PER_CLASS // 2)
    x, y = features(seen), torch.tensor(truth, dtype=torch.float32)
    x_out, y_out = features(unseen), torch.tensor(answer, dtype=torch.float32)
    weight, bias = fit(x, y)
    accuracy = (((x_out @ weight + bias) > 0) == (y_out > 0.5)).float().mean()
    print(f"accuracy on other photographs and fonts: {accuracy:.3f}, n = {len(y_out)}")
    weight, bias = fit(torch.cat([x, x_out]), torch.cat([y, y_out]))
    safetensors.torch.save_file({"weight": weight, "bias": bias}, WORDS_PROBE)


if __name__ == "__main__":
    main()
