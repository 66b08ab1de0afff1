"""Formats, odd modes, damage, bombs and fuzz: a decoder gives a part within its bounds or one of our errors."""

import io
import pickle
import re
import struct
import wave
import zlib
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from multimoe.config import Limits
from multimoe.errors import BadMedia, MultimoeError, TooLarge, UnsupportedMedia
from multimoe.media import (
    AUDIO_FORMATS,
    IMAGE_FORMATS,
    LONGEST_SIDE,
    decode_audio,
    decode_image,
    encode_png,
    encode_wav,
    sniff,
)

LIMITS = Limits()
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)  # 2 s of A4


def gradient(width: int = 90, height: int = 60) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8))


def saved(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def recorded(container: str, codec: str, seconds: float = 2.0, rate: int = 48_000, layout: str = "mono") -> bytes:
    """A 440 Hz tone written by FFmpeg."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        for start in range(0, int(seconds * rate), size):
            tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(start, start + size) / rate).astype(np.float32)
            channels = np.tile(tone, (stream.codec_context.channels, 1))
            frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


PICTURES = {name: saved(gradient(), name.upper()) for name in IMAGE_FORMATS}
SOUNDS = {
    "wav": encode_wav(TONE),
    "mp3": recorded("mp3", "libmp3lame", rate=44_100),
    "flac": recorded("flac", "flac", rate=44_100, layout="stereo"),
    "ogg": recorded("ogg", "libopus"),
    "webm": recorded("webm", "libopus"),
    "m4a": recorded("ipod", "aac", rate=44_100),
}


@pytest.mark.parametrize("name", IMAGE_FORMATS)
def test_reads_every_picture_format(name: str) -> None:
    assert sniff(PICTURES[name]) == name
    pixels = decode_image(PICTURES[name], LIMITS).pixels
    assert pixels.shape == (60, 90, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(gradient()).astype(int)).mean() < 6


@pytest.mark.parametrize("name", AUDIO_FORMATS)
def test_reads_every_sound_format_and_hears_the_tone(name: str) -> None:
    assert sniff(SOUNDS[name]) == name
    samples = decode_audio(SOUNDS[name], LIMITS).samples
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(32_000, abs=1_600)
    middle = samples[8_000:24_000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) == pytest.approx(440, abs=1)


def test_png_round_trip_is_exact() -> None:
    pixels = np.asarray(gradient())
    assert np.array_equal(decode_image(encode_png(pixels), LIMITS).pixels, pixels)


def test_wav_round_trip_is_exact_to_16_bits() -> None:
    assert np.abs(decode_audio(encode_wav(TONE), LIMITS).samples - TONE).max() < 1e-4


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    palette = Image.new("P", (8, 8), 0)
    for data in (saved(clear, "PNG"), saved(clear.convert("LA"), "PNG"), saved(palette, "GIF", transparency=0)):
        assert (decode_image(data, LIMITS).pixels == 255).all()


def test_sixteen_bit_grey_keeps_its_brightness() -> None:
    grey = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert (decode_image(saved(grey, "PNG"), LIMITS).pixels == 127).all()


def test_cmyk_and_one_bit_become_rgb() -> None:
    cmyk = decode_image(saved(gradient().convert("CMYK"), "JPEG"), LIMITS).pixels
    assert cmyk.shape == (60, 90, 3)
    assert np.abs(cmyk.astype(int) - np.asarray(gradient()).astype(int)).mean() < 12
    assert decode_image(saved(Image.new("1", (5, 5), 1), "PNG"), LIMITS).pixels.min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(gradient(), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode_image(data, LIMITS).pixels, upright)


def test_large_pictures_are_scaled_down() -> None:
    pixels = decode_image(saved(gradient(4000, 1000), "JPEG"), LIMITS).pixels
    assert max(pixels.shape) == LONGEST_SIDE
    assert pixels.shape[1] / pixels.shape[0] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("name", ["TIFF", "BMP", "ICO", "PPM", "JPEG2000", "PDF"])
def test_other_picture_formats_are_unsupported(name: str) -> None:
    with pytest.raises(UnsupportedMedia, match="send one of PNG, JPEG, WEBP, GIF") as caught:
        decode_image(saved(gradient(), name), LIMITS, "messages.0.content.1.image_url")
    assert caught.value.param == "messages.0.content.1.image_url"


@pytest.mark.parametrize(
    "data",
    [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7 \xff\xd8\xff", b"PK\x03\x04png", b"%!PS", b"#EXTM3U\n"],
)
def test_what_is_neither_picture_nor_sound_is_unsupported(data: bytes) -> None:
    for decode in (decode_image, decode_audio):
        with pytest.raises(UnsupportedMedia):
            decode(data, LIMITS)


def test_a_sound_is_not_a_picture_and_says_what_it_is() -> None:
    with pytest.raises(UnsupportedMedia, match="the picture is WAV"):
        decode_image(SOUNDS["wav"], LIMITS)
    with pytest.raises(UnsupportedMedia, match="the recording is PNG"):
        decode_audio(PICTURES["png"], LIMITS)


def test_unlisted_codecs_inside_a_listed_format_are_unsupported() -> None:
    with pytest.raises(UnsupportedMedia, match="adpcm_ima_wav"):
        decode_audio(recorded("wav", "adpcm_ima_wav", rate=44_100), LIMITS)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", IMAGE_FORMATS)
def test_a_truncated_picture_is_refused(name: str, share: float) -> None:
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)), name.upper())
    with pytest.raises(BadMedia, match="send the whole file") as caught:
        decode_image(whole[: int(len(whole) * share)], LIMITS)
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["wav", "mp3", "flac", "ogg", "webm"])
def test_a_truncated_recording_gives_what_is_there(name: str, share: float) -> None:
    whole = SOUNDS[name]
    assert 0.4 < decode_audio(whole[: int(len(whole) * share)], LIMITS).seconds <= 2.1


def test_a_truncated_m4a_has_lost_its_index_and_is_refused() -> None:
    with pytest.raises(BadMedia) as caught:
        decode_audio(SOUNDS["m4a"][:-500], LIMITS)
    assert caught.value.code == "invalid_audio"


@pytest.mark.parametrize("decode", [decode_image, decode_audio])
def test_no_bytes_are_bad_media(decode: Callable[..., object]) -> None:
    with pytest.raises(BadMedia, match="is empty"):
        decode(b"", LIMITS)


def test_recordings_without_sound_are_bad_media() -> None:
    for samples in (TONE[:0], TONE[:100]):
        with pytest.raises(BadMedia) as caught:
            decode_audio(encode_wav(samples), LIMITS)
        assert caught.value.code == "invalid_audio"


def floats_as_wav(values: np.ndarray) -> bytes:
    data = values.astype("<f4").tobytes()
    fmt = (3).to_bytes(2, "little") + (1).to_bytes(2, "little") + (16_000).to_bytes(4, "little")
    fmt += (64_000).to_bytes(4, "little") + (4).to_bytes(2, "little") + (32).to_bytes(2, "little")
    body = b"WAVEfmt " + (16).to_bytes(4, "little") + fmt + b"data" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(poison: float) -> None:
    values = TONE.copy()
    values[1000] = poison
    with pytest.raises(BadMedia, match="finite"):
        decode_audio(floats_as_wav(values), LIMITS)


def test_loud_floats_are_clipped_and_silence_is_fine() -> None:
    assert np.abs(decode_audio(floats_as_wav(TONE * 100), LIMITS).samples).max() == 1.0
    assert not decode_audio(floats_as_wav(TONE * 0), LIMITS).samples.any()


@pytest.mark.parametrize("channels", range(1, 9))
def test_up_to_eight_channels_mix_to_mono(channels: int) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(44_100)
        out.writeframes(np.repeat((TONE * 32_767).astype("<i2"), channels).tobytes())
    samples = decode_audio(file.getvalue(), LIMITS).samples
    assert samples.ndim == 1
    assert np.abs(samples).max() > 0.1


def header(rate: int, channels: int) -> bytes:
    wav = bytearray(encode_wav(TONE))
    wav[22:24] = channels.to_bytes(2, "little")
    wav[24:28] = rate.to_bytes(4, "little")
    return bytes(wav)


@pytest.mark.parametrize(("rate", "channels"), [(0, 1), (2**31, 1), (16_000, 65_535), (16_000, 0), (100, 1)])
def test_impossible_headers_are_bad_media(rate: int, channels: int) -> None:
    with pytest.raises(BadMedia):
        decode_audio(header(rate, channels), LIMITS)


@pytest.mark.parametrize("claim", [24 * 3600 * 32_000 % 2**32, 2**32 - 1])
def test_a_wav_header_that_claims_hours_costs_what_the_bytes_cost(claim: int) -> None:
    wav = bytearray(encode_wav(TONE))
    wav[40:44] = claim.to_bytes(4, "little")
    assert decode_audio(bytes(wav), LIMITS).seconds == pytest.approx(2.0)


def test_the_byte_limits_come_first() -> None:
    with pytest.raises(TooLarge, match="at most 10 are taken"):
        decode_image(PICTURES["png"], Limits(image_bytes=10))
    with pytest.raises(TooLarge, match="at most 10 are taken"):
        decode_audio(SOUNDS["wav"], Limits(audio_bytes=10))


def test_sides_and_pixels_are_limited_by_the_header() -> None:
    for limits in (Limits(image_side=89), Limits(image_pixels=90 * 60 - 1)):
        with pytest.raises(TooLarge, match="90 x 60 pixels"):
            decode_image(PICTURES["png"], limits)
    assert decode_image(PICTURES["png"], Limits(image_side=90, image_pixels=90 * 60)).pixels.size


@pytest.mark.parametrize("name", AUDIO_FORMATS)
def test_recordings_over_the_limit_are_refused(name: str) -> None:
    with pytest.raises(TooLarge, match="longer than 1 s"):
        decode_audio(SOUNDS[name], Limits(audio_seconds=1))


def test_a_flac_that_hides_its_length_stops_at_the_limit() -> None:
    silence = bytearray(recorded("flac", "flac", seconds=30, rate=16_000))
    silence[21] &= 0xF0
    silence[22:26] = bytes(4)  # total samples in STREAMINFO: unknown
    with pytest.raises(TooLarge):
        decode_audio(bytes(silence), Limits(audio_seconds=5))


@pytest.mark.parametrize(
    "head", [b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"\x89PNG\r\n\x1a\n", b"fLaC", b"OggS"]
)
def test_what_is_said_of_a_damaged_file_gives_no_address_away(head: bytes) -> None:
    for decode in (decode_image, decode_audio):
        with pytest.raises(MultimoeError) as caught:
            decode(head + b"x" * 90, LIMITS)
        assert not re.search(r"0x|[<>/\\']", caught.value.message)
    with pytest.raises(Image.UnidentifiedImageError, match="0x"):  # which Pillow does
        Image.open(io.BytesIO(b"x" * 90))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_what_unpacks_to_far_too_much_beside_the_picture_is_too_large(kind: bytes) -> None:
    body = kind + b"bomb\0\0" + zlib.compress(bytes(2**23))
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    at = PICTURES["png"].index(b"IDAT") - 4
    with pytest.raises(TooLarge, match="unpacks"):
        decode_image(PICTURES["png"][:at] + chunk + PICTURES["png"][at:], LIMITS)


def test_more_memory_than_there_is_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("multimoe.media._rgb", full)
    monkeypatch.setattr("multimoe.media._samples", full)
    for decode, data in ((decode_image, PICTURES["png"]), (decode_audio, SOUNDS["wav"])):
        with pytest.raises(TooLarge, match="memory"):
            decode(data, LIMITS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_a_picture_of_any_mode_is_the_same_scaled_down(mode: str) -> None:
    large = gradient(2200, 1100)
    large = Image.fromarray(np.asarray(large.convert("L"), np.uint16) * 257) if mode == "I;16" else large.convert(mode)
    data = saved(large, "JPEG") if mode == "CMYK" else saved(large, "PNG", compress_level=1)
    small = decode_image(data, LIMITS).pixels
    assert small.shape == (1024, 2048, 3)
    seen = Image.fromarray((np.asarray(large) // 257).astype(np.uint8)) if mode == "I;16" else large
    meant = np.asarray(seen.convert("RGB").resize((2048, 1024), Image.Resampling.BICUBIC), np.int16)
    assert np.abs(small - meant).mean() < 8


def crossed(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 our own bytes


def test_parts_and_errors_cross_processes() -> None:
    assert crossed(decode_image) is decode_image
    part = crossed(decode_image(PICTURES["png"], LIMITS))
    assert part.pixels.shape == (60, 90, 3)
    with pytest.raises(BadMedia) as caught:
        decode_audio(b"", LIMITS, "messages.0")
    assert crossed(caught.value).param == "messages.0"


SEEDS = [*PICTURES.values(), *SOUNDS.values()]
MAGICS = [seed[:16] for seed in SEEDS]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file with bytes changed, cut short or continued by another file."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 12))):
        data[draw(st.integers(0, min(len(data), 400) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(1, len(data)))
    return bytes(data[:cut]) + draw(st.sampled_from([b"", b"\0" * 99, SEEDS[0][cut:], SEEDS[5][cut:]]))


headed = st.builds(bytes.__add__, st.sampled_from(MAGICS), st.binary(max_size=600))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's remarks on broken files
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.one_of(st.binary(max_size=300), headed, mutated()))
def test_hostile_bytes_give_a_part_or_one_of_our_errors(data: bytes) -> None:
    limits = Limits(image_pixels=1_000_000, audio_seconds=10)
    try:
        pixels = decode_image(data, limits).pixels
        assert pixels.ndim == 3
        assert pixels.size <= 3_000_000
    except MultimoeError:
        pass
    try:
        samples = decode_audio(data, limits).samples
        assert len(samples) <= 10 * 16_000
        assert np.isfinite(samples).all()
    except MultimoeError:
        pass
