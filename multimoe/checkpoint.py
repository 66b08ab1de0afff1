"""Gate versions on disk: a folder each, written whole or not at all, and a journal of which one serves.

    gates/0001/gate.safetensors   what was learned
    gates/0001/manifest.json      from what, how good, why promoted or not, and the hash of the tensors
    gates/journal.jsonl           which one serves, and which did before

Version 0, the cards alone, has no folder and is always there. Nothing is unpickled.
"""

import hashlib
import logging
import os
import secrets
import shutil
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
from multimoe.gate import Learned
from multimoe.journal import Journal, sync_folder
from multimoe.messages import MODALITIES, Modality
from multimoe.offpolicy import Estimate
from multimoe.outputs import Frozen

logger = logging.getLogger(__name__)

TENSORS = "gate.safetensors"
MANIFEST = "manifest.json"
HEADER_LIMIT = 2**20  # bytes; a header of many tensors costs far more memory than its size
FILE_LIMIT = 2**30  # bytes
LARGEST = 1e4  # of any parameter: quality saturates long before
STALE = timedelta(hours=1)  # an unfinished version older than this belongs to a process that died


class Manifest(Frozen):
    """What is known of a version. `promoted` says whether it ever became champion; the registry fills it in.

    `metrics` hold estimates with 95 % intervals on later, held-out ratings; `scores` plain figures; `settings` the
    hyperparameters; `reason` the verdict in words. `since` and `until` span the interactions learned from.
    """

    format: Literal[1] = 1
    version: int = 0
    parent: int | None = None
    created: AwareDatetime | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    ratings: int = 0
    counts: dict[str, int] = {}
    metrics: dict[str, Estimate] = {}
    scores: dict[str, float] = {}
    settings: dict[str, float] = {}
    experts: tuple[str, ...] = ()
    encoder_revisions: dict[Modality, str] = {}
    sha256: str = ""
    promoted: bool = False
    reason: str = ""


CARDS_ALONE = Manifest(promoted=True, reason="the cards alone, before any rating")


class Registry:
    """Safe to use from several processes on one file system. It caches nothing, so all see what is on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = Journal(root / "journal.jsonl")

    def versions(self) -> tuple[int, ...]:
        """All there are, damaged ones too, rising, from 0."""
        folders = self.root.iterdir() if self.root.is_dir() else ()
        numbers = (int(f.name) for f in folders if f.name.isascii() and f.name.isdigit() and f.is_dir())
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
        promoted = any(step.version == version for step in self.journal.steps())
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

    def promote(self, version: int, now: datetime, expected: int | None = None) -> None:
        """Make a version champion; on disk when this returns. `expected` is the champion it was judged against.

        Raises NotFound or CheckpointError for a version that cannot be loaded, Conflict when another became champion
        meanwhile.
        """
        self.load(version)
        self.journal.promote(version, now, expected)

    def rollback(self, now: datetime) -> int:
        """Back to the champion before this one; returns it. Twice goes two back.

        Raises Conflict where there is none, CheckpointError when that one is damaged.
        """
        champions = self.journal.champions()
        self.load(champions[-2] if len(champions) > 1 else 0)
        return self.journal.rollback(now, expected=champions[-1])

    def _read(self, version: int, name: str) -> bytes:
        folder = self.root / f"{version:04d}"
        if not folder.is_dir():
            there = ", ".join(map(str, self.versions()))
            raise NotFound(f"no gate version {version}; there are: {there}")
        try:
            if (folder / name).stat().st_size > FILE_LIMIT:
                raise _damaged(version, f"{name} is larger than {FILE_LIMIT:,} bytes")
            return (folder / name).read_bytes()
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
        "bias": learned.bias.astype(np.float32),
        "presence": learned.presence.astype(np.float32),
        "rated": learned.rated.astype(np.int64),
        "intercept": np.array([learned.intercept], np.float32),
        "slope": np.array([learned.slope], np.float32),
        **{f"residual.{m}": table.astype(np.float32) for m, table in learned.residuals.items()},
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
    widths = {m: t.shape[-1] for m in MODALITIES if (t := tensors.get(f"residual.{m}")) is not None and t.ndim == 2}
    shapes = {"bias": (n,), "presence": (n, len(MODALITIES)), "rated": (n,), "intercept": (1,), "slope": (1,)}
    shapes |= {f"residual.{m}": (n, width) for m, width in widths.items()}
    found = {name: (tensor.shape, str(tensor.dtype)) for name, tensor in tensors.items()}
    wanted = {name: (shape, "int64" if name == "rated" else "float32") for name, shape in shapes.items()}
    if found != wanted:
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise _damaged(version, f"tensors {', '.join(wrong[:5])} are missing, unknown or of another shape or type")
    values = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    for name, value in values.items():
        if not np.isfinite(value).all() or (name != "rated" and np.abs(value).max(initial=0) > LARGEST):
            raise _damaged(version, f"tensor {name} holds values that are not finite or above {LARGEST:g}")
    return Learned(
        experts=manifest.experts,
        bias=values["bias"],
        presence=values["presence"],
        residuals={m: values[f"residual.{m}"] for m in widths},
        rated=tensors["rated"].astype(np.int64),
        intercept=float(values["intercept"][0]),
        slope=float(values["slope"][0]),
        revisions=manifest.encoder_revisions,
    )


def _damaged(version: int, why: str) -> CheckpointError:
    return CheckpointError(f"gate version {version} is refused: {why}; serve another version or train again")


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
