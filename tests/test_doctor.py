"""What the doctor finds on a machine that lacks something."""

import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gateway import doctor
from multimoe.config import Catalog, parse


def catalog(home: Path, **changes: Any) -> Catalog:
    echo = {
        "name": "echo",
        "backend": "experts.echo:Echo",
        "inputs": ["text"],
        "output": "text",
        "card": {"description": "Says it again."},
    }
    tree = {"home": str(home), "weights": str(home / "weights"), "gate": {"encoders": {}}, "experts": [echo | changes]}
    return parse(tree)


def test_a_port_in_use_is_noted_with_the_next_one_as_a_cure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        finding = doctor.port("127.0.0.1", number)
    assert finding.state == "note"
    assert f"--port {number + 1}" in finding.cure


def test_missing_weights_stop_the_product_and_name_the_command(tmp_path: Path) -> None:
    finding = doctor.weights(catalog(tmp_path, weights={"model": "pip://no-such@1.0/model.bin"}))
    assert (finding.state, finding.cure) == ("missing", "multimoe weights pull")


def test_a_damaged_weight_is_not_taken_for_a_present_one(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"other")
    uri = f"file:{tmp_path}/model.bin?sha256={'0' * 64}"
    finding = doctor.weights(catalog(tmp_path, weights={"model": uri}))
    assert (finding.state, "1 damaged" in finding.found) == ("missing", True)


def test_a_home_that_does_not_exist_yet_is_judged_by_where_it_would_be(tmp_path: Path) -> None:
    finding = doctor.store(catalog(tmp_path / "not" / "yet"))
    assert finding.state == "ok"
    assert f"{tmp_path} writable, SQLite {sqlite3.sqlite_version}, delete journal" in finding.found
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_stops_the_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # root may write everywhere, so it is pretended
    assert doctor.store(catalog(tmp_path)).state == "missing"


def test_little_shared_memory_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "SHM_NEEDED", 2**80)
    assert doctor.shared_memory(tmp_path).state == "note"
    assert doctor.shared_memory(tmp_path / "absent").state == "ok"


def test_this_environment_has_every_package_and_codec() -> None:
    assert doctor.packages().state == "ok"
    assert doctor.codecs().state == "ok"
