"""The pages of docs/concepts: their code runs and prints what they say, what they name exists."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gateway.cli import app
from multimoe.config import GateSpec, Settings, Strategy

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "concepts").glob("*.md"))
EXAMPLE = re.compile(r"```python\n(.*?)```\s*```text\n(.*?)```", re.DOTALL)


def name(page: Path) -> str:
    return page.stem


def test_there_is_a_page_for_each_concept() -> None:
    assert [page.stem for page in PAGES] == ["calibration", "gating", "off-policy", "promotion", "propensities"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_example_prints_what_the_page_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    examples = EXAMPLE.findall(text)
    assert len(examples) == text.count("```python\n") > 0
    names: dict[str, Any] = {}
    for code, said in examples:
        printed = StringIO()
        with redirect_stdout(printed):
            exec(code, names)  # noqa: S102  # the pages are ours
        assert [line.rstrip() for line in printed.getvalue().splitlines()] == said.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_commands_and_pages_it_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for setting in re.findall(r"`gate\.([a-z_.]+)", text):
        assert exists(setting), f"no setting gate.{setting}"
    command: Any
    for words in re.findall(r"(?:`|\$ )multimoe ([a-z]+(?: [a-z]+)?)", text):
        command = get_command(app)
        for word in words.split():
            if hasattr(command, "commands"):
                assert word in command.commands, f"no command {words!r}"
                command = command.commands[word]
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_page_on_gating_has_a_row_for_every_strategy() -> None:
    text = (ROOT / "docs" / "concepts" / "gating.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)` \|[^|]*\|[^|]*\|$", text, re.MULTILINE)) - {
        "cheap",
        "balanced",
        "best",
    } == set(Strategy.__args__)


def exists(setting: str) -> bool:
    """Whether `a.b` is a field of `GateSpec`'s field `a`."""
    model: Any = GateSpec
    for word in setting.split("."):
        if not (isinstance(model, type) and issubclass(model, Settings) and word in model.model_fields):
            return False
        model = model.model_fields[word].annotation
    return True
