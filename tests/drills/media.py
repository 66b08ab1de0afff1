"""Files made to hurt whoever opens them, sent to a gateway that listens, and its decoders killed while others ask.

What is measured is the gateway's own process, through /proc; that of its children besides.
"""

import asyncio
import base64
import io
import json
import mmap
import random
import re
import signal
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import psutil
from api_world import World, png, said, served, until
from PIL import Image

from drills.row import Row, Scale
from gateway.reading.decoding import Decoders
from gateway.reading.fetch import Fetcher
from gateway.reading.schemas import ChatBody
from gateway.reading.wire import chat_request
from multimoe.config import Limits
from multimoe.errors import MultimoeError
from multimoe.media import LONGEST_SIDE, encode_wav
from multimoe.messages import AudioPart, ImagePart

MIB = 2**20
ALLOWED = 64  # MiB that the gateway may grow by for one file
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)).astype(np.float32)  # half a second of A4
LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|/home|/usr|/tmp|site-packages|Errno")


@dataclass(frozen=True)
class Bomb:
    name: str
    data: bytes
    statuses: tuple[int, ...]
    kind: str = "image"


# --- making them ---


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, bits: int = 1, rows: int | None = None, extra: bytes = b"") -> bytes:
    """A black PNG; of its picture only so many rows, where that is given."""
    packer, row = zlib.compressobj(9), bytes(1 + (width * bits + 7) // 8)
    many = max(1, MIB // len(row))
    body, left = b"", height if rows is None else rows
    while left > 0:
        body += packer.compress(row * min(many, left))
        left -= many
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    pieces = chunk(b"IHDR", header) + extra + chunk(b"IDAT", body + packer.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pieces


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gif_of(frames: int, canvas: tuple[int, int] = (2000, 2000), frame: tuple[int, int] | None = None) -> bytes:
    """Each frame as large as said, whatever the canvas says."""
    whole = bytearray(saved(Image.new("P", frame or canvas, 7), "GIF"))
    whole[6:10] = struct.pack("<HH", *canvas)
    start = whole.index(b",", 13)  # where header and palette end
    return bytes(whole[:start] + whole[start:-1] * frames + b";")


def webp_of(frames: int, side: int = 2000) -> bytes:
    still = saved(Image.new("RGB", (side, side), (9, 9, 9)), "WEBP", lossless=True, method=0)[12:]
    frame = bytes(6) + 2 * (side - 1).to_bytes(3, "little") + (100).to_bytes(3, "little") + b"\0" + still
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame + b"\0" * (len(frame) % 2)
    head = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + 2 * (side - 1).to_bytes(3, "little")
    body = b"WEBP" + head + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def apng_of(frames: int, side: int = 2000) -> bytes:
    data = zlib.compress(bytes(side * (1 + side // 8)), 9)
    pieces, number = chunk(b"acTL", struct.pack(">II", frames, 0)), 0
    control = struct.pack(">IIIIHHBB", side, side, 0, 0, 1, 10, 0, 0)
    for frame in range(frames):
        pieces += chunk(b"fcTL", struct.pack(">I", number) + control)
        number += 1
        if frame:
            pieces += chunk(b"fdAT", struct.pack(">I", number) + data)
            number += 1
        else:
            pieces += chunk(b"IDAT", data)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pieces + chunk(b"IEND", b"")


def text_bomb(kind: bytes, size: int = 64 * MIB) -> bytes:
    packed = zlib.compress(bytes(size), 9)
    return png_of(8, 8, extra=chunk(kind, b"bomb\0\0" + packed))


def exif_loop() -> bytes:
    """A JPEG whose EXIF directory says that the next one is itself, as is the one inside it."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 8)
    exif = b"Exif\0\0" + tiff
    plain = saved(Image.new("RGB", (8, 8)), "JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]


def huge_jpeg() -> bytes:
    """Says that it is 65,500 pixels a side, and ends soon after."""
    plain = bytearray(saved(Image.new("RGB", (64, 64)), "JPEG"))
    at = plain.index(b"\xff\xc0") + 5
    plain[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(plain[:-8])


def silence(container: str, codec: str, seconds: float, rate: int) -> bytes:
    options = {"b": "6k", "frame_duration": "60", "compression_level": "0"} if codec == "libopus" else {}
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono", options=options)
        stream.codec_context.open()
        size, form = stream.codec_context.frame_size or 4096, stream.codec_context.format.name
        frame = av.AudioFrame(form, "mono", size)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for start in range(0, int(seconds * rate), size):
            frame.sample_rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def wav_saying(tag: int = 1, channels: int = 1, rate: int = 16_000, align: int = 2, size: int | None = None) -> bytes:
    data = (TONE * 32_767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", tag, channels, rate, (rate * align) % 2**32, align, 4 if tag == 17 else 16)
    length = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", length) + data
    return b"RIFF" + struct.pack("<I", (len(body)) % 2**32) + body


def floats(values: np.ndarray) -> bytes:
    data = values.astype("<f4").tobytes()
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32) + b"data"
    body += struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def zipped() -> bytes:
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("a.png", bytes(MIB), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def not_taken() -> Iterator[Bomb]:
    small = Image.new("RGB", (8, 8))
    for kind in ("TIFF", "ICO", "JPEG2000", "BMP", "PCX", "TGA", "EPS", "PDF"):
        yield Bomb(kind, saved(small, kind), (415,))
    heads = {
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3),
        "FITS": b"SIMPLE  =                    T",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(16),
        "AVIF": b"\0\0\0\x18ftypavif" + bytes(16),
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
        "an .m3u8 playlist": b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\nfile:///etc/passwd\n",
    }
    for name, head in heads.items():
        yield Bomb(name, head, (415,))
    yield Bomb("ZIP called .png", zipped(), (415,))


@cache
def bombs(scale: Scale) -> tuple[Bomb, ...]:
    """Built before anything is measured."""
    long = scale == "long"
    flac = silence("flac", "flac", 6 * 3600 if long else 700, 4_000)
    made = [
        Bomb("PNG 9,400²", png_of(9_400, 9_400), (413,)),
        Bomb("PNG 13,000²", png_of(13_000, 13_000), (413,)),
        Bomb("PNG 50,000²", png_of(50_000, 50_000, rows=None if long else 9), (413,)),
        Bomb("PNG 2³¹-1²", png_of(2**31 - 1, 2**31 - 1, rows=0), (413,)),
        Bomb("GIF, 500 frames", gif_of(500), (200,)),
        Bomb("WebP, 500 frames", webp_of(500), (200,)),
        Bomb("APNG, 500 frames", apng_of(500), (200,)),
        Bomb("GIF, frame over canvas", gif_of(1, (10, 10), (9_000, 9_000)), (413,)),
        Bomb("PNG, 64 MiB zTXt", text_bomb(b"zTXt"), (413,)),
        Bomb("PNG, 64 MiB iCCP", text_bomb(b"iCCP"), (413,)),
        Bomb("JPEG 65,500², cut", huge_jpeg(), (413,)),
        Bomb("JPEG, EXIF loop", exif_loop(), (200,)),
        *not_taken(),
        Bomb("FLAC, hours of silence", flac, (413,), "audio"),
        Bomb("FLAC, length hidden", hidden(flac), (413,), "audio"),
        Bomb("Opus, hours of silence", silence("ogg", "libopus", 2 * 3600 if long else 650, 8_000), (413,), "audio"),
        Bomb("WAV that says 24 h", wav_saying(size=24 * 3600 * 32_000 % 2**32), (200,), "audio"),
        Bomb("WAV that says 4 GiB", wav_saying(size=0xFFFFFFF0), (200,), "audio"),
        Bomb("WAV, no samples", encode_wav(TONE[:0]), (422,), "audio"),
        Bomb("WAV, 0 Hz", wav_saying(rate=0), (422,), "audio"),
        Bomb("WAV, 2³¹ Hz", wav_saying(rate=2**31), (422,), "audio"),
        Bomb("WAV, 65,535 channels", wav_saying(channels=65_535), (422,), "audio"),
        Bomb("WAV, IMA ADPCM 50,000²", wav_saying(17, 50_000, align=50_000), (415, 422), "audio"),
    ]
    return tuple(made)


def hidden(flac: bytes) -> bytes:
    """Without the number of samples in its header."""
    changed = bytearray(flac)
    changed[21] &= 0xF0
    changed[22:26] = bytes(4)
    return bytes(changed)


@cache
def odd_files() -> tuple[Bomb, ...]:
    noise = Image.effect_noise((60, 40), 60).convert("RGB")
    wide = np.arange(60 * 40, dtype=np.uint16).reshape(40, 60) * 27
    exif = Image.Exif()
    exif[0x0112] = 6
    good = [
        Bomb("CMYK", saved(noise.convert("CMYK"), "JPEG"), (200,)),
        Bomb("16 bits", saved(Image.fromarray(wide), "PNG"), (200,)),
        Bomb("palette and alpha", saved(noise.quantize(16), "PNG", transparency=bytes(range(0, 160, 10))), (200,)),
        Bomb("grey and alpha", saved(noise.convert("LA"), "PNG"), (200,)),
        Bomb("1 bit", saved(noise.convert("1"), "PNG"), (200,)),
        Bomb("turned by EXIF", saved(noise, "JPEG", exif=exif), (200,)),
        *(Bomb(f"animated {k}", saved(noise, k, save_all=True, append_images=[noise] * 3), (200,)) for k in ANIMATED),
        Bomb("1 pixel", png_of(1, 1), (200,)),
        Bomb("GIF that is JavaScript", b"GIF89a" + saved(noise, "GIF")[6:] + b"/*<script>alert(1)</script>*/", (200,)),
        Bomb("zeros", encode_wav(TONE * 0), (200,), "audio"),
        Bomb("DC", encode_wav(TONE * 0 + 1), (200,), "audio"),
        Bomb("denormals", floats(np.full(8_000, 1e-40)), (200,), "audio"),
        Bomb("floats over 1", floats(TONE * 1e30), (200,), "audio"),
        *(Bomb(f"{n} channels", recorded(n), (200,), "audio") for n in (1, 2, 8)),
        Bomb("WAV that is HTML", encode_wav(TONE) + b"<html><script>alert(1)</script>", (200,), "audio"),
    ]
    photo, tune = saved(noise, "JPEG"), encode_wav(TONE)
    bad = [
        Bomb("no byte", b"", (422,)),
        Bomb("one byte", b"\x89", (415,)),
        *(Bomb(f"JPEG cut at {p}%", photo[: len(photo) * p // 100], (422,)) for p in (50, 90, 99)),
        Bomb("PDF that is JPEG", b"%PDF-1.7\n" + photo, (415,)),
        Bomb("sound as picture", tune, (415,)),
        Bomb("picture as sound", photo, (415,), "audio"),
        *(Bomb(f"{v} floats", floats(np.where(np.arange(8_000) == 9, v, TONE)), (422,), "audio") for v in NOT_FINITE),
    ]
    return (*good, *bad)


ANIMATED = ("GIF", "WEBP", "PNG")
NOT_FINITE = (np.nan, np.inf)


def recorded(channels: int) -> bytes:
    data = np.repeat((TONE * 32_767).astype("<i2"), channels).tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, channels, 16_000, 32_000 * channels, 2 * channels, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


# --- sending them ---


@contextmanager
def gateway(program: str = "gateway.reading.sandbox", **limits: Any) -> Iterator[tuple[World, httpx.Client]]:
    with tempfile.TemporaryDirectory() as home:
        world = World(Path(home), limits=limits)
        decoders = Decoders(world.catalog.limits, 2, program)
        world.services = replace(world.services, decoder=decoders)
        world.app.state.services = world.services
        with served(world) as url, httpx.Client(base_url=url, timeout=60) as client:
            assert sent(client, Bomb("", base64.b64decode(png()), (200,))).status_code == 200
            yield world, client
        decoders.close()
        world.log.close()


def body(bomb: Bomb) -> bytes:
    data = base64.b64encode(bomb.data).decode()
    if bomb.kind == "image":
        part: dict[str, Any] = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    else:
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return json.dumps(said([part], model="multimoe/eye" if bomb.kind == "image" else "multimoe/ear")).encode()


def sent(client: httpx.Client, bomb: Bomb) -> httpx.Response:
    return client.post("/chat/completions", content=body(bomb), headers={"content-type": "application/json"})


def said_well(response: httpx.Response) -> bool:
    return not LEAK.search(response.text)


class Meter:
    """How much this process grew at most since it was made, in MiB."""

    def __init__(self) -> None:
        for pid in ("self", *(child.pid for child in children())):
            with suppress(OSError):  # a child's, where this is not root
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts again from here
        self.before = memory("VmRSS")

    def grown(self) -> float:
        return max(0.0, memory("VmHWM") - self.before)


def memory(what: str, pid: int | str = "self") -> float:
    """MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def children() -> list[psutil.Process]:
    """Nursery and decoders, nursery first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "sandbox" in " ".join(process.cmdline()):
                found.append(process)
    return found


def peak() -> float:
    """MiB, of the largest decoder so far."""
    found = [0.0]
    for child in children()[1:]:
        with suppress(OSError, StopIteration):
            found.append(memory("VmHWM", child.pid))
    return max(found)


def opened(data: bytes) -> float:
    """MiB that a picture takes in the process that opens it."""
    meter = Meter()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("L").load()
        return meter.grown()


# --- the drills ---


def named_bombs(scale: Scale) -> Iterator[Row]:
    every = bombs(scale)
    with gateway() as (_, client):
        bound = memory("VmHWM", children()[0].pid) + Limits().decode_memory / MIB
        for bomb in every:
            meter, began = Meter(), time.perf_counter()
            response = sent(client, bomb)
            ms, grown, child = 1000 * (time.perf_counter() - began), meter.grown(), peak()
            right = response.status_code in bomb.statuses and said_well(response)
            yield Row(
                "T3",
                bomb.name,
                f"once, {len(bomb.data):,} bytes",
                f"{response.status_code}, {ms:.0f} ms, +{grown:.0f} MiB here, {child:.0f} MiB there",
                f"{' or '.join(map(str, bomb.statuses))}, +{ALLOWED} MiB here, {bound:.0f} MiB there",
                right and grown <= ALLOWED and child <= bound,
            )
        for encoding, packed in (("gzip", zlib.compress(bytes(MIB), 9, 31)), ("br", b"\x81" + bytes(64))):
            headers = {"content-type": "application/json", "content-encoding": encoding}
            status = client.post("/chat/completions", content=packed, headers=headers).status_code
            yield Row("T3", f"a body packed with {encoding}", "once", str(status), "415", status == 415)
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # here there may be room left from what was freed
        grown = fresh.submit(opened, every[0].data).result()
    met = grown > ALLOWED
    yield Row("T3", f"{every[0].name} opened here", "once", f"+{grown:.0f} MiB", f"seen, over {ALLOWED}", met, True)


def odd_but_valid(scale: Scale) -> Iterator[Row]:
    wrong, files = [], odd_files()
    with gateway() as (world, client):
        for file in files:
            response = sent(client, file)
            if response.status_code not in file.statuses or not said_well(response):
                wrong.append(f"{file.name} {response.status_code}")
        decoders, finite = world.services.decoder, 0
        for file in files:
            if file.kind == "audio" and file.statuses == (200,):
                samples = asyncio.run(decoders.audio(file.data, "p")).samples
                finite += bool(np.isfinite(samples).all() and np.abs(samples).max() <= 1)
    sounds = sum(file.kind == "audio" and file.statuses == (200,) for file in files)
    yield Row(
        "T4",
        "odd files",
        f"{len(files)} once",
        f"{len(files) - len(wrong)} right, {finite} of {sounds} sounds finite {'; '.join(wrong)}".strip(),
        "all right, all finite",
        not wrong and finite == sounds,
    )


def fuzz(scale: Scale) -> Iterator[Row]:
    """Images and sounds go through real children; URLs and base64 through all of the wire but the decoder."""
    many = 10_000 if scale == "quick" else 220_000
    # 2 s of a processor, after which a child is ended: by the clock it says more about what else the machine does
    limits = Limits(image_pixels=1_000_000, audio_seconds=10, decode_seconds=2)
    shares = {"image": 0.3, "audio": 0.15, "data: URL": 0.3, "base64": 0.25}
    for kind, share in shares.items():
        tries = int(many * share)
        found = asyncio.run(fuzzed(kind, tries, limits, seed=7))
        yield Row(
            "T2",
            f"fuzzed {kind}",
            f"{tries:,} inputs, seed 7",
            f"{found.odd} odd, {found.lost} decoders lost, {found.taken:,} opened, "
            f"slowest {found.slowest:.2f} s, {found.peak:.0f} MiB there",
            "0 odd, 0 lost, 2 s of a processor, 256 MiB",
            not found.odd and not found.lost and found.peak <= 256,
        )
    found = asyncio.run(fuzzed("image", 20, limits, seed=7, program="hostile_sandbox", ending=b"!segv"))
    lost = found.lost >= 20
    yield Row("T2", "files that break their decoder", "20", f"{found.lost} decoders lost", "seen", lost, True)


@dataclass
class Found:
    odd: int = 0
    lost: int = 0
    taken: int = 0
    slowest: float = 0.0
    peak: float = 0.0


class Takes:
    """A decoder that takes everything: what is tried is how a file is taken out of JSON."""

    async def image(self, data: bytes, param: str) -> ImagePart:
        return ImagePart(np.zeros((1, 1, 3), np.uint8))

    async def audio(self, data: bytes, param: str) -> AudioPart:
        return AudioPart(np.zeros(1, np.float32))


async def fuzzed(
    kind: str, tries: int, limits: Limits, seed: int, program: str = "gateway.reading.sandbox", ending: bytes = b""
) -> Found:
    found, source, fetcher = Found(), random.Random(seed), Fetcher()
    decoders = Decoders(limits, 2, program)
    seeds = [file.data for file in (*odd_files(), *valid_files()) if file.kind == kind and 200 in file.statuses]
    left = iter(range(tries))

    async def one() -> None:
        for _ in left:
            began = time.perf_counter()
            try:
                if kind in ("image", "audio"):
                    data = mutated(source, source.choice(seeds)) + ending
                    part = await (decoders.image if kind == "image" else decoders.audio)(data, "p")
                    found.odd += not within(part, limits)
                else:
                    await chat_request(address(source, kind), "id", limits, Takes(), fetcher)
                found.taken += 1
            except MultimoeError as error:
                found.odd += bool(LEAK.search(error.message)) or len(error.message) > 400
                found.lost += "broke the process" in error.message or "takes too long" in error.message
            except Exception:
                found.odd += 1
            found.slowest = max(found.slowest, time.perf_counter() - began)

    await asyncio.gather(one(), one())
    found.peak = peak()
    decoders.close()
    return found


def within(part: ImagePart | AudioPart, limits: Limits) -> bool:
    if isinstance(part, ImagePart):
        height, width, depth = part.pixels.shape
        return depth == 3 and height <= LONGEST_SIDE and width <= LONGEST_SIDE and part.pixels.dtype == np.uint8
    samples = part.samples
    return 0 < len(samples) <= limits.audio_seconds * 16_000 and bool((np.abs(samples) <= 1).all())


@cache
def valid_files() -> tuple[Bomb, ...]:
    """Valid files of every format."""
    noise = Image.effect_noise((24, 16), 60).convert("RGB")
    pictures = [Bomb(k, saved(noise, k), (200,)) for k in ("PNG", "JPEG", "WEBP", "GIF")]
    sounds = [("mp3", "libmp3lame", 16_000), ("flac", "flac", 16_000), ("ogg", "libopus", 16_000),
              ("webm", "libopus", 16_000), ("ipod", "aac", 16_000)]  # fmt: skip
    return (*pictures, *(Bomb(c, silence(c, codec, 0.3, rate), (200,), "audio") for c, codec, rate in sounds))


def mutated(source: random.Random, seed: bytes) -> bytes:
    """Bits flipped, pieces cut, repeated or from elsewhere; mostly near the head, where a format says what follows."""
    data = bytearray(seed)
    for _ in range(source.choice((0, 1, 1, 2, 4, 16))):
        at = source.randrange(min(len(data), source.choice((40, 200, len(data)))))
        match source.randrange(5):
            case 0:
                data[at] ^= 1 << source.randrange(8)
            case 1:
                data[at] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                data[at : at + 4] = source.randbytes(4)
            case 3:
                data[at:at] = data[at : at + source.randrange(1, 64)]
            case 4:
                del data[at : at + source.randrange(1, 16)]
        if not data:
            return b""
    if source.random() < 0.2:
        del data[2 ** source.randrange(1, 15) :]
    return bytes(data) if source.random() > 0.02 else source.randbytes(source.randrange(300))


PIECES = (
    *("data:", "DATA:", "image/png", "audio/wav", "text/html", ";base64", ",", ";charset=utf-8", ";" * 99),
    *("\0", "é", "%00", "%zz", "=", "==", " ", "\r\n", "-_", "+/", "AAAA", "iVBORw0KGgo"),
    *("http://127.0.0.1/", "file:///"),
)


def address(source: random.Random, kind: str) -> ChatBody:
    pieces = [source.choice(PIECES) for _ in range(source.randrange(9))]
    text = "".join(pieces)
    if source.random() < 0.5:
        encoded = base64.b64encode(source.randbytes(source.randrange(200))).decode()
        text = ("data:image/png;base64," if kind == "data: URL" else "") + encoded[: source.randrange(300)]
        if source.random() < 0.5:
            at = source.randrange(len(text) + 1)
            text = text[:at] + source.choice(PIECES) + text[at:]
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": text}}
    if kind == "base64":
        part = {"type": "input_audio", "input_audio": {"data": text, "format": "wav"}}
    return ChatBody.model_validate({"messages": [{"role": "user", "content": [part]}]})


def growth(scale: Scale) -> Iterator[Row]:
    """RSS, of the gateway with the client in the same process, over 100 repeats of each thing that is refused."""
    refused = [bomb for bomb in (*bombs("quick"), *odd_files()) if 200 not in bomb.statuses and len(bomb.data) < MIB]
    if scale == "quick":
        refused = [bomb for bomb in refused if bomb.name in ("PNG 13,000²", "WAV, 0 Hz")]
    with gateway() as (world, client):
        worst, where, there = 0.0, "", 0.0
        for bomb in refused:
            grown, below = grown_by(client, bomb)
            there = max(there, below)
            if grown >= worst:
                worst, where = grown, bomb.name
        yield Row(
            "T7",
            "memory kept by what is refused",
            f"{len(refused)} paths, 100 times each",
            f"+{worst:.1f} MiB here ({where}), +{there:.1f} MiB in a decoder",
            "+32 MiB",
            worst <= 32 and there <= 32,
        )
        kept: list[mmap.mmap] = []
        decoders, honest = world.services.decoder, world.services.decoder.image

        async def leaking(data: bytes, param: str) -> ImagePart:
            kept.append(mmap.mmap(-1, MIB))  # pages of its own: those that were freed here before count already
            kept[-1].write(b"\1" * MIB)
            return await honest(data, param)

        decoders.image = leaking  # type: ignore[method-assign]
        grown, _ = grown_by(client, refused[0])
        yield Row("T7", "a MiB kept of each", "100", f"+{grown:.0f} MiB", "seen, over 32", grown > 32, True)


def grown_by(client: httpx.Client, bomb: Bomb, times: int = 100) -> tuple[float, float]:
    """MiB that this process and its decoders grew by, after a warm-up."""
    for _ in range(5):
        sent(client, bomb)
    before, below = memory("VmRSS"), {child.pid: memory("VmRSS", child.pid) for child in children()[1:]}
    for _ in range(times):
        assert sent(client, bomb).status_code in bomb.statuses
    grown = [0.0]
    for child in children()[1:]:
        if child.pid in below:  # some have been replaced
            with suppress(OSError, StopIteration):
                grown.append(memory("VmRSS", child.pid) - below[child.pid])
    return memory("VmRSS") - before, max(grown)


HARMS = ("!segv", "!hang", "!eat", "!kill", "!exit", "!overrun", "!spin", "!huge", "!short")  # the first two always
OUTSIDE = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)


def lost_decoders(scale: Scale) -> Iterator[Row]:
    """Good files go in without a pause, from two callers, while decoders die of others' files and of signals."""
    times, quick = (1, True) if scale == "quick" else (12, False)
    good = Bomb("good", base64.b64decode(png()), (200,))
    with gateway("hostile_sandbox", decode_seconds=0.7) as (_, client):
        for harm in HARMS[: 2 if quick else None]:
            poison, told, waits = replace(good, data=good.data + harm.encode()), list[int](), [0.0]
            with beside(client, good) as statuses:
                for _ in range(times):
                    told.append(sent(client, poison).status_code)
                    waits.append(refilled())
            yield lost(scale, f"a file that does {harm[1:]}", times, statuses, max(waits), told)
        for kill in OUTSIDE[: 1 if quick else None]:
            waits = [0.0]
            with beside(client, good) as statuses:
                for _ in range(times):
                    for victim in children()[1:2]:
                        with suppress(psutil.NoSuchProcess):
                            victim.send_signal(kill)
                    time.sleep(2.5 if kill == signal.SIGSTOP else 0.1)
                    waits.append(refilled())
            # the file that a stopped one held took too long, which is what it is told
            own = times if kill == signal.SIGSTOP else 0
            yield lost(scale, f"{kill.name} of a decoder", times, statuses, max(waits), (), own)
        with beside(client, good) as statuses:
            for _ in range(min(times, 5)):
                children()[0].kill()
                time.sleep(1.0)
        yield lost(scale, "SIGKILL of the nursery", min(times, 5), statuses, 0.0)
        with beside(client, replace(good, data=good.data + b"!exit")) as statuses:
            time.sleep(0.5)
        bad = sum(status != 200 for status in statuses)
        yield Row("T8", "failures of those beside", f"{len(statuses)} files", f"{bad} failed", "seen", bad > 0, True)


def lost(
    scale: Scale,
    what: str,
    times: int,
    statuses: Sequence[int],
    wait: float,
    told: Sequence[int] = (),
    own: int = 0,
) -> Row:
    """`statuses` are those of the good files, of which `own` may be told that they took too long."""
    soon = 1 if scale == "long" else 5  # everyday tests run on machines that do other things besides
    failed = [status for status in statuses if status != 200]
    fine = bool(statuses) and len(failed) <= own and {*failed, *told} <= {413, 422}
    return Row(
        "T8",
        what,
        f"{times} times, {len(statuses)} good files beside",
        f"{' or '.join(map(str, sorted(set(told)))) or '-'}, {len(failed)} good ones failed, refilled in {wait:.2f} s",
        f"413 or 422, {own} failed, {soon} s",
        fine and wait <= soon,
    )


@contextmanager
def beside(client: httpx.Client, good: Bomb) -> Iterator[list[int]]:
    """The statuses of everything that two callers ask meanwhile, who begin before and end after."""
    statuses: list[int] = []
    over = False

    def caller() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as mine:
            while not over:
                statuses.append(sent(mine, good).status_code)

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(caller) for _ in range(2)]
        try:
            until(lambda: bool(statuses), 60)
            yield statuses
            enough = len(statuses) + 2
            until(lambda: len(statuses) >= enough, 60)
        finally:
            over = True
            for one in running:
                one.result()


def refilled(decoders: int = 2) -> float:
    """Seconds until there is a nursery and so many decoders again."""
    began = time.perf_counter()
    while len(children()) < 1 + decoders and time.perf_counter() - began < 10:
        time.sleep(0.005)
    return time.perf_counter() - began


Drill = Callable[[Scale], Iterator[Row]]
DRILLS: tuple[Drill, ...] = (named_bombs, odd_but_valid, fuzz, growth, lost_decoders)
