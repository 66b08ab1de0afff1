"""What a broken or hostile decoder can do: nothing to the gateway, nothing to other people's files."""

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hostile_sandbox
import numpy as np
import psutil
import pytest
from api_world import World, audio_part, image_part, said, until, wav
from PIL import Image

from gateway.reading import decoding
from gateway.reading.decoding import Decoders
from multimoe.config import Limits
from multimoe.errors import BadMedia, MultimoeError, TooLarge, Unavailable, UnsupportedMedia
from multimoe.media import decode_audio, decode_image

QUICK = Limits(decode_seconds=0.7)  # so that a hang is soon called one


def picture(ending: bytes = b"", size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "PNG")
    return file.getvalue() + ending


@contextlib.asynccontextmanager
async def children(limits: Limits = QUICK, program: str = "hostile_sandbox") -> AsyncIterator[Decoders]:
    decoders = Decoders(limits, 2, program)
    try:
        await decoders.start()
        yield decoders
    finally:
        decoders.close()


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    """Those that a file can make do anything. Whatever a test did to them, they are all there for the next."""
    made = Decoders(QUICK, 2, "hostile_sandbox")
    asyncio.run(made.start())
    yield made
    made.close()


def below(pid: int | None = None) -> list[psutil.Process]:
    """The nursery and its children, as long as they live."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie's command line is such
            if "sandbox" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def test_a_file_is_the_same_decoded_there_or_here(decoders: Decoders):
    for data in (picture(), picture(size=(300, 4000))):
        assert np.array_equal((await decoders.image(data, "p")).pixels, decode_image(data, QUICK).pixels)
    heard = await decoders.audio(wav(), "p")
    assert np.array_equal(heard.samples, decode_audio(wav(), QUICK).samples)
    assert heard.samples.flags.writeable


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"", BadMedia), (b"GIF89a", BadMedia), (b"%PDF", UnsupportedMedia), (bytes(99), UnsupportedMedia)],
)
async def test_a_refusal_is_the_same_said_there_or_here(decoders: Decoders, data: bytes, error: type[MultimoeError]):
    for there, here in ((decoders.image, decode_image), (decoders.audio, decode_audio)):
        with pytest.raises(MultimoeError) as told:
            await there(data, "messages[0].content[1]")
        with pytest.raises(MultimoeError) as meant:
            here(data, QUICK, "messages[0].content[1]")
        assert type(told.value) is type(meant.value)
        assert (told.value.message, told.value.param, told.value.code) == (
            *(meant.value.message, meant.value.param, meant.value.code),
        )
    assert decoders.idle == 2


@pytest.mark.parametrize("word", hostile_sandbox.DEADLY)
async def test_a_file_that_breaks_its_decoder_is_refused_and_the_next_one_is_not(decoders: Decoders, word: bytes):
    before = {p.pid for p in below()}
    with pytest.raises(BadMedia):
        await decoders.image(picture(word), "p")
    assert decoders.idle == 2
    assert (await decoders.image(picture(), "p")).pixels.shape == (8, 12, 3)
    assert len({p.pid for p in below()} & before) >= 2  # the nursery and whoever had nothing to do with it


@pytest.mark.parametrize("word", hostile_sandbox.LIES)
async def test_a_decoder_that_lies_is_not_believed(decoders: Decoders, word: bytes):
    with pytest.raises(BadMedia, match="broke the process"):
        await decoders.image(picture(word), "p")
    assert (await decoders.image(picture(), "p")).pixels.any()
    assert not Path("/tmp/unpickled-by-the-gateway").exists()


@pytest.mark.parametrize("word", hostile_sandbox.LIES_OF_SOUND)
async def test_samples_that_are_none_are_not_believed(decoders: Decoders, word: bytes):
    with pytest.raises(BadMedia, match="broke the process"):
        await decoders.audio(wav() + word, "p")


async def test_a_decoder_that_is_taken_over_can_do_nothing_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MULTIMOE_TEST_SECRET", "key")
    async with children() as decoders:
        with pytest.raises(BadMedia) as told:
            await decoders.image(picture(b"!escape"), "p")
    unconfined = subprocess.run(
        [sys.executable, "-c", "import hostile_sandbox as s; print(', '.join(s.escapes()))"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    able = {"read a file", "write a file", "open a socket", "fork", "signal the gateway", "be traced", "see a secret"}
    assert able <= set(unconfined.stdout.strip().split(", "))
    left = set(told.value.message.split(", "))
    assert left <= {"nothing", "signal the gateway"}  # which whoever is not root shares a user with
    if os.geteuid() == 0:
        assert left == {"nothing"}


async def test_a_picture_that_takes_more_memory_than_is_allowed_is_too_large():
    async with children(Limits(decode_memory=32 * 2**20), "gateway.reading.sandbox") as decoders:
        with pytest.raises(TooLarge, match="memory"):
            await decoders.image(picture(size=(3900, 3900)), "p")
        assert (await decoders.image(picture(), "p")).pixels.any()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
async def test_children_killed_from_outside_cost_no_file(decoders: Decoders, kill: int):
    for victims in (below()[1:], below()[:1], below()):  # its children, the nursery, all
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):  # it went with its nursery
                process.send_signal(kill)
        assert (await decoders.image(picture(), "p")).pixels.any()


async def test_a_child_killed_at_work_costs_no_file():
    async with children(Limits(), "gateway.reading.sandbox") as decoders:
        large = picture(size=(3900, 3900))
        working = [asyncio.create_task(decoders.image(large, "p")) for _ in range(2)]
        await asyncio.sleep(0.05)
        for process in below()[1:]:
            process.kill()
        assert all(part.pixels.any() for part in await asyncio.gather(*working))
        assert decoders.idle == 2


async def test_a_child_is_replaced_when_it_has_opened_many_files(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "FILES_EACH", 3)
    first = {p.pid for p in below()}
    for _ in range(6):
        await decoders.image(picture(), "p")
    left = {p.pid for p in below()} & first
    assert len(left) <= 2  # the nursery, and who had no file


async def test_without_children_there_is_a_503_and_with_them_again_an_answer(tmp_path: Path):
    world = World(tmp_path)
    decoders = world.services.decoder
    decoders.program = "no_such_module"
    async with world.client() as client:
        for sent in (image_part(), audio_part()):
            refused = await client.post("/v1/chat/completions", json=said([sent]))
            assert refused.status_code == 503, refused.text
            assert refused.headers["retry-after"]
        assert (await client.post("/v1/chat/completions", json=said("words"))).status_code == 200
        decoders.program = "gateway.reading.sandbox"
        assert (await client.post("/v1/chat/completions", json=said([image_part()]))).status_code == 200
    decoders.close()
    world.log.close()


async def test_who_waits_too_long_for_a_child_is_told_so(decoders: Decoders, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "QUEUE_SECONDS", 0.1)
    hanging = [asyncio.create_task(decoders.image(picture(b"!hang"), "p")) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable, match="try again later"):
        await decoders.image(picture(), "p")
    for told in await asyncio.gather(*hanging, return_exceptions=True):
        assert isinstance(told, BadMedia)
        assert "too long" in told.message


GATEWAY = """
import asyncio, sys, time
from gateway.reading.decoding import Decoders
from multimoe.config import Limits
decoders = Decoders(Limits(), 2, sys.argv[1])
asyncio.run(decoders.start())
print("ready", flush=True)
for line in sys.stdin:
    if line.strip() == "close":
        decoders.close()
        print("closed", flush=True)
    if line.strip() == "hang":
        asyncio.run(decoders.image(b"!hang", "p"))
"""


@pytest.mark.parametrize("end", ["close", "exit", "SIGKILL while it hangs"])
def test_no_process_is_left_however_the_gateway_ends(end: str):
    command = [sys.executable, "-W", "error", "-c", GATEWAY, "hostile_sandbox"]
    gateway = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parent
    )
    assert gateway.stdin
    assert gateway.stdout
    assert gateway.stdout.readline() == b"ready\n"
    processes = below(gateway.pid)
    assert len(processes) == 3
    if end == "close":
        gateway.stdin.write(b"close\n")
        gateway.stdin.flush()
        assert gateway.stdout.readline() == b"closed\n"
        assert not below(gateway.pid)
    if end == "SIGKILL while it hangs":
        gateway.stdin.write(b"hang\n")
        gateway.stdin.flush()
        time.sleep(0.3)
    if end.startswith("SIG"):
        gateway.send_signal(signal.Signals[end.split()[0]])
    _, complaints = gateway.communicate(timeout=10)
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes))
    assert complaints == b""


async def test_decoders_start_and_end_with_the_api(tmp_path: Path):
    world, before = World(tmp_path), len(below())
    async with world.app.router.lifespan_context(world.app):
        assert world.services.decoder.idle == decoding.CHILDREN
        assert len(below()) == before + 1 + decoding.CHILDREN
    assert world.services.decoder.idle == 0
    until(lambda: len(below()) == before)


def test_neither_environment_nor_arguments_tell_a_child_of_the_gateway(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")

    async def seen() -> list[tuple[dict[str, str], list[str]]]:
        async with children(program="gateway.reading.sandbox"):
            return [(p.environ(), p.cmdline()) for p in below()[:1]]

    for environment, arguments in asyncio.run(seen()):
        assert set(environment) <= {*decoding.KEPT, "PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                                    "MALLOC_ARENA_MAX", "LC_CTYPE"}  # fmt: skip
        assert "secret-key" not in str(environment) + str(arguments)
