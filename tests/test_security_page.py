"""SECURITY.md names a test or a drill for each promise; they are there, and so are the settings it tells of."""

import re
from pathlib import Path

from multimoe.config import Catalog

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def promises() -> list[str]:
    """What shows each promise."""
    table = PAGE.split("## What is promised")[1].split("\n## ")[0]
    return [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")][1:]


def test_every_promise_is_shown_by_tests_or_drills_that_exist() -> None:
    assert len(promises()) > 15
    for shown in promises():
        names = re.findall(r"`(\w+)`", shown)
        assert names
        for name in names:
            folder = ROOT / "tests" if name.startswith("test_") else ROOT / "tests" / "drills"
            assert (folder / f"{name}.py").is_file(), name


def test_every_setting_it_names_is_one() -> None:
    table = PAGE.split("## Settings")[1].split("\n## ")[0]
    settings = re.findall(
        r"`([a-z]+(?:\.[a-z_]+)?)`", " ".join(row.split("|")[1] for row in table.splitlines()[2:] if row)
    )
    assert len(settings) > 8
    for setting in settings:
        model = Catalog
        for key in setting.split("."):
            assert key in model.model_fields, setting
            model = model.model_fields[key].annotation  # type: ignore[assignment]  # a model, but at the end
