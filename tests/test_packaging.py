"""What is shipped: the wheel's contents, pins for every dependency, help for every command, a schema that fits."""

import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from gateway.cli import app

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.]+)")
LAUNCHERS = {"pip", "setuptools", "wheel"}  # what a virtual environment is made with


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The paths inside the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    return set(zipfile.ZipFile(next(folder.glob("*.whl"))).namelist())


def tracked(*folders: str) -> list[str]:
    """Files that are part of the project, committed or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git does not know this folder, so nothing says which files belong to the project")
    return [path for path in listed.splitlines() if (ROOT / path).is_file()]


def test_the_wheel_holds_every_file_of_the_three_packages(shipped: set[str]) -> None:
    assert set(tracked("multimoe", "experts", "gateway")) - shipped == set()


def test_the_wheel_holds_types_migrations_and_assets(shipped: set[str]) -> None:
    assert {f"{package}/py.typed" for package in ("multimoe", "experts", "gateway")} <= shipped
    assert any(path.startswith("multimoe/migrations/versions/") for path in shipped)
    assert "gateway/assets/question.ogg" in shipped


def test_the_wheel_holds_nothing_else(shipped: set[str]) -> None:
    tops = {path.split("/")[0] for path in shipped}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"multimoe", "experts", "gateway"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    matches = [PIN.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert all(matches), "every line of constraints.txt is NAME==VERSION: no addresses, paths or ranges"
    return {canonicalize_name(m["name"]): m["version"] for m in matches if m}


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """Every distribution that `name` needs here, with those that they need."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for line in importlib.metadata.requires(name) or ():
        one = Requirement(line)
        wanted = one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        if wanted:
            yield canonicalize_name(one.name)
            yield from needed(one.name, frozenset(one.extras), seen)


def test_every_dependency_is_pinned_to_what_is_tested() -> None:
    names = set(needed("multimoe", frozenset({"dev"}), set())) - LAUNCHERS - {"multimoe"}
    installed = {name: importlib.metadata.version(name) for name in names}
    pinned = pins()
    assert {name: pinned.get(name) for name in names} == installed


def test_the_torch_packages_are_of_one_release() -> None:
    pinned = pins()
    assert pinned["torch"].split(".")[:2] == pinned["torchaudio"].split(".")[:2]
    assert int(pinned["torchvision"].split(".")[1]) == int(pinned["torch"].split(".")[1]) + 15


def commands(node: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    node = node or typer.main.get_command(app)
    yield path
    for name, child in getattr(node, "commands", {}).items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*path, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.stdout


def test_the_printed_schema_accepts_the_shipped_catalog() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(CliRunner().invoke(app, ["config", "schema"]).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((ROOT / "deploy/local.yaml").read_text()), schema)


def test_a_shown_catalog_is_a_catalog_again(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["config", "show", "--catalog", str(ROOT / "deploy/local.yaml")])
    (file := tmp_path / "shown.yaml").write_text(shown.stdout)
    again = CliRunner().invoke(app, ["config", "show", "--catalog", str(file)])
    assert again.stdout == shown.stdout
