"""How the command line speaks: results to stdout, bars and complaints to stderr, one sentence for an error."""

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from multimoe.errors import MultimoeError

FAILED, USAGE, NOT_BETTER, UNREACHABLE = 1, 2, 3, 4  # exit codes beside 0
INTERRUPTED = 130  # as a shell reports SIGINT
PIPED_WIDTH = 160  # columns, where no terminal says how wide it is

Json = dict[str, Any]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]


def out() -> Console:
    """Standard output as it is now (tests and pipes replace it); colours only on a terminal and without NO_COLOR."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def err() -> Console:
    return Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> None:
    """A column whose name ends in a blank is aligned to the right."""
    out().print(table(columns, rows, title), markup=False)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None) -> Table:
    made = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in columns:
        made.add_column(column.rstrip(), justify="right" if column.endswith(" ") else "left")
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def explain(error: BaseException) -> int | None:
    """Say what went wrong; the exit code it means, or None for an error that is not ours to explain."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, MultimoeError):
        where = f" ({error.param})" if error.param else ""
        err().print(f"error: {error.message}{where}", style="red", markup=False, soft_wrap=True)
        return UNREACHABLE if error.code == "unreachable" else FAILED
    if isinstance(error, OSError):
        err().print(f"error: {error.strerror or error}: {error.filename or ''}", style="red", markup=False)
        return FAILED
    return None


def short(text: object, width: int = 60) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def plain(expert: object) -> str:
    """An expert's own name, whether the API says `vision` or `multimoe/vision`."""
    return str(expert).removeprefix("multimoe/")


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
