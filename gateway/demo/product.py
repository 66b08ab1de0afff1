"""The product as a process of its own, on a free port and in a folder of its own, gone without a trace afterwards."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from multimoe import config
from multimoe.errors import Unavailable

START_SECONDS = 300.0
STOP_SECONDS = 60.0
LOG_LINES = 25


@contextmanager
def running(catalog: Path) -> Iterator[str]:
    """Its base URL, once it is ready. Raises Unavailable, with the end of its log, when it does not come up."""
    with tempfile.TemporaryDirectory(prefix="multimoe-demo-") as home:
        log = Path(home) / "serve.log"
        url = f"http://127.0.0.1:{(port := free_port())}"
        command = [sys.executable, "-m", "gateway.cli", "serve", "--no-pull", f"--port={port}", f"--catalog={catalog}"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                env=os.environ | {"MULTIMOE_HOME": home},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops the product in order
            )
        try:
            _wait_until_up(process, url, log, {expert.name for expert in config.load(catalog).experts})
            yield url
        finally:
            stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(process: "subprocess.Popen[bytes]") -> None:
    """As Ctrl-C would; a process that does not end in time is killed with all it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_up(process: "subprocess.Popen[bytes]", url: str, log: Path, experts: set[str]) -> None:
    """Until every one of `experts` is up or asleep: the product is ready with the first of them."""
    deadline = time.monotonic() + START_SECONDS
    while (lacks := _lacks(url, experts)) is not None:
        if process.poll() is not None:
            raise Unavailable(f"the product ended while starting; its last words:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise Unavailable(f"the product is not ready after {START_SECONDS:.0f} s ({lacks}):\n{_tail(log)}")
        time.sleep(0.5)


def _lacks(url: str, experts: set[str]) -> str | None:
    """What the product still lacks; None when nothing."""
    try:
        answer = httpx.get(f"{url}/ready", timeout=10.0, trust_env=False)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    if not answer.is_success:
        return f"{answer.status_code}: {answer.text[:300]}"
    able = {name for name, state in answer.json()["experts"].items() if state in ("ready", "asleep")}
    return ", ".join(sorted(experts - able)) or None


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
