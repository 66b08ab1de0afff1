"""Media bytes are checked from their headers, then decoded, in one place.

The format is what the first bytes say, never a name or a MIME type; only the formats listed here reach a decoder, and
only that format's decoder. Sizes are refused from the header, before a pixel or a sample is decoded; where a header
can lie about length, decoding stops at the limit. Files of strangers belong into a process that can be killed, which
is up to the caller. It knows no HTTP, no data: URLs and no models.
"""

import io
import re
import struct
import wave
import zlib
from collections.abc import Iterator
from typing import Final

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray
from PIL import Image

from multimoe.config import Limits
from multimoe.errors import BadMedia, TooLarge, UnsupportedMedia
from multimoe.messages import LONGEST_SIDE, SAMPLE_RATE, AudioPart, ImagePart

SHORTEST_SOUND = SAMPLE_RATE // 50  # 20 ms, under which there is nothing to hear
SOURCE_RATES = range(4_000, 384_001)  # Hz
SOURCE_CHANNELS = range(1, 9)

IMAGE_FORMATS: Final = ("png", "jpeg", "webp", "gif")
AUDIO_FORMATS: Final = {  # name -> FFmpeg's demuxer
    "wav": "wav",
    "mp3": "mp3",
    "flac": "flac",
    "ogg": "ogg",
    "webm": "matroska",
    "m4a": "mov",
}
_MAGIC: Final = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
}
_CODECS: Final = (
    "pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le,pcm_alaw,pcm_mulaw,"
    "mp3,mp3float,flac,vorbis,libvorbis,opus,libopus,aac,alac"
)
_MP4_BRANDS: Final = (b"M4A ", b"M4B ", b"mp41", b"mp42", b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"dash", b"qt  ")
_UPRIGHT: Final = {  # EXIF orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION: Final = 0x0112
_UNPACKS_TO_MUCH: Final = re.compile("decompressed data too large|too much memory", re.I)  # as Pillow says it
_NO_WORDS: Final = re.compile(r"[^\w .,:;()=+-]|0x")

# all that hostile bytes make the decoders raise; anything else is our mistake and must be seen
_DAMAGED: Final = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(NotImplementedError, struct.error, zlib.error, av.FFmpegError),
)


def sniff(data: bytes) -> str | None:
    """The format the first bytes name, one of IMAGE_FORMATS or AUDIO_FORMATS; None for anything else."""
    head = data[:64]
    if head[:4] == b"RIFF":
        return {b"WAVE": "wav", b"WEBP": "webp"}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return "m4a" if head[8:12] in _MP4_BRANDS else None
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "webm" if b"webm" in head else None
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    # an MPEG frame begins with 11 set bits, then a version, then layer III; ADTS AAC has layer 0
    return "mp3" if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 else None


def decode_image(data: bytes, limits: Limits, param: str | None = None) -> ImagePart:
    """A PNG, JPEG, WebP or GIF (its first frame) as upright RGB on white, at most 2048 pixels on the longer side.

    `param` is the picture's path in the request, for the error. Raises TooLarge, UnsupportedMedia, or BadMedia with
    code "invalid_image" for a damaged or truncated file.
    """
    _check_size(data, limits.image_bytes, "picture", "invalid_image", param)
    name = sniff(data)
    if name not in IMAGE_FORMATS:
        raise _unsupported("picture", name, IMAGE_FORMATS, param)
    try:
        with Image.open(io.BytesIO(data), formats=[name.upper()]) as image:
            _check_pixels(image, limits, param)
            return ImagePart(_rgb(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(limits, param) from error
    except MemoryError as error:
        raise TooLarge("the picture takes too much memory to open; scale it down", param) from error
    except _DAMAGED as error:
        if _UNPACKS_TO_MUCH.search(str(error)):
            raise TooLarge("the picture's text or profile unpacks to far too much; save it without", param) from error
        message = f"the {name.upper()} picture is damaged ({_reason(error)}); send the whole file"
        raise BadMedia(message, param, "invalid_image") from error


def decode_audio(data: bytes, limits: Limits, param: str | None = None) -> AudioPart:
    """WAV, MP3, FLAC, Ogg (Vorbis, Opus), WebM or M4A as 16 kHz mono.

    A recording cut short gives what is there; packets that are damaged are left out. `param` is the recording's path
    in the request, for the error. Raises TooLarge, UnsupportedMedia, or BadMedia with code "invalid_audio" where
    nothing can be heard.
    """
    _check_size(data, limits.audio_bytes, "recording", "invalid_audio", param)
    name = sniff(data)
    if name not in AUDIO_FORMATS:
        raise _unsupported("recording", name, tuple(AUDIO_FORMATS), param)
    try:
        samples = _samples(data, name, limits, param)
    except MemoryError as error:
        raise TooLarge("the recording takes too much memory to open; send it in parts", param) from error
    except _DAMAGED as error:
        message = f"the {name.upper()} recording is damaged ({_reason(error)}); send the whole file"
        raise BadMedia(message, param, "invalid_audio") from error
    if len(samples) < SHORTEST_SOUND:
        raise BadMedia("the recording is empty; send at least 0.02 s of sound", param, "invalid_audio")
    if not np.isfinite(samples).all():
        message = "the recording holds samples that are not finite numbers; export it again as 16-bit WAV"
        raise BadMedia(message, param, "invalid_audio")
    return AudioPart(np.clip(samples, -1.0, 1.0))


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """(height, width, 3) RGB as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def encode_wav(samples: NDArray[np.float32], rate: int = SAMPLE_RATE) -> bytes:
    """(n,) in [-1, 1] as a 16-bit mono WAV file; what lies outside is clipped."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


# --- pictures ---


def _check_pixels(image: Image.Image, limits: Limits, param: str | None) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise BadMedia("the picture has no pixels", param, "invalid_image")
    if max(width, height) > limits.image_side or width * height > limits.image_pixels:
        raise _too_many_pixels(limits, param, f"{width} x {height} pixels")


def _too_many_pixels(limits: Limits, param: str | None, size: str = "far too many pixels") -> TooLarge:
    allowed = f"{limits.image_side} pixels a side and {limits.image_pixels / 1e6:g} million in all"
    return TooLarge(f"the picture has {size}; at most {allowed} are taken: scale it down", param)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """(height, width, 3)."""
    image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # JPEG: decode no finer than needed
    orientation = _orientation(image)
    flat = _flatten(_shrunk(_plain_mode(image)))
    if orientation in _UPRIGHT:
        flat = flat.transpose(_UPRIGHT[orientation])
    return np.array(flat)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:  # the picture can be good where its EXIF is not
        return 1


def _plain_mode(image: Image.Image) -> Image.Image:
    """Of a mode that can be scaled: one value of a pixel lies between two others."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits a pixel; convert() would clip to 255
        wide = np.asarray(image)
        return Image.fromarray((wide // wide.dtype.type(257)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    return image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")


def _shrunk(image: Image.Image) -> Image.Image:
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image


def _flatten(image: Image.Image) -> Image.Image:
    """As RGB, transparency on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer)
    return white


# --- sounds ---


def _samples(data: bytes, name: str, limits: Limits, param: str | None) -> NDArray[np.float32]:
    # naming demuxer and codecs keeps FFmpeg from its playlists, its network and its exotic decoders
    options = {"codec_whitelist": _CODECS}
    if name == "wav":  # FFmpeg would search megabytes of PCM for DTS in disguise, at ten times the cost of decoding
        options["probesize"] = "2048"
    file, demuxer = io.BytesIO(data), AUDIO_FORMATS[name]
    with av.open(file, "r", format=demuxer, container_options=options, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise BadMedia("the file holds no sound", param, "invalid_audio")
        stream = container.streams.audio[0]
        _check_header(stream, name, container.duration, limits, param)
        pieces, total = [], 0
        for piece in _resampled(container, stream):
            pieces.append(piece)
            total += len(piece)
            if total > limits.audio_seconds * SAMPLE_RATE:
                raise _too_long(limits, param)
    return np.concatenate(pieces) if pieces else np.empty(0, np.float32)


def _check_header(stream: AudioStream, name: str, duration: int | None, limits: Limits, param: str | None) -> None:
    codec = stream.codec_context
    if codec.name not in _CODECS.split(","):
        raise UnsupportedMedia(f"the {name.upper()} recording is coded as {codec.name}; send PCM WAV or MP3", param)
    if codec.sample_rate not in SOURCE_RATES or codec.channels not in SOURCE_CHANNELS:
        message = f"the recording has {codec.channels} channels at {codec.sample_rate} Hz; send 1 to 8 at 4 to 384 kHz"
        raise BadMedia(message, param, "invalid_audio")
    # the length of an MP3 is a guess from its first frames
    if duration is not None and name != "mp3" and duration / av.time_base > limits.audio_seconds:
        raise _too_long(limits, param)


def _too_long(limits: Limits, param: str | None) -> TooLarge:
    return TooLarge(f"the recording is longer than {limits.audio_seconds:g} s; send it in parts", param)


def _resampled(container: InputContainer, stream: AudioStream) -> Iterator[NDArray[np.float32]]:
    """(n,) pieces at SAMPLE_RATE, mono; the last come from flushing decoder and resampler."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            continue
        for frame in frames:
            yield from _plain(resampler.resample(frame))
    yield from _plain(resampler.resample(None))


def _plain(frames: list[AudioFrame]) -> Iterator[NDArray[np.float32]]:
    for frame in frames:
        yield frame.to_ndarray()[0]  # (1, n) -> (n,)


# --- errors ---


def _check_size(data: bytes, limit: int, what: str, code: str, param: str | None) -> None:
    if not data:
        raise BadMedia(f"the {what} is empty; send the file's bytes", param, code)
    if len(data) > limit:
        raise TooLarge(f"the {what} is {len(data):,} bytes; at most {limit:,} are taken", param)


def _unsupported(what: str, name: str | None, allowed: tuple[str, ...], param: str | None) -> UnsupportedMedia:
    found = f"is {name.upper()}" if name else "is in a format that is not known here"
    return UnsupportedMedia(f"the {what} {found}; send one of {', '.join(allowed).upper()}", param)


def _reason(error: BaseException) -> str:
    """What the decoder said, if it is words alone: Pillow would tell addresses of memory, others paths."""
    said = str(getattr(error, "strerror", None) or error)[:120]
    return said if said.strip() and not _NO_WORDS.search(said) else type(error).__name__
