"""Pictures and recordings, as strangers send them, become arrays in processes that can be killed.

A few children wait warm (`gateway.reading.sandbox`), and each file goes to one of them. A child that breaks, hangs,
eats memory or has opened many files is replaced; the files of others never notice. What a child says is only bytes and
is checked before it is used, for its decoder may by now be somebody else's. It knows no formats and no HTTP.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, Protocol, TypeVar

import numpy as np

from gateway.reading.sandbox import ASKED, AUDIO, CHILD, IMAGE, REFUSED, TOLD
from multimoe.config import Limits
from multimoe.errors import BadInput, BadMedia, TooLarge, Unavailable, UnsupportedMedia
from multimoe.messages import LONGEST_SIDE, SAMPLE_RATE, AudioPart, ImagePart

logger = logging.getLogger(__name__)

CHILDREN = max(2, min(8, (os.cpu_count() or 1) // 2))
FILES_EACH = 64  # then a child is replaced, and with it whatever a file may have left behind
START_SECONDS = 60.0  # a nursery loads in less than one, where nothing else runs
QUEUE_SECONDS = 30.0  # of waiting for a child, after which it is overload
CLOCK = 3.0  # times its processor time a file may take by the clock, for the processor is shared

REFUSALS: Final = {kind.__name__: kind for kind in (BadMedia, TooLarge, UnsupportedMedia)}
KEPT = ("LD_LIBRARY_PATH", "TZ")  # of the environment; keys and tokens lie there too
CODES: Final = ("invalid_image", "invalid_audio", *(kind.code for kind in REFUSALS.values()))
LONGEST_REFUSAL = 2000  # bytes

Kind = Literal["image", "audio"]
Part = TypeVar("Part", ImagePart, AudioPart)


class Decoder(Protocol):
    """`param` is the file's path in the request, for the error. Raises BadInput and its kin, and Unavailable."""

    async def image(self, data: bytes, param: str) -> ImagePart: ...

    async def audio(self, data: bytes, param: str) -> AudioPart: ...


class Broken(Exception):
    """A child died, or said what no decoder says."""


class Decoders:
    """The children of this process. They start with `start` or the first file; `close` ends them, a file starts anew.

    `program` is the module that is run for them.
    """

    def __init__(self, limits: Limits, children: int = CHILDREN, program: str = "gateway.reading.sandbox") -> None:
        self.limits = limits
        self.program = program
        self._threads = ThreadPoolExecutor(children, "decode")
        self._children = children
        self._idle: deque[Child] = deque()
        self._nursery: Nursery | None = None
        self._starting = threading.Lock()

    async def start(self) -> None:
        """Have the children ready before there is a file. Raises Unavailable."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._fill)

    def close(self) -> None:
        with self._starting:
            nursery, self._nursery = self._nursery, None
        while self._idle:
            self._idle.pop().kill()
        if nursery is not None:
            nursery.close()

    @property
    def idle(self) -> int:
        """How many children wait for a file."""
        return len(self._idle)

    async def image(self, data: bytes, param: str) -> ImagePart:
        return await self._in_turn(lambda child: child.image(data, self.limits), param, "invalid_image")

    async def audio(self, data: bytes, param: str) -> AudioPart:
        return await self._in_turn(lambda child: child.audio(data, self.limits), param, "invalid_audio")

    async def _in_turn(self, decode: "Callable[[Child], Part | BadInput]", param: str, code: str) -> Part:
        """In a thread for each child, so that more files than children wait for one another."""
        sent = time.monotonic()
        given = await asyncio.get_running_loop().run_in_executor(self._threads, self._decoded, decode, code, sent)
        if isinstance(given, BadInput):
            raise type(given)(given.message, param, given.code)
        return given

    def _decoded(self, decode: "Callable[[Child], Part | BadInput]", code: str, sent: float) -> Part | BadInput:
        if time.monotonic() - sent > QUEUE_SECONDS:
            raise Unavailable("too many pictures and recordings wait to be opened; try again later")
        reason = "the file broke the process that opened it; export it again"
        for again in (False, True):  # a child may be killed from outside, which is no fault of its file
            child, began = self._fork() if again else self._child(), time.monotonic()
            try:
                given = decode(child)
            except (Broken, OSError) as error:
                child.kill()
                logger.warning("decoder lost", extra={"error": repr(error)})
                if time.monotonic() - began >= self.limits.decode_seconds:
                    reason = "opening the file takes too long; send a smaller or shorter one"
                    break
            else:
                self._keep(child)
                return given
        self._refill()
        return BadMedia(reason, None, code)

    def _child(self) -> "Child":
        try:
            return self._idle.pop()
        except IndexError:
            return self._fork()

    def _keep(self, child: "Child") -> None:
        if child.files < FILES_EACH:
            self._idle.append(child)
        else:
            child.kill()
            self._refill()

    def _refill(self) -> None:
        with contextlib.suppress(Unavailable):  # which the next file is told
            self._idle.append(self._fork())

    def _fill(self) -> None:
        while len(self._idle) < self._children:
            self._idle.append(self._fork())

    def _fork(self) -> "Child":
        """Raises Unavailable."""
        with self._starting:
            try:
                return self._living().fork()
            except (OSError, Broken):  # it was killed
                self._nursery = None
            try:
                return self._living().fork()
            except (OSError, Broken) as error:
                self._nursery = None
                logger.exception("decoders do not start")
                raise Unavailable("no picture or recording can be opened now; try again later") from error

    def _living(self) -> "Nursery":
        self._nursery = self._nursery or Nursery(self.program, self.limits)
        return self._nursery


class Nursery:
    """A process that has the decoders loaded and forks. It and its children end with the one that started it.

    `close` ends it; so does forgetting it.
    """

    def __init__(self, program: str, limits: Limits) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(START_SECONDS)
        with theirs:
            # a session of its own, so that Ctrl-C is not for it: its end is the end of its socket
            process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", program, limits.model_dump_json()],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        self.close = weakref.finalize(self, _end, self._control, process)
        if self._control.recv(1) != CHILD:
            raise Broken("the decoders' process ended before it was ready")

    def fork(self) -> "Child":
        self._control.sendall(CHILD)
        said, fds, _, _ = socket.recv_fds(self._control, 1, 2)
        if said != CHILD or len(fds) != 2:
            raise Broken("the decoders' process is gone")
        return Child(socket.socket(fileno=fds[0]), fds[1])


class Child:
    """One process that opens files. What it does not do in time raises TimeoutError, what it does wrong Broken.

    `kill` ends it; so does forgetting it.
    """

    def __init__(self, gate: socket.socket, pidfd: int) -> None:
        self.files = 0
        self._socket = gate
        self._until = 0.0
        self.kill = weakref.finalize(self, _kill, gate, pidfd)

    def image(self, data: bytes, limits: Limits) -> ImagePart | BadInput:
        kind, height, width = self._asked(IMAGE, data, limits)
        if kind == REFUSED:
            return self._refusal(height)
        if kind != IMAGE or not (1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE):
            raise Broken(f"{kind!r} {height} x {width} is no picture")
        return ImagePart(np.frombuffer(self._exactly(height * width * 3), np.uint8).reshape(height, width, 3))

    def audio(self, data: bytes, limits: Limits) -> AudioPart | BadInput:
        kind, count, _ = self._asked(AUDIO, data, limits)
        if kind == REFUSED:
            return self._refusal(count)
        if kind != AUDIO or not 1 <= count <= limits.audio_seconds * SAMPLE_RATE:
            raise Broken(f"{kind!r} {count} is no recording")
        samples = np.frombuffer(self._exactly(count * 4), np.float32)
        if not (np.abs(samples) <= 1).all():  # nor is what is no number
            raise Broken("samples beyond 1")
        return AudioPart(samples)

    def _asked(self, kind: bytes, data: bytes, limits: Limits) -> tuple[bytes, int, int]:
        seconds = CLOCK * limits.decode_seconds
        self.files += 1
        self._until = time.monotonic() + seconds
        self._socket.settimeout(seconds)
        self._socket.sendall(ASKED.pack(kind, len(data)))
        self._socket.sendall(data)
        return TOLD.unpack(self._exactly(TOLD.size))

    def _refusal(self, size: int) -> BadInput:
        if size > LONGEST_REFUSAL:
            raise Broken(f"a refusal of {size} bytes")
        kind, code, message = [*self._exactly(size).decode(errors="replace").split("\n", 2), "", ""][:3]
        if kind not in REFUSALS or code not in CODES:
            raise Broken(f"{kind!r} {code!r} is no refusal")
        return REFUSALS[kind](message, None, code)

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        left = memoryview(data)
        while left:
            self._socket.settimeout(max(self._until - time.monotonic(), 0.001))
            came = self._socket.recv_into(left)
            if not came:
                raise Broken("it died")
            left = left[came:]
        return data


def _end(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _kill(gate: socket.socket, pidfd: int) -> None:
    gate.close()
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def _environment() -> dict[str, str]:
    """What a decoder needs of ours, which is next to nothing."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OMP_NUM_THREADS": "1",  # a pool of threads does not survive a fork
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
