"""An own PostgreSQL cluster for tests: on a free port, in a temporary folder, gone afterwards.

PostgreSQL refuses to run as root, so root hands it to an unprivileged user. Where it is not installed the tests skip.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
_numbers = count()


@dataclass(frozen=True)
class Postgres:
    """A running server. `data` is its folder, `port` where it listens on 127.0.0.1."""

    data: Path
    port: int

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://multimoe@127.0.0.1:{self.port}/{database}"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        import psycopg

        name = f"test_{next(_numbers)}"
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="multimoe", dbname="postgres", autocommit=True
        ) as c:
            c.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def stop(self) -> None:
        _run("pg_ctl", "-D", str(self.data), "-m", "immediate", "stop")

    def processes(self) -> list[int]:
        """The postmaster first, then its children."""
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        return [postmaster, *map(int, children)]

    def signal(self, number: int) -> None:
        """To all of its processes, so that none of them gets to tidy up."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def crash(self) -> None:
        """As when the machine kills it for its memory: kill -9, all at once. What was in its buffers is gone."""
        os.kill(self.processes()[0], signal.SIGSTOP)  # so that it has no more children
        killed = self.processes()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none may see another die
            self.signal(number)
        deadline = time.monotonic() + 30
        while any(_runs(pid) for pid in killed):
            assert time.monotonic() < deadline, "PostgreSQL outlived kill -9"
            time.sleep(0.01)
        (self.data / "postmaster.pid").unlink()  # else one that nobody has collected counts as running

    def start(self, *settings: str) -> None:
        """`settings` as `name=value`, for this run."""
        fixed = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=60")
        options = f"-p {self.port} " + " ".join(f"-c {setting}" for setting in (*fixed, *settings))
        log = str(self.data.parent / "log")
        _run("pg_ctl", "-D", str(self.data), "-l", log, "-w", "-t", "60", "-o", options, "start")


@contextmanager
def running() -> Iterator[Postgres]:
    """Starts a server and stops it. Skips the test where PostgreSQL is not installed."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'multimoe[postgres]'")
    if _program("initdb") is None:
        pytest.skip("PostgreSQL is not installed (no initdb in PATH or /usr/lib/postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="multimoe-postgres-"))
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam(_unprivileged())
            os.chown(folder, user.pw_uid, user.pw_gid)
        server = Postgres(folder / "data", _free_port())
        options = ("-U", "multimoe", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        _run("initdb", "-D", str(server.data), *options)
        server.start()
        try:
            yield server
        finally:
            with suppress(subprocess.CalledProcessError):  # a test may have stopped it already
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    """Whether it does more than wait to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _program(name: str) -> str | None:
    folders = os.pathsep.join([*map(str, PROGRAMS), os.environ.get("PATH", "")])
    return shutil.which(name, path=folders)


def _unprivileged() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), "nobody")


def _run(program: str, *arguments: str) -> None:
    found = _program(program)
    assert found is not None
    as_user = ["runuser", "-u", _unprivileged(), "--"] if os.geteuid() == 0 else []
    # files, not pipes: the server would inherit a pipe and keep it open for as long as it runs
    with tempfile.TemporaryFile() as output:
        done = subprocess.run([*as_user, found, *arguments], cwd="/", stdout=output, stderr=output)
        output.seek(0)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, program, output.read().decode())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
