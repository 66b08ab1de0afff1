"""Which gate version serves: a file that only grows, a line per promotion and rollback; the last whole line rules.

An append of one line is on disk or never happened, so a crash leaves the old champion or the new one. It knows numbers,
not what is behind them.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from pydantic import AwareDatetime, ValidationError

from multimoe.errors import CheckpointError, Conflict
from multimoe.outputs import Frozen


class Step(Frozen):
    """A promotion makes `version` champion; a rollback returns to `version`, which was champion before."""

    at: AwareDatetime
    action: Literal["promoted", "rolled back"]
    version: int


class Journal:
    """Safe to use from several processes on one file system; it caches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> tuple[Step, ...]:
        """Every promotion and rollback, oldest first. Raises CheckpointError for a file that is unreadable."""
        try:
            with self.path.open("rb") as file:
                return _steps(file)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error

    def champions(self) -> tuple[int, ...]:
        """The champion last, before it the one that a rollback returns to, and so on down to 0."""
        return _champions(self.steps())

    def promote(self, version: int, now: datetime, expected: int | None = None) -> None:
        """Raises Conflict when `expected` is given and not champion any more."""
        with self._held() as file:
            champion = _champions(_steps(file))[-1]
            if expected is not None and champion != expected:
                raise Conflict(f"gate {version} was judged against {expected}, but {champion} serves now; train again")
            if champion != version:
                _append(file, Step(at=now, action="promoted", version=version))

    def rollback(self, now: datetime, expected: int) -> int:
        """Returns the new champion. Raises Conflict when `expected` is not champion or has none before it."""
        with self._held() as file:
            champions = _champions(_steps(file))
            if champions[-1] != expected:
                raise Conflict(f"gate {champions[-1]} became champion meanwhile; look again before you roll back")
            if len(champions) < 2:
                raise Conflict(f"gate {expected} has no champion before it to go back to")
            _append(file, Step(at=now, action="rolled back", version=champions[-2]))
            return champions[-2]

    @contextmanager
    def _held(self) -> Iterator[IO[bytes]]:
        """Open for reading and appending, for this process alone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def sync_folder(path: Path) -> None:
    """A new name in a folder survives a power cut only once the folder itself is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _champions(steps: Sequence[Step]) -> tuple[int, ...]:
    line = [0]
    for step in steps:
        if step.action == "promoted":
            line.append(step.version)
        elif len(line) > 1:
            line.pop()
    return tuple(line)


def _steps(file: IO[bytes]) -> tuple[Step, ...]:
    """Whole lines only: what a power cut left of the last one never happened."""
    file.seek(0)
    lines = file.read().split(b"\n")[:-1]
    try:
        return tuple(Step.model_validate_json(line) for line in lines)
    except ValidationError as error:
        raise CheckpointError(f"{file.name} is damaged; remove the lines that are not JSON") from error


def _append(file: IO[bytes], step: Step) -> None:
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)  # a torn line would swallow the new one
    file.write(step.model_dump_json().encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())
    sync_folder(Path(file.name).parent)
