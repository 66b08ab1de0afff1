"""An own PostgreSQL cluster for tests: on a free port, in a temporary folder, gone afterwards.

PostgreSQL refuses to run as root, so root hands it to an unprivileged user. Where it is not installed the tests skip.
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
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

    def start(self) -> None:
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=40"
        log = str(self.data.parent / "log")
        _run("pg_ctl", "-D", str(self.data), "-l", log, "-w", "-t", "60", "-o", settings, "start")


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
