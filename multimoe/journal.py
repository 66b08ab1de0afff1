"""How far each gate version came: a file that only grows, a line per step; what they add up to is the `Standing`.

    written ──► shadow ──► canary ──► champion ──► (watched) ──► confirmed
                   └── withdrawn ┘       └──────── rolled back ┘

An append of one line is on disk or never happened, so a crash leaves the old standing or the new one. It knows numbers,
not what is behind them, and no reason to take a step.
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import AwareDatetime, ValidationError

from multimoe.errors import CheckpointError, Conflict
from multimoe.outputs import Frozen, Probability

Action = Literal["promoted", "rolled back", "shadow", "canary", "withdrawn", "confirmed"]
Stage = Literal["candidate", "refused", "shadow", "canary", "champion", "former", "withdrawn", "rolled back"]
STAGES: Mapping[Action, Stage] = {  # where a step leaves the version it names
    "promoted": "champion",
    "rolled back": "champion",
    "confirmed": "champion",
    "shadow": "shadow",
    "canary": "canary",
    "withdrawn": "withdrawn",
}


class Step(Frozen):
    """A promotion makes `version` champion; a rollback returns to `version`, which was champion before.

    "shadow" and "canary" put it on trial: it decides beside the champion, and in canary answers a `share` of requests;
    "withdrawn" ends that. A promotion may be `watched`: ratings can still undo it, until it is "confirmed".
    """

    at: AwareDatetime
    action: Action
    version: int
    share: Probability = 0.0
    watched: bool = False
    reason: str = ""

    def __str__(self) -> str:
        return f"back to gate {self.version}" if self.action == "rolled back" else f"gate {self.version} {self.action}"


class Trial(Frozen):
    """The version that decides beside the champion; `share` of requests are its own to answer, 0 in shadow."""

    version: int
    share: Probability
    since: AwareDatetime

    @property
    def stage(self) -> Literal["shadow", "canary"]:
        return "canary" if self.share > 0 else "shadow"


class Place(Frozen):
    """Where one version stands, since when and why."""

    stage: Stage
    since: AwareDatetime | None = None
    reason: str = ""


class Standing(Frozen):
    """Who serves. `champions` has the champion last, before it the one that a rollback returns to, and so on down to 0.

    `watched` is since when the champion serves on probation; None when it has proven itself.
    """

    champions: tuple[int, ...] = (0,)
    trial: Trial | None = None
    watched: AwareDatetime | None = None

    @property
    def champion(self) -> int:
        return self.champions[-1]

    def __str__(self) -> str:
        tried = f"gate {self.trial.version} is in {self.trial.stage}" if self.trial else "none is on trial"
        return f"gate {self.champion} serves and {tried}"

    def aliases(self, version: int) -> list[str]:
        """The names by which `version` can be asked for."""
        tried = ["challenger", self.trial.stage] if self.trial and self.trial.version == version else []
        return ["champion"] if version == self.champion else tried

    def after(self, step: Step) -> "Standing":
        """A change of champion ends every trial: it was against the one before."""
        match step.action:
            case "promoted" if step.version == self.champion:
                return self
            case "promoted":
                return Standing(champions=(*self.champions, step.version), watched=step.at if step.watched else None)
            case "rolled back":
                return Standing(champions=self.champions[:-1] or (0,))
            case "shadow" | "canary":
                trial = Trial(version=step.version, share=step.share, since=step.at)
                return self.model_copy(update={"trial": trial})
            case "withdrawn":
                return self.model_copy(update={"trial": None})
            case "confirmed":
                return self.model_copy(update={"watched": None})

    def check(self, step: Step) -> None:
        """Raises Conflict for a step that leads nowhere from here."""
        match step.action:
            case "rolled back" if len(self.champions) < 2:
                raise Conflict(f"gate {self.champion} has no champion before it to go back to")
            case "rolled back" if step.version != self.champions[-2]:
                raise Conflict(f"a rollback goes to gate {self.champions[-2]}, not to gate {step.version}")
            case "shadow" | "canary" if step.version == self.champion:
                raise Conflict(f"gate {step.version} is champion; it cannot be tried against itself")
            case "withdrawn" if self.trial is None or self.trial.version != step.version:
                raise Conflict(f"gate {step.version} is not on trial, so it cannot be withdrawn")
            case "confirmed" if self.watched is None or self.champion != step.version:
                raise Conflict(f"gate {step.version} is no champion on probation, so it cannot be confirmed")


class Journal:
    """Safe to use from several processes on one file system; it caches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> tuple[Step, ...]:
        """Every step, oldest first. Raises CheckpointError for a file that is unreadable."""
        try:
            with self.path.open("rb") as file:
                return _steps(file)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error

    def standing(self) -> Standing:
        return _standing(self.steps())

    def champions(self) -> tuple[int, ...]:
        """The champion last, before it the one that a rollback returns to, and so on down to 0."""
        return self.standing().champions

    def places(self) -> dict[int, Place]:
        """Where every version stands that ever took a step, and version 0."""
        now, places = Standing(), {0: Place(stage="champion")}
        for step in self.steps():
            places |= _moved(now, step)
            now = now.after(step)
        return places

    def take(self, step: Step, expected: Standing | None = None) -> Standing:
        """Write a step down; what it leads to. Promoting the champion again changes nothing.

        Raises Conflict when it leads nowhere, or when `expected` is given and not how things stand any more.
        """
        with self._held() as file:
            now = _standing(_steps(file))
            if expected is not None and now != expected:
                raise Conflict(f"meanwhile {now}; look again")
            return _take(file, now, step)

    @contextmanager
    def _held(self) -> Iterator[BinaryIO]:
        """Open for reading and appending, for this process alone. Raises CheckpointError where the disk fails."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file:  # a buffer would write on closing what failed before
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror}") from error


def sync_folder(path: Path) -> None:
    """A new name in a folder survives a power cut only once the folder itself is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _standing(steps: Sequence[Step]) -> Standing:
    now = Standing()
    for step in steps:
        now = now.after(step)
    return now


def _moved(now: Standing, step: Step) -> dict[int, Place]:
    """The places that a step changes: of the version it is about, and of those that leave for it."""
    if now.after(step) == now or step.action == "confirmed":
        return {}
    moved: dict[int, Place] = {}
    if now.trial is not None:
        moved[now.trial.version] = Place(stage="withdrawn", since=step.at, reason=f"gate {step.version} took its place")
    if step.action == "promoted":
        moved[now.champion] = Place(stage="former", since=step.at, reason=f"gate {step.version} became champion")
    elif step.action == "rolled back":
        moved[now.champion] = Place(stage="rolled back", since=step.at, reason=f"{step}: {step.reason}")
    reason = f"back from gate {now.champion}: {step.reason}" if step.action == "rolled back" else step.reason
    return moved | {step.version: Place(stage=STAGES[step.action], since=step.at, reason=reason)}


def _take(file: BinaryIO, now: Standing, step: Step) -> Standing:
    now.check(step)
    after = now.after(step)
    if after != now:
        _append(file, step)
    return after


def _steps(file: BinaryIO) -> tuple[Step, ...]:
    """Whole lines only: what a power cut left of the last one never happened."""
    file.seek(0)
    lines = file.read().split(b"\n")[:-1]
    try:
        return tuple(Step.model_validate_json(line) for line in lines)
    except ValidationError as error:
        raise CheckpointError(f"{file.name} is damaged; remove the lines that are not JSON") from error


def _append(file: BinaryIO, step: Step) -> None:
    """Where the disk fails, whatever of the line got into the file goes again: nobody must read what is not kept."""
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)  # a torn line would swallow the new one
    try:
        line = step.model_dump_json().encode() + b"\n"
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
        sync_folder(Path(file.name).parent)
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), whole)
        raise
