"""A child of this process that runs under strace from its first step on."""

import os
import subprocess
from collections.abc import Callable


def traceable() -> bool:
    """Whether strace is here and may trace."""
    return not subprocess.run(["sh", "-c", "strace -o /dev/null true"], capture_output=True).returncode


def traced(work: Callable[[], object], *options: str) -> int:
    """The wait status of a child that does `work`: 0 where it came to its end, an exit with 3 where it raised."""
    go, gone = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(go, 1)
            work()
            os._exit(0)
        finally:
            os._exit(3)
    with subprocess.Popen(["strace", "-f", *options, "-p", str(child)], stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        strace.stderr.readline()  # it is attached
        os.write(gone, b".")
        _, status = os.waitpid(child, 0)
        strace.wait(60)
    os.close(go)
    os.close(gone)
    return status
