"""The processes in which the files of strangers are opened: one that is forked from, and its children, who decode.

The nursery has the decoders loaded and never sees a file. A child has little memory, no file, no socket but the one to
the gateway and nobody's rights, so a decoder that is taken over has little to take; what it says is checked by
`gateway.reading.decoding`, which starts all this and ends whoever takes too long. Nothing here has the gateway's
environment.
"""

import ctypes
import gc
import io
import os
import resource
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Iterator
from typing import Final

from multimoe.config import Limits
from multimoe.errors import BadInput

# what the gateway asks (kind, bytes that follow) and what it is told (kind, height and width or samples, bytes)
ASKED: Final = struct.Struct("<cI")
TOLD: Final = struct.Struct("<cII")
IMAGE: Final = b"i"
AUDIO: Final = b"a"
REFUSED: Final = b"r"  # class, code and message follow, a line each
CHILD: Final = b"+"  # asks the nursery for one, and comes with each; the first says that it is ready

NOBODY = 65534  # uid and gid
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38


def main() -> None:
    """Fork a child for each byte that comes in, and hand its socket and pidfd over. Ends when the gateway does."""
    limits = Limits.model_validate_json(sys.argv[1])
    gateway = os.getppid()
    control = socket.socket(fileno=os.dup(0))
    control.settimeout(1.0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # or every child would have it too
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whom nobody waits for leaves no zombie
    warnings.simplefilter("ignore")  # of what is odd in a file
    rehearse()
    gc.freeze()  # so that a collection in a child does not copy what it shares
    control.sendall(CHILD)
    while os.getppid() == gateway:
        try:
            if not control.recv(1):
                break
        except TimeoutError:
            continue
        _fork(control, limits)
    os._exit(0)  # which ends the children


def _fork(control: socket.socket, limits: Limits) -> None:
    nursery = os.getpid()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            control.close()
            ours.close()
            confine(limits.decode_memory, nursery)
            serve(theirs, limits)
        finally:
            os._exit(0)
    theirs.close()
    pidfd = os.pidfd_open(child)
    socket.send_fds(control, [CHILD], [ours.fileno(), pidfd])
    os.close(pidfd)
    ours.close()


def rehearse() -> None:
    """Decode one file of each kind: all that is loaded late is loaded, since a child can open no file."""
    import numpy as np
    from PIL import Image

    from multimoe.media import IMAGE_FORMATS, SHORTEST_SOUND, decode_audio, decode_image, encode_wav

    exif = Image.Exif()
    exif[0x0112] = 6
    for name in IMAGE_FORMATS:
        file = io.BytesIO()
        Image.new("RGBA" if name != "jpeg" else "CMYK", (8, 8)).save(file, name, exif=exif)
        decode_image(file.getvalue(), Limits())
    decode_audio(encode_wav(np.zeros(2 * SHORTEST_SOUND, np.float32)), Limits())


def confine(memory: int, parent: int) -> None:
    """Give up for good whatever decoding does not need; may grow by `memory` bytes, and dies with `parent`."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = int(_read("/proc/self/statm").split()[0])
    most = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(what, (0, 0))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    for option, value in ((PR_SET_NO_NEW_PRIVS, 1), (PR_SET_DUMPABLE, 0), (PR_SET_PDEATHSIG, signal.SIGKILL)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def serve(gateway: socket.socket, limits: Limits) -> None:
    while head := gateway.recv(ASKED.size, socket.MSG_WAITALL):
        kind, size = ASKED.unpack(head)
        data = gateway.recv(size, socket.MSG_WAITALL) if size else b""
        used = resource.getrusage(resource.RUSAGE_SELF)
        allowed = used.ru_utime + used.ru_stime + limits.decode_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (int(allowed) + 1, resource.RLIM_INFINITY))
        for piece in answer(kind, data, limits):
            gateway.sendall(piece)


def answer(kind: bytes, data: bytes, limits: Limits) -> Iterator[bytes | memoryview]:
    from multimoe.media import decode_audio, decode_image

    try:
        if kind == IMAGE:
            pixels = decode_image(data, limits).pixels
            height, width, _ = pixels.shape
            yield TOLD.pack(IMAGE, height, width)
            yield pixels.data.cast("B")
        else:
            samples = decode_audio(data, limits).samples
            yield TOLD.pack(AUDIO, len(samples), 0)
            yield samples.data.cast("B")
    except BadInput as error:
        said = "\n".join((type(error).__name__, error.code, error.message)).encode()
        yield TOLD.pack(REFUSED, len(said), 0)
        yield said


if __name__ == "__main__":
    main()
