"""`multimoe doctor`: is everything here that the product needs?"""

from typing import Annotated

import typer

from gateway.cli.console import FAILED, AsJson, out, print_json, table
from gateway.cli.session import session

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}


def doctor(
    ctx: typer.Context,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster to look at, such as `auto`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look over this machine, and say what to do about what is missing."""
    from gateway.doctor import examine

    findings = list(examine(session(ctx).catalog(), ray_address))
    if as_json:
        print_json([finding.model_dump() for finding in findings])
    else:
        rows = [(f.name, MARKS[f.state], f.found, f.cure) for f in findings]
        out().print(table(("what", "", "found", "what to do"), rows))
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(FAILED)
