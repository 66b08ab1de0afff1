"""`python -m gateway.demo`: start the product, take the steps, show a row for each, stop, exit 0 if all were right."""

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.cli.console import err, explain, short
from gateway.cli.session import Session
from gateway.cli.weights import fetch
from gateway.demo.product import running
from gateway.demo.steps import STEPS, Step
from gateway.demo.visitor import Seen, Visitor
from multimoe.errors import MultimoeError

WIDTH = 150  # columns, where no terminal says how wide it is
UNDER_WAY = "…"
Row = tuple[str, Seen, str]  # title, what came of it, what is wrong with it


def demo(
    catalog: Annotated[Path | None, typer.Option(envvar="MULTIMOE_CATALOG", help="The catalog file.")] = None,
    url: Annotated[str | None, typer.Option(help="Use this running product instead of starting one.")] = None,
) -> None:
    """Use the product as a person would, and say whether each step was right."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    try:
        session = Session(catalog)
        settings = session.catalog()
        fetch(settings.weights, settings.weight_uris())
        rows = visit(url, console) if url else _at_home(session.catalog_path, console)
    except (MultimoeError, KeyboardInterrupt) as error:
        raise typer.Exit(explain(error) or 1) from error
    wrong = [title for title, _, complaint in rows if complaint]
    console.print(f"{len(rows) - len(wrong)} of {len(STEPS)} steps right", style="red" if wrong else "green")
    raise typer.Exit(1 if wrong else 0)


def _at_home(catalog: Path, console: Console) -> list[Row]:
    started = time.monotonic()
    with console.status("starting the product …") as status, running(catalog.absolute()) as url:
        status.stop()
        console.print(f"{url} is ready after {time.monotonic() - started:.0f} s", markup=False)
        rows = visit(url, console)
        stopping = time.monotonic()
    console.print(f"stopped in {time.monotonic() - stopping:.0f} s")
    return rows


def visit(url: str, console: Console, steps: Sequence[Step] = STEPS) -> list[Row]:
    """Take every step, even after a wrong one, redrawing the table as they are done."""
    rows: list[Row] = []
    visitor = Visitor(url)
    with Live(table(rows), console=console, refresh_per_second=4) as live:
        for step in steps:
            began = time.monotonic()

            def tell(how_far: str, step: Step = step, began: float = began) -> None:
                now = (step.title, Seen(how_far, seconds=time.monotonic() - began), UNDER_WAY)
                live.update(table([*rows, now]))

            tell("")
            rows.append((step.title, *take(step, visitor, tell)))
            live.update(table(rows))
            if not console.is_terminal:  # the table comes in one piece at the end; say meanwhile how far it is
                err().print(f"{len(rows)}/{len(steps)} {step.title}: {rows[-1][2] or 'right'}", markup=False)
    if not console.is_terminal:
        console.print()  # rich ends its last drawing without one where it cannot draw again
    visitor.close()
    return rows


def take(step: Step, visitor: Visitor, tell: object) -> tuple[Seen, str]:
    """A step that cannot even be taken is wrong by its error."""
    began = time.monotonic()
    try:
        seen = step.run(visitor, tell)  # type: ignore[arg-type]  # as every caller passes it
    except Exception as error:  # the edge of the demo: whatever it is, the row says it
        return Seen("", seconds=time.monotonic() - began), f"{type(error).__name__}: {error}"
    took = seen.seconds or time.monotonic() - began
    return replace(seen, seconds=took), step.wrong(seen)


def table(rows: Sequence[Row]) -> Table:
    shown = Table(title="multimoe, as a person would use it", title_justify="left", show_lines=True)
    for column, options in COLUMNS.items():
        shown.add_column(column, **options)  # type: ignore[arg-type]  # rich's own names
    for number, (title, seen, complaint) in enumerate(rows, start=1):
        who = "\n".join(f"{expert} {weight:.0%}" for expert, weight in seen.experts.items())
        shown.add_row(str(number), title, who, f"{seen.seconds:.2f} s", Text(short(seen.text, 240)), mark(complaint))
    return shown


def mark(complaint: str) -> Text:
    if complaint == UNDER_WAY:
        return Text(complaint, "yellow")
    return Text(complaint, "red") if complaint else Text("right", "green")


COLUMNS: dict[str, dict[str, object]] = {
    "": {"justify": "right"},
    "step": {"ratio": 2},
    "experts": {"no_wrap": True},
    "latency": {"justify": "right", "no_wrap": True},
    "answer": {"ratio": 6},
    "is": {"ratio": 1},
}


if __name__ == "__main__":
    typer.run(demo)
