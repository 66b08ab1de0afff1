"""Gate versions on disk: a folder each, written whole or not at all, and a journal of which one serves.

    gates/0001/gate.safetensors   what was learned
    gates/0001/manifest.json      from what, how good, why promoted or not, and the hash of the tensors
    gates/journal.jsonl           which one serves, and which did before

Version 0, the cards alone, has no folder and is always there. Nothing is unpickled.
"""

import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import AwareDatetime, ValidationError

from multimoe.errors import CheckpointError, NotFound
from multimoe.journal import Journal, Place, Stage, Standing, Step, Trial, sync_folder
from multimoe.messages import MODALITIES, Modality
from multimoe.offpolicy import Estimate
from multimoe.outputs import Frozen
from multimoe.quality import HEAD, Axes, Learned
from multimoe.verdict import Check, Outcome

logger = logging.getLogger(__name__)

TENSORS = "gate.safetensors"
MANIFEST = "manifest.json"
HEADER_LIMIT = 2**20  # bytes; a header of many tensors costs far more memory than its size
FILE_LIMIT = 2**30  # bytes
FILE_LIMITS = {TENSORS: FILE_LIMIT, MANIFEST: 2**22}
MOST_VERSIONS = 10**9  # a number beyond is nobody's, and may be too long for the name of a folder
TABLES = ("common", "own", "covariance", "variance", "balance", "tilt")
LARGEST = 1e4  # of any parameter: quality saturates long before
STALE = timedelta(hours=1)  # an unfinished version older than this belongs to a process that died


class Manifest(Frozen):
    """What is known of a version. `promoted` says whether it ever became champion; the registry fills it in.

    `metrics` hold estimates with 95 % intervals on later, held-out ratings; `scores` plain figures; `settings` the
    hyperparameters. `outcome` is the verdict, `reason` says it in words, `checks` are what it rests on, and `proven`
    says that it may serve. `since` and `until` span the interactions looked at, `learned_until` those learned from.
    """

    format: Literal[1] = 1
    version: int = 0
    parent: int | None = None
    created: AwareDatetime | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    learned_until: AwareDatetime | None = None
    ratings: int = 0
    counts: dict[str, int] = {}
    metrics: dict[str, Estimate] = {}
    scores: dict[str, float] = {}
    settings: dict[str, float] = {}
    experts: tuple[str, ...] = ()
    encoder_revisions: dict[Modality, str] = {}
    sha256: str = ""
    proven: bool = False
    promoted: bool = False
    outcome: Outcome | None = None
    reason: str = ""
    checks: tuple[Check, ...] = ()


CARDS_ALONE = Manifest(promoted=True, reason="the cards alone, before any rating")


class Registry:
    """Safe to use from several processes on one file system. It caches nothing, so all see what is on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = Journal(root / "journal.jsonl")

    def versions(self) -> tuple[int, ...]:
        """All there are, damaged ones too, rising, from 0. Raises CheckpointError where the folder is unreadable."""
        try:
            folders = self.root.iterdir() if self.root.is_dir() else ()
            numbers = [int(f.name) for f in folders if f.name.isascii() and f.name.isdigit() and f.is_dir()]
        except OSError as error:
            raise CheckpointError(f"the folder of gate versions cannot be read: {error.strerror}") from error
        return (0, *sorted(n for n in numbers if n > 0))

    def champion(self) -> int:
        """The version that should serve."""
        return self.journal.champions()[-1]

    def sound_champion(self) -> int:
        """The champion, or where it is damaged the last champion before it that is not; at worst 0. Logs a warning."""
        try:
            champions = self.journal.champions()
        except CheckpointError as error:
            logger.warning("nobody knows which gate version was champion: %s", error)
            champions = (0,)
        for version in reversed(champions):
            try:
                self.load(version)
            except (CheckpointError, NotFound) as error:
                logger.warning("gate version %d cannot serve: %s", version, error)
            else:
                return version
        return 0

    def manifest(self, version: int) -> Manifest:
        """Raises NotFound, CheckpointError."""
        if version == 0:
            return CARDS_ALONE
        try:
            manifest = Manifest.model_validate_json(self._read(version, MANIFEST))
        except ValidationError as error:
            raise _damaged(version, f"its manifest is unreadable ({error.error_count()} mistakes)") from error
        if manifest.version != version:
            raise _damaged(version, f"its manifest is that of version {manifest.version}")
        promoted = any(step.version == version and step.action == "promoted" for step in self.journal.steps())
        return manifest.model_copy(update={"promoted": promoted})

    def load(self, version: int, revisions: Mapping[Modality, str] | None = None) -> Learned:
        """What a version learned, every byte checked; with `revisions`, that its encoders are these.

        Raises NotFound, CheckpointError.
        """
        if version == 0:
            return Learned()
        manifest = self.manifest(version)
        data = self._read(version, TENSORS)
        if hashlib.sha256(data).hexdigest() != manifest.sha256:
            raise _damaged(version, f"{TENSORS} is not the file its manifest was written for (sha256 differs)")
        for m, revision in (revisions or {}).items():
            if manifest.encoder_revisions.get(m, revision) != revision:
                raise CheckpointError(
                    f"gate version {version} learned from {m} encoder {manifest.encoder_revisions[m]!r}, the catalog "
                    f"has {revision!r}; retrain, or go back to that encoder"
                )
        return _learned(_tensors(data, version), manifest)

    def write(self, learned: Learned, manifest: Manifest) -> Manifest:
        """Write a new version and give it the next number, on disk when this returns. Does not promote it.

        Two writers get two numbers: a folder is renamed into place, which fails where one is. Raises CheckpointError
        for parameters that could not be loaded again, and when the disk does not take them.
        """
        data = _bytes(learned)
        told = manifest.model_copy(
            update={
                "experts": learned.experts,
                "encoder_revisions": dict(learned.revisions),
                "sha256": hashlib.sha256(data).hexdigest(),
                "promoted": False,
            }
        )
        _learned(_tensors(data, 0), told)
        draft = self.root / f".draft-{secrets.token_hex(8)}"
        try:
            draft.mkdir(parents=True)
            _write_durably(draft / TENSORS, data)
            return self._claim(draft, told)
        except OSError as error:
            raise CheckpointError(f"a gate version cannot be written to {self.root}: {error.strerror}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            self._sweep(manifest.created)

    def serving(self) -> tuple[int, Trial | None]:
        """The soundest version to serve, and the one on trial where it is against that very version."""
        version = self.sound_champion()
        try:
            standing = self.standing()
        except CheckpointError:
            return version, None
        return version, standing.trial if standing.champion == version else None

    def standing(self) -> Standing:
        """Who serves and who is on trial. Raises CheckpointError for a journal that is unreadable."""
        return self.journal.standing()

    def places(self) -> dict[int, Place]:
        """Where each version stands: one that never took a step is a candidate if proven better or held, else refused.

        Raises CheckpointError for a journal that is unreadable.
        """
        return {version: self._unmoved(version) for version in self.versions()} | self.journal.places()

    def take(self, step: Step, expected: Standing | None = None) -> Standing:
        """Move a version on; on disk when this returns. `expected` is how things stood when that was decided.

        Raises NotFound or CheckpointError for a version that cannot be loaded, Conflict as `Journal.take`.
        """
        if step.action not in ("withdrawn", "confirmed"):
            self.load(step.version)
        return self.journal.take(step, expected)

    def _unmoved(self, version: int) -> Place:
        try:
            manifest = self.manifest(version)
        except (CheckpointError, NotFound) as error:
            return Place(stage="refused", reason=error.message)
        stage: Stage = "candidate" if manifest.proven or manifest.outcome == "held" else "refused"
        return Place(stage=stage, since=manifest.created, reason=manifest.reason)

    def _read(self, version: int, name: str) -> bytes:
        folder = self.root / f"{version:04d}"
        try:
            if not 0 < version < MOST_VERSIONS or not folder.is_dir():
                there = ", ".join(map(str, self.versions()))
                raise NotFound(f"no gate version {version if version < MOST_VERSIONS else ''}; there are: {there}")
            return _plain_file(folder, name, FILE_LIMITS[name])
        except OSError as error:
            raise _damaged(version, f"{name} cannot be read ({error.strerror})") from error

    def _claim(self, draft: Path, manifest: Manifest) -> Manifest:
        taken = [*self.versions(), *(step.version for step in self.journal.steps())]
        number = max(taken) + 1
        while True:
            numbered = manifest.model_copy(update={"version": number})
            _write_durably(draft / MANIFEST, numbered.model_dump_json(indent=2).encode())
            sync_folder(draft)
            try:
                draft.rename(self.root / f"{number:04d}")
            except OSError:
                if not (self.root / f"{number:04d}").exists():
                    raise
                number += 1
            else:
                sync_folder(self.root)
                return numbered

    def _sweep(self, now: datetime | None) -> None:
        for draft in self.root.glob(".draft-*"):
            with suppress(OSError):
                if now and now.timestamp() - draft.stat().st_mtime > STALE.total_seconds():
                    shutil.rmtree(draft, ignore_errors=True)


def _bytes(learned: Learned) -> bytes:
    tensors: dict[str, NDArray[np.generic]] = {
        **{name: getattr(learned, name).astype(np.float32) for name in TABLES},
        "rated": learned.rated.astype(np.int64),
        "slope": np.array([learned.slope], np.float32),
        **{f"basis.{m}": axes.basis for m, axes in learned.axes.items()},
        **{f"shift.{m}": axes.shift for m, axes in learned.axes.items()},
    }
    return safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


def _tensors(data: bytes, version: int) -> dict[str, NDArray[np.generic]]:
    header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header > HEADER_LIMIT:
        raise _damaged(version, f"its header claims {header:,} bytes, at most {HEADER_LIMIT:,} are allowed")
    try:
        return dict(safetensors.numpy.load(data))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise _damaged(version, f"{TENSORS} is not safetensors ({error})") from error


def _learned(tensors: Mapping[str, NDArray[np.generic]], manifest: Manifest) -> Learned:
    n, version = len(manifest.experts), manifest.version
    bases = {m: t.shape for m in MODALITIES if (t := tensors.get(f"basis.{m}")) is not None and t.ndim == 2}
    q = HEAD + sum(rank for _, rank in bases.values())
    shapes: dict[str, tuple[int, ...]] = {
        "common": (q,), "own": (n, q), "covariance": (n, q, q), "variance": (q,), "balance": (n,), "tilt": (n, q),
        "rated": (n,), "slope": (1,),
    }  # fmt: skip
    shapes |= {f"basis.{m}": shape for m, shape in bases.items()} | {f"shift.{m}": (r,) for m, (_, r) in bases.items()}
    found = {name: (tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()}
    wanted = {name: (shape, "int64" if name == "rated" else "float32") for name, shape in shapes.items()}
    if found != wanted:
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise _damaged(version, f"tensors {', '.join(wrong[:5])} are missing, unknown or of another shape or type")
    for name, value in tensors.items():
        if not np.isfinite(value).all() or (name != "rated" and np.abs(value).max(initial=0) > LARGEST):
            raise _damaged(version, f"tensor {name} holds values that are not finite or above {LARGEST:g}")
    if tensors["rated"].astype(np.int64).min(initial=0) < 0:
        raise _damaged(version, "tensor rated counts fewer ratings than none")
    singles = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    doubles = {name: singles[name].astype(np.float64) for name in TABLES if name != "covariance"}
    return Learned(
        experts=manifest.experts,
        axes={m: Axes(singles[f"basis.{m}"], singles[f"shift.{m}"]) for m in bases},
        covariance=singles["covariance"],
        rated=tensors["rated"].astype(np.int64),
        slope=float(singles["slope"][0]),
        revisions=manifest.encoder_revisions,
        **doubles,
    )


def _damaged(version: int, why: str) -> CheckpointError:
    return CheckpointError(f"gate version {version} is refused: {why}; serve another version or train again")


def _plain_file(folder: Path, name: str, most: int) -> bytes:
    """A file of that very folder, of at most `most` bytes. Raises OSError.

    No link leads elsewhere, and what is no file (a pipe, a device) is not waited for.
    """
    within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=within)
    finally:
        os.close(within)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes")
        return file.read(most)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
