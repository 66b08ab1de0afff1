import hashlib
import io
import json
import logging
import os
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from multimoe.checkpoint import FILE_LIMIT, HEADER_LIMIT, MANIFEST, TENSORS, Manifest, Registry
from multimoe.errors import CheckpointError, Conflict, NotFound
from multimoe.gate import Learned

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
TOLD = Manifest(created=NOW, parent=0, ratings=7, reason="better", settings={"seed": 3.0})


def learned(seed: int = 0) -> Learned:
    generator = np.random.default_rng(seed)
    return Learned(
        experts=("a", "b"),
        bias=generator.normal(size=2),
        presence=generator.normal(size=(2, 3)),
        residuals={"text": generator.normal(size=(2, 384)), "image": generator.normal(size=(2, 1280))},
        rated=np.array([3, 5]),
        intercept=0.25,
        slope=0.7,
        revisions={"text": "t1", "image": "i1"},
    )


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "gates")


def test_version_0_is_always_there_and_champion(registry):
    assert registry.versions() == (0,)
    assert registry.champion() == registry.sound_champion() == 0
    assert registry.load(0).experts == ()
    assert registry.manifest(0).promoted


def test_what_was_written_is_loaded_again(registry):
    written = registry.write(learned(), TOLD)
    back = registry.load(1, {"text": "t1", "image": "i1"})

    assert back.experts == ("a", "b")
    assert back.bias == pytest.approx(learned().bias, rel=1e-6)
    assert back.residuals["image"] == pytest.approx(learned().residuals["image"], rel=1e-6)
    assert back.rated.tolist() == [3, 5]
    assert (back.intercept, back.slope) == (0.25, pytest.approx(0.7))
    assert back.revisions == {"text": "t1", "image": "i1"}
    assert registry.manifest(1) == written
    assert (written.version, written.parent, written.ratings, written.promoted) == (1, 0, 7, False)


def test_versions_rise_and_none_is_promoted_by_being_written(registry):
    assert [registry.write(learned(), TOLD).version for _ in range(3)] == [1, 2, 3]
    assert registry.versions() == (0, 1, 2, 3)
    assert registry.champion() == 0


def test_a_number_that_was_promoted_once_is_not_given_again(registry):
    registry.write(learned(), TOLD)
    registry.promote(1, NOW)
    for file in (registry.root / "0001").iterdir():
        file.unlink()
    (registry.root / "0001").rmdir()

    assert registry.write(learned(), TOLD).version == 2


def test_a_promoted_version_serves_and_its_manifest_says_so(registry):
    registry.write(learned(), TOLD)
    registry.promote(1, NOW)

    assert registry.champion() == 1
    assert registry.manifest(1).promoted


def test_rollback_returns_to_the_champion_before_and_keeps_the_version(registry):
    for _ in range(2):
        registry.promote(registry.write(learned(), TOLD).version, NOW)

    assert registry.rollback(NOW) == 1
    assert registry.rollback(NOW) == 0
    assert registry.versions() == (0, 1, 2)
    with pytest.raises(Conflict):
        registry.rollback(NOW)


def test_a_version_that_does_not_exist_is_not_found(registry):
    registry.write(learned(), TOLD)

    with pytest.raises(NotFound, match="no gate version 9; there are: 0, 1"):
        registry.load(9)
    with pytest.raises(NotFound):
        registry.promote(9, NOW)


def test_a_gate_of_another_encoder_is_refused(registry):
    registry.write(learned(), TOLD)

    with pytest.raises(CheckpointError, match="image encoder 'i1', the catalog has 'i2'"):
        registry.load(1, {"text": "t1", "image": "i2"})


def _array_pickle() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _changed(**tensors: np.ndarray | None) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        whole = {**safetensors.numpy.load(data), **tensors}
        return safetensors.numpy.save({name: t for name, t in whole.items() if t is not None})

    return change


def _filled(value: float) -> Callable[[bytes], bytes]:
    return _changed(bias=np.array([0.0, value], np.float32))


CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "torn": lambda data: data[: len(data) // 2],
    "torn by one byte": lambda data: data[:-1],
    "with a tail": lambda data: data + b"\0",
    "a pickle": lambda data: pickle.dumps({"bias": [1.0]}),
    "an object array": lambda data: _array_pickle(),
    "a zip": lambda data: b"PK\x03\x04" + data,
    "a huge header": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "a header over the limit": lambda data: (HEADER_LIMIT + 1).to_bytes(8, "little") + b" " * (HEADER_LIMIT + 1),
    "many tensors": lambda data: safetensors.numpy.save({f"{i}": np.zeros(1, np.float32) for i in range(5000)}),
    "NaN": _filled(np.nan),
    "infinite": _filled(np.inf),
    "too large": _filled(1e38),
    "one row more": _changed(bias=np.zeros(3, np.float32)),
    "another type": _changed(bias=np.zeros(2, np.float64)),
    "no bias": _changed(bias=None),
    "an unknown tensor": _changed(extra=np.zeros(2, np.float32)),
    "a flat residual": _changed(**{"residual.text": np.zeros(2, np.float32)}),
    "a residual of no rows": _changed(**{"residual.text": np.zeros((0, 384), np.float32)}),
}


@pytest.mark.parametrize("vouched", [False, True], ids=["under the old hash", "under its own hash"])
@pytest.mark.parametrize("content", CONTENTS)
def test_damaged_tensors_are_refused_even_when_the_manifest_vouches_for_them(registry, content, vouched):
    registry.write(learned(), TOLD)
    registry.promote(1, NOW)
    registry.write(learned(1), TOLD)
    folder = registry.root / "0002"
    data = CONTENTS[content]((folder / TENSORS).read_bytes())
    (folder / TENSORS).write_bytes(data)
    if vouched:
        told = json.loads((folder / MANIFEST).read_text()) | {"sha256": hashlib.sha256(data).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(told))

    with pytest.raises(CheckpointError, match="gate version 2"):
        registry.load(2)
    with pytest.raises(CheckpointError):
        registry.promote(2, NOW)
    assert registry.champion() == 1


def test_any_flipped_bit_is_noticed(registry):
    registry.write(learned(), TOLD)
    path = registry.root / "0001" / TENSORS
    data = path.read_bytes()
    for at in np.random.default_rng(0).integers(len(data) * 8, size=40).tolist():
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            registry.load(1)


def test_a_file_too_large_is_not_even_read(registry):
    registry.write(learned(), TOLD)
    os.truncate(registry.root / "0001" / TENSORS, FILE_LIMIT + 1)  # sparse

    with pytest.raises(CheckpointError, match="larger than"):
        registry.load(1)


@pytest.mark.parametrize(
    "manifest", ["", "{}", '{"format": 2, "version": 1}', '{"version": 7}', '{"surprise": 1}', "[]"]
)
def test_a_damaged_or_foreign_manifest_is_refused(registry, manifest):
    registry.write(learned(), TOLD)
    (registry.root / "0001" / MANIFEST).write_text(manifest)

    with pytest.raises(CheckpointError):
        registry.load(1)


def test_a_missing_file_is_refused(registry):
    registry.write(learned(), TOLD)
    (registry.root / "0001" / TENSORS).unlink()

    with pytest.raises(CheckpointError, match="cannot be read"):
        registry.load(1)


def test_parameters_that_could_not_be_loaded_are_not_written(registry):
    with pytest.raises(CheckpointError, match="not finite"):
        registry.write(Learned(experts=("a",), bias=np.array([np.nan]), presence=np.zeros((1, 3)),
                               rated=np.array([1])), TOLD)  # fmt: skip
    assert registry.versions() == (0,)


def test_when_the_champion_is_damaged_the_last_sound_one_serves(registry, caplog):
    for _ in range(3):
        registry.promote(registry.write(learned(), TOLD).version, NOW)
    (registry.root / "0003" / TENSORS).write_bytes(b"junk")
    (registry.root / "0002" / MANIFEST).unlink()

    with caplog.at_level(logging.WARNING):
        assert registry.sound_champion() == 1
    assert "gate version 3 cannot serve" in caplog.text


def test_when_everything_is_damaged_the_cards_serve(registry, caplog):
    registry.promote(registry.write(learned(), TOLD).version, NOW)
    registry.journal.path.write_text("junk\n")

    assert registry.sound_champion() == 0
    assert "nobody knows" in caplog.text


class PowerCut(BaseException):
    """Nothing in the product catches it."""


def test_a_crash_at_any_step_leaves_the_old_versions_or_a_whole_new_one(registry, monkeypatch):
    registry.promote(registry.write(learned(), TOLD).version, NOW)
    steps, outcomes = 0, set()
    while True:
        left = steps
        with monkeypatch.context() as patched:
            for owner, name in ((os, "fsync"), (os, "open"), (os, "rename"), (Path, "mkdir"), (Path, "rename")):
                real = getattr(owner, name)

                def maybe(*arguments, real=real, **named):
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise PowerCut
                    return real(*arguments, **named)

                patched.setattr(owner, name, maybe)
            before = registry.versions()
            try:
                number = registry.write(learned(steps), TOLD).version
                registry.promote(number, NOW)
            except PowerCut:
                crashed = True
            else:
                crashed = False
        for version in registry.versions():
            registry.load(version)
        assert registry.champion() in registry.versions()
        outcomes.add(len(registry.versions()) - len(before))
        if not crashed:
            break
        steps += 1

    assert steps >= 6
    assert outcomes == {0, 1}


def test_leavings_of_a_dead_writer_are_swept_away_and_those_of_a_living_one_are_not(registry):
    registry.write(learned(), TOLD)
    for name, age in ((".draft-old", timedelta(hours=2)), (".draft-new", timedelta(minutes=5))):
        (registry.root / name).mkdir()
        when = (NOW - age).timestamp()
        os.utime(registry.root / name, (when, when))
    registry.write(learned(), TOLD)

    assert [f.name for f in registry.root.glob(".draft-*")] == [".draft-new"]


def test_an_unwritable_folder_says_so(tmp_path):
    (tmp_path / "gates").write_text("a file where the folder should be")

    with pytest.raises(CheckpointError, match="cannot be written"):
        Registry(tmp_path / "gates").write(learned(), TOLD)


def _write(root: Path, seed: int) -> int:
    return Registry(root).write(learned(seed), TOLD).version


def test_two_processes_that_write_at_once_get_different_numbers_and_both_are_whole(registry):
    with get_context("spawn").Pool(2) as pool:
        numbers = pool.starmap(_write, [(registry.root, seed) for seed in range(12)])

    assert sorted(numbers) == list(range(1, 13))
    for number in numbers:
        registry.load(number)
