"""`gateway.reading.sandbox` with a hole in every decoder: a file that ends with a word here does that harm.

Run as a module in place of the real one; every other file is decoded as it should be.
"""

import ctypes
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

from gateway.reading import sandbox
from gateway.reading.sandbox import AUDIO, IMAGE, REFUSED, TOLD
from multimoe.config import Limits

Answer = Iterator[bytes | memoryview]
honest = sandbox.answer
GATEWAY = os.getppid()  # who started the nursery, which imports this
PR_GET_DUMPABLE = 3


class Payload:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch /tmp/unpickled-by-the-gateway",)


def spin() -> None:
    while True:
        pass


def eat() -> None:
    kept = []
    while True:
        kept.append(bytearray(2**24))


def escapes() -> list[str]:
    """What this process can do that no decoder has to; without harm where it can."""
    libc = ctypes.CDLL(None, use_errno=True)
    tries: dict[str, Callable[[], object]] = {
        "read a file": lambda: open("/etc/hostname").close(),
        "write a file": lambda: open("/tmp/escaped", "w").close(),
        "open a socket": lambda: socket.socket().close(),
        "fork": lambda: os.fork() or os._exit(0),
        "signal the gateway": lambda: os.kill(GATEWAY, 0),
        "be traced": lambda: 1 / libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
        "speak for the nursery": lambda: os.write(0, sandbox.CHILD),
        "be root": lambda: os.setuid(0),
        "see a secret": lambda: os.environ["MULTIMOE_TEST_SECRET"],
        "take 1 GiB": lambda: bytearray(2**30),
    }
    done = []
    for name, act in tries.items():
        try:
            act()
        except (OSError, KeyError, MemoryError, ZeroDivisionError):
            continue
        done.append(name)
    return done


def raw(kind: bytes, one: int, two: int, body: bytes = b"") -> Answer:
    yield TOLD.pack(kind, one, two)
    yield body


DEADLY: dict[bytes, Callable[[], object]] = {
    b"!segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    b"!kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"!exit": lambda: os._exit(0),
    b"!hang": lambda: time.sleep(3600),
    b"!spin": spin,
    b"!eat": eat,
    b"!overrun": lambda: ctypes.string_at(0),  # a real one: reads where there is nothing
}
LIES: dict[bytes, Callable[[], Answer]] = {
    b"!huge": lambda: raw(IMAGE, 2**32 - 1, 2**32 - 1),
    b"!flat": lambda: raw(IMAGE, 0, 0),
    b"!sound": lambda: raw(AUDIO, 4, 0, bytes(16)),
    b"!kind": lambda: raw(b"\0", 1, 1, bytes(3)),
    b"!pickle": lambda: raw(b"\x80", 1, 1, pickle.dumps(Payload())),
    b"!long": lambda: raw(REFUSED, 2**32 - 1, 0),
    b"!class": lambda: raw(REFUSED, 22, 0, b"SystemExit\ninvalid\nbye"),
    b"!short": lambda: raw(IMAGE, 9, 9, bytes(3)),
}
LIES_OF_SOUND: dict[bytes, Callable[[], Answer]] = {
    b"!nan": lambda: raw(AUDIO, 2, 0, b"\0\0\xc0\x7f" * 2),
    b"!loud": lambda: raw(AUDIO, 2, 0, b"\0\0\x80\x7f" * 2),
    b"!hours": lambda: raw(AUDIO, 2**32 - 1, 0),
}


def answer(kind: bytes, data: bytes, limits: Limits) -> Answer:
    for word, harm in DEADLY.items():
        if data.endswith(word):
            harm()
    for word, lie in (LIES | LIES_OF_SOUND).items():
        if data.endswith(word):
            yield from lie()
            if word == b"!short":
                os._exit(0)
            return
    if data.endswith(b"!escape"):
        said = "\n".join(("BadMedia", "invalid_image", ", ".join(escapes()) or "nothing")).encode()
        yield from raw(REFUSED, len(said), 0, said)
        return
    yield from honest(kind, data, limits)


if __name__ == "__main__":
    sandbox.answer = answer
    sys.exit(sandbox.main())
