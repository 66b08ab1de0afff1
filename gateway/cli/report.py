"""`multimoe report`: all plots of what has become of the requests so far, in one offline page."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.gate import Follow, progress
from gateway.cli.past import history
from gateway.cli.session import session
from multimoe.errors import BadInput

UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def report(
    ctx: typer.Context,
    since: Annotated[
        str | None, typer.Option(help="Only requests since then: 90m, 24h, 7d, 4w or a date. Default: all.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
    plots: Annotated[
        Path | None, typer.Option(help="A folder for a PNG and a CSV of every plot.", show_default=False)
    ] = None,
) -> None:
    """Write one offline page with plots of routing, calibration, value, cost, overlap, latency, ratings, learning."""
    from multimoe.report import page

    past = history(session(ctx), moment(since, datetime.now(UTC)) if since else None)
    with progress() as bar:
        made = page.plots(past, Follow(bar))
    part = output.with_name(output.name + ".part")
    part.write_text(page.html(past, made), encoding="utf-8")
    part.replace(output)
    beside = page.write_plots(made, plots) if plots else []
    drawn = sum(plot.draw is not None for plot in made)
    typer.echo(
        f"{output}: {drawn} of {len(made)} plots have data" + (f"; {len(beside)} files in {plots}" if plots else "")
    )


def moment(since: str, now: datetime) -> datetime:
    """A time ago ("7d") or a date ("2026-11-01", UTC where it says no other). Raises BadInput."""
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", since):
        return now - float(ago[1]) * UNITS[ago[2]]
    try:
        date = datetime.fromisoformat(since)
    except ValueError as error:
        raise BadInput(
            f"--since {since!r}: give a time such as 90m, 24h, 7d or 4w, or a date like 2026-11-01"
        ) from error
    return date if date.tzinfo else date.replace(tzinfo=UTC)
