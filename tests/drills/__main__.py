"""`make drill`: every drill at full scale, one after the other, and one table. Names or numbers choose (`T31 media`).

Each module of this folder that has `DRILLS`, a tuple of functions `(Scale) -> Iterator[Row]`, takes part. A drill that
breaks is a row that is not met; the others still run. Exits with 1 when a row is not met.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from rich.console import Console
from rich.table import Table

from drills.row import Row, Scale

Drill = Callable[[Scale], Iterator[Row]]


def found() -> Iterator[tuple[str, Drill]]:
    """Module and drill, by name."""
    for module in sorted(iter_modules([str(Path(__file__).parent)]), key=lambda module: module.name):
        if not module.name.startswith("_"):
            for drill in getattr(import_module(f"drills.{module.name}"), "DRILLS", ()):
                yield module.name, drill


def run(module: str, drill: Drill, scale: Scale, console: Console) -> list[Row]:
    console.print(f"[bold]{module}.{drill.__name__}[/]")
    began, rows = time.monotonic(), []
    try:
        for row in drill(scale):
            rows.append(row)
            console.print(f"  {row.test} {row.what}: {row.figure} (goal {row.goal}) {verdict(row)}", highlight=False)
    except Exception:
        traceback.print_exc()
        rows.append(Row("?", f"{module}.{drill.__name__}", "", "broke; see above", "to end", met=False))
    console.print(f"  {time.monotonic() - began:.0f} s", highlight=False)
    return rows


def verdict(row: Row) -> str:
    return "met" if row.met else "NOT MET"


def cells(row: Row) -> tuple[str, ...]:
    what = f"control: {row.what}" if row.control else row.what
    return row.test, what, row.tried, row.figure, row.goal, verdict(row)


def table(rows: list[Row]) -> Table:
    shown = Table("test", "what", "tried", "figure", "goal", "", title="Drills")
    for row in rows:
        shown.add_row(*cells(row))
    return shown


def markdown(rows: list[Row]) -> str:
    """The table for a document."""
    lines = ["| test | what | tried | figure | goal | |", "|---|---|---|---|---|---|"]
    for row in rows:
        told = [" ".join(cell.split()).replace("|", "\\|") for cell in cells(row)]
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make drill", description=__doc__)
    parser.add_argument("only", nargs="*", help="modules or functions by name; all without")
    parser.add_argument("--quick", action="store_true", help="the scale of the everyday tests")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    asked = parser.parse_args()
    scale: Scale = "quick" if asked.quick else "long"
    console, began, rows = Console(), time.monotonic(), list[Row]()
    for module, drill in found():
        if not asked.only or module in asked.only or drill.__name__ in asked.only:
            rows += run(module, drill, scale, console)
            if asked.json:  # after each: one that is stopped leaves what it found
                asked.json.write_text(json.dumps([vars(row) for row in rows], indent=1))
    Console(width=None if console.is_terminal else 200).print(table(rows))
    missed = sum(not row.met for row in rows)
    console.print(
        f"{len(rows) - missed} of {len(rows)} met in {(time.monotonic() - began) / 60:.1f} min", highlight=False
    )
    if asked.markdown:
        asked.markdown.write_text(markdown(rows))
    return 1 if missed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
