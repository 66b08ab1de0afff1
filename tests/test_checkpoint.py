import hashlib
import io
import json
import logging
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from multimoe.checkpoint import FILE_LIMIT, HEADER_LIMIT, MANIFEST, TABLES, TENSORS, Manifest, Registry
from multimoe.errors import CheckpointError, Conflict, NotFound
from multimoe.journal import Step
from multimoe.quality import HEAD, Axes, Learned

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
TOLD = Manifest(created=NOW, parent=0, ratings=7, reason="better", settings={"seed": 3.0})


def promote(registry: Registry, version: int) -> None:
    registry.take(Step(at=NOW, action="promoted", version=version))


def learned(seed: int = 0) -> Learned:
    draw = np.random.default_rng(seed).normal
    single = lambda *shape: draw(size=shape).astype(np.float32)  # noqa: E731
    q = HEAD + 3 + 2
    return Learned(
        experts=("a", "b"),
        axes={"text": Axes(single(512, 3), single(3)), "image": Axes(single(1280, 2), single(2))},
        common=draw(size=q),
        own=draw(size=(2, q)),
        covariance=single(2, q, q),
        variance=draw(size=q),
        rated=np.array([3, 5]),
        balance=draw(size=2),
        tilt=draw(size=(2, q)),
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
    for table in TABLES:
        assert getattr(back, table) == pytest.approx(getattr(learned(), table), rel=1e-6), table
    assert np.array_equal(back.axes["image"].basis, learned().axes["image"].basis)
    assert np.array_equal(back.axes["text"].shift, learned().axes["text"].shift)
    assert back.rated.tolist() == [3, 5]
    assert back.slope == pytest.approx(0.7)
    assert back.revisions == {"text": "t1", "image": "i1"}
    assert registry.manifest(1) == written
    assert (written.version, written.parent, written.ratings, written.promoted) == (1, 0, 7, False)


def test_versions_rise_and_none_is_promoted_by_being_written(registry):
    assert [registry.write(learned(), TOLD).version for _ in range(3)] == [1, 2, 3]
    assert registry.versions() == (0, 1, 2, 3)
    assert registry.champion() == 0


def test_a_number_that_was_promoted_once_is_not_given_again(registry):
    registry.write(learned(), TOLD)
    promote(registry, 1)
    for file in (registry.root / "0001").iterdir():
        file.unlink()
    (registry.root / "0001").rmdir()

    assert registry.write(learned(), TOLD).version == 2


def test_a_promoted_version_serves_and_its_manifest_says_so(registry):
    registry.write(learned(), TOLD)
    promote(registry, 1)

    assert registry.champion() == 1
    assert registry.manifest(1).promoted


def test_rollback_returns_to_the_champion_before_and_keeps_the_version(registry):
    for _ in range(2):
        promote(registry, registry.write(learned(), TOLD).version)

    assert registry.take(Step(at=NOW, action="rolled back", version=1)).champion == registry.champion() == 1
    assert registry.take(Step(at=NOW, action="rolled back", version=0)).champion == registry.champion() == 0
    assert registry.versions() == (0, 1, 2)
    with pytest.raises(Conflict):
        registry.take(Step(at=NOW, action="rolled back", version=0))


def test_a_version_on_trial_is_not_promoted_yet_and_must_be_one_that_loads(registry):
    for _ in range(2):
        registry.write(learned(), TOLD.model_copy(update={"proven": True}))
    seen = registry.standing()
    registry.take(Step(at=NOW, action="canary", version=1, share=0.1), seen)
    assert not registry.manifest(1).promoted
    assert [(v, place.stage) for v, place in sorted(registry.places().items())] == [
        (0, "champion"),
        (1, "canary"),
        (2, "candidate"),
    ]
    with pytest.raises(Conflict):
        registry.take(Step(at=NOW, action="promoted", version=2), seen)
    with pytest.raises(NotFound):
        registry.take(Step(at=NOW, action="shadow", version=9))
    (registry.root / "0001" / TENSORS).write_bytes(b"")
    with pytest.raises(CheckpointError):
        registry.take(Step(at=NOW, action="promoted", version=1))
    registry.take(Step(at=NOW, action="withdrawn", version=1))  # a damaged one can still be taken off
    assert registry.standing() == seen


def test_a_version_that_proved_nothing_is_refused_and_one_held_for_a_person_is_not(registry):
    registry.write(learned(), TOLD)
    registry.write(learned(), TOLD.model_copy(update={"outcome": "held"}))
    assert (registry.places()[1].stage, registry.places()[1].reason) == ("refused", "better")
    assert registry.places()[2].stage == "candidate"


def test_a_version_that_does_not_exist_is_not_found(registry):
    registry.write(learned(), TOLD)

    with pytest.raises(NotFound, match="no gate version 9; there are: 0, 1"):
        registry.load(9)
    with pytest.raises(NotFound):
        promote(registry, 9)


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
    return _changed(balance=np.array([0.0, value], np.float32))


CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "torn": lambda data: data[: len(data) // 2],
    "torn by one byte": lambda data: data[:-1],
    "with a tail": lambda data: data + b"\0",
    "a pickle": lambda data: pickle.dumps({"own": [1.0]}),
    "an object array": lambda data: _array_pickle(),
    "a zip": lambda data: b"PK\x03\x04" + data,
    "a huge header": lambda data: (2**63).to_bytes(8, "little") + data[8:],
    "a header over the limit": lambda data: (HEADER_LIMIT + 1).to_bytes(8, "little") + b" " * (HEADER_LIMIT + 1),
    "many tensors": lambda data: safetensors.numpy.save({f"{i}": np.zeros(1, np.float32) for i in range(5000)}),
    "NaN": _filled(np.nan),
    "infinite": _filled(np.inf),
    "too large": _filled(1e38),
    "one row more": _changed(balance=np.zeros(3, np.float32)),
    "another type": _changed(balance=np.zeros(2, np.float64)),
    "no own": _changed(own=None),
    "an unknown tensor": _changed(extra=np.zeros(2, np.float32)),
    "a flat basis": _changed(**{"basis.text": np.zeros(2, np.float32)}),
    "a basis of another rank": _changed(**{"basis.text": np.zeros((512, 4), np.float32)}),
}


@pytest.mark.parametrize("vouched", [False, True], ids=["under the old hash", "under its own hash"])
@pytest.mark.parametrize("content", CONTENTS)
def test_damaged_tensors_are_refused_even_when_the_manifest_vouches_for_them(registry, content, vouched):
    registry.write(learned(), TOLD)
    promote(registry, 1)
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
        promote(registry, 2)
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
        registry.write(replace(Learned().rows(["a"]), balance=np.array([np.nan])), TOLD)
    assert registry.versions() == (0,)


def test_when_the_champion_is_damaged_the_last_sound_one_serves(registry, caplog):
    for _ in range(3):
        promote(registry, registry.write(learned(), TOLD).version)
    (registry.root / "0003" / TENSORS).write_bytes(b"junk")
    (registry.root / "0002" / MANIFEST).unlink()

    with caplog.at_level(logging.WARNING):
        assert registry.sound_champion() == 1
    assert "gate version 3 cannot serve" in caplog.text


def test_when_everything_is_damaged_the_cards_serve(registry, caplog):
    promote(registry, registry.write(learned(), TOLD).version)
    registry.journal.path.write_text("junk\n")

    assert registry.sound_champion() == 0
    assert "nobody knows" in caplog.text


class PowerCut(BaseException):
    """Nothing in the product catches it."""


def test_a_crash_at_any_step_leaves_the_old_versions_or_a_whole_new_one(registry, monkeypatch):
    promote(registry, registry.write(learned(), TOLD).version)
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
                promote(registry, number)
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
