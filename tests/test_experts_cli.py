"""`multimoe experts new`, `check`, `list --installed` and `add NAME`: from an empty folder to an installed package."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import Gateway, gateway
from typer.testing import CliRunner, Result

from gateway.cli import app
from multimoe.backends import entry_beside, find_backend, find_offer, load_expert
from multimoe.config import Card, ExpertSpec
from multimoe.errors import BadConfig

__all__ = ["gateway"]  # a fixture

KINDS = (
    ("text", "text"),
    ("text,image,audio", "text"),
    ("text", "labels"),
    ("text,image,audio", "labels"),
    ("image", "words"),
    ("image", "objects"),
    ("audio", "transcript"),
    ("audio", "events"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


# --- a new one ---


@pytest.mark.parametrize(("inputs", "output"), KINDS)
def test_a_new_expert_passes_as_it_was_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, inputs: str, output: str
) -> None:
    assert run("experts", "new", "my-own", "--inputs", inputs, "--output", output).exit_code == 0
    monkeypatch.chdir(folder / "my-own")
    done = run("experts", "check", "my_own.expert:MyOwn", "--json")
    states = {finding["promise"]: finding["state"] for finding in json.loads(done.stdout)}
    assert done.exit_code == 0
    assert states["does not mix requests up"] == "kept"


def test_its_own_test_passes(folder: Path) -> None:
    run("experts", "new", "my-own")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tested = subprocess.run(command, cwd=folder / "my-own", capture_output=True, text=True, check=False)
    assert "1 passed" in tested.stdout, tested.stdout


def test_a_new_expert_overwrites_nothing(folder: Path) -> None:
    (folder / "mine").mkdir()
    done = run("experts", "new", "mine")
    assert done.exit_code == 1
    assert "nothing is overwritten" in done.stderr
    assert list((folder / "mine").iterdir()) == []


@pytest.mark.parametrize("name", ["Mine", "json", "class", "../mine", "my_own"])
def test_refuses_a_name_that_no_package_can_have(folder: Path, name: str) -> None:
    assert run("experts", "new", name).exit_code == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--output", "words"), "--inputs image"),
        (("--output", "smells"), "is none of text, labels"),
        (("--inputs", "text,smell"), "is none of text, image, audio"),
    ],
)
def test_refuses_what_no_expert_can_be(folder: Path, words: tuple[str, ...], told: str) -> None:
    done = run("experts", "new", "mine", *words)
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())


# --- checking ---


def test_check_names_what_is_broken_and_exits_with_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("experts", "new", "mine")
    file = folder / "mine/mine/expert.py"
    file.write_text(file.read_text().replace("-item[1]", "item[1]"))
    monkeypatch.chdir(folder / "mine")
    done = run("experts", "check", "mine.expert:Mine")
    assert done.exit_code == 1
    assert "labels are not sorted" in done.stdout
    assert "1 broken" in done.stdout


def test_check_takes_the_entry_it_is_given(folder: Path) -> None:
    (file := folder / "entry.yaml").write_text(
        "name: e\nbackend: a:B\ninputs: [text, image, audio]\noutput: text\ncard: {description: d}\n"
    )
    done = run("experts", "check", "experts.echo:Echo", "--spec", str(file))
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "e: 13 promises kept, 0 broken")


def test_check_says_what_to_write_where_nothing_says_what_an_expert_reads(folder: Path) -> None:
    (folder / "mine.py").write_text("")
    done = run("experts", "check", "mine:Mine")
    assert done.exit_code == 1
    assert "name the file with --spec FILE" in done.stderr


# --- backends by name ---


def spec(backend: str) -> ExpertSpec:
    return ExpertSpec(name="e", backend=backend, inputs=frozenset(("text",)), output="text", card=Card(description="d"))


def no_weights(uri: str) -> Path:
    raise AssertionError(uri)


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("experts.ecko:Echo", "No module named 'experts.ecko'"),
        ("experts.echo:Ecko", "has no attribute 'Ecko'"),
        ("experts.echo:Usage", "is no expert"),
        ("ecko", "no installed package offers an expert 'ecko'"),
    ],
)
def test_a_backend_that_cannot_be_had_is_refused_in_words(backend: str, told: str) -> None:
    with pytest.raises(BadConfig, match=told):
        load_expert(spec(backend), no_weights)


def test_a_module_that_breaks_while_it_is_imported_is_a_mistake_in_the_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brittle.py").write_text("raise RuntimeError('no licence found')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadConfig, match="'brittle:It' cannot be imported: no licence found"):
        load_expert(spec("brittle:It"), no_weights)


def offer(folder: Path, package: str, **points: str) -> None:
    """A package as pip leaves it behind: its metadata with entry points."""
    (info := folder / f"{package}-1.0.dist-info").mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[multimoe.experts]", *lines, ""]))


def test_a_package_s_expert_is_found_by_its_name_and_nearly_by_another(folder: Path) -> None:
    offer(folder, "parrot", parrot="experts.echo:Echo")
    sys.path.insert(0, str(folder))
    assert find_backend("parrot").__name__ == "Echo"
    assert load_expert(spec("parrot"), no_weights).spec.backend == "parrot"
    with pytest.raises(BadConfig, match="did you mean 'parrot'"):
        find_offer("parot")


def test_a_name_that_two_packages_offer_is_refused(folder: Path) -> None:
    offer(folder, "parrot", parrot="experts.echo:Echo")
    offer(folder, "macaw", parrot="experts.echo:Echo")
    sys.path.insert(0, str(folder))
    with pytest.raises(BadConfig, match="offered by macaw and parrot"):
        find_offer("parrot")


def test_of_several_entries_beside_a_module_the_named_one_counts(folder: Path) -> None:
    entry = "- {{name: {0}, backend: 'birds:{0}', inputs: [text], output: text, card: {{description: d}}}}\n"
    (folder / "birds.py").write_text("")
    (folder / "birds.yaml").write_text(entry.format("tit") + entry.format("owl"))
    sys.path.insert(0, str(folder))
    found = entry_beside("birds:Owl", "owl")
    assert found is not None
    assert found.backend == "birds:owl"
    with pytest.raises(BadConfig, match="holds 2 entries"):
        entry_beside("birds:Owl")


def test_an_installed_package_is_listed_checked_and_added(folder: Path, gateway: Gateway) -> None:
    run("experts", "new", "my-own")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", folder / "site", folder / "my-own"], check=True, capture_output=True)
    sys.path.insert(0, str(folder / "site"))
    (listed,) = [o for o in json.loads(run("experts", "list", "--installed", "--json").stdout) if o["name"] == "my-own"]
    assert (listed["backend"], listed["entry"]["output"]) == ("my_own.expert:MyOwn", "labels")
    assert "my-own 0.1.0" in run("experts", "list", "--installed").stdout
    assert "0 broken" in run("experts", "check", "my-own").stdout
    gateway.script["POST /v1/experts"] = (201, {"name": "my-own"})
    assert gateway.run("experts", "add", "my-own").exit_code == 0
    assert gateway.sent[-1][1]["backend"] == "my_own.expert:MyOwn"


def test_adding_what_is_neither_a_file_nor_installed_is_refused_here(gateway: Gateway) -> None:
    assert "there is no file nowhere.yaml" in gateway.run("experts", "add", "nowhere.yaml").stderr
    assert "no installed package offers" in gateway.run("experts", "add", "nobody").stderr
    assert gateway.sent == []
