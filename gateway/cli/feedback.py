"""`multimoe feedback`: how much has been rated, and the ratings as a file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import AsJson, err, print_json, print_table
from gateway.cli.session import session

app = typer.Typer(name="feedback", help="Count and export ratings.", no_args_is_help=True)


@app.command()
def stats(ctx: typer.Context, as_json: AsJson = False) -> None:
    """How many answers and ratings there are, in all and by expert."""
    with session(ctx).client() as client:
        counts = client.stats()
    if as_json:
        print_json(counts)
        return
    print_table(("what", "value "), [(k, v) for k, v in counts.items() if not isinstance(v, dict | list)])
    for name, inner in counts.items():
        if isinstance(inner, dict) and inner and all(isinstance(v, dict) for v in inner.values()):
            columns = list(dict.fromkeys(key for row in inner.values() for key in row))
            typer.echo()
            print_table([name, *(f"{c} " for c in columns)], [(k, *map(row.get, columns)) for k, row in inner.items()])


@app.command()
def export(
    ctx: typer.Context,
    format: Annotated[str, typer.Option(help="jsonl, csv, trl-kto, trl-dpo or vw.")] = "jsonl",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A file; default: standard output.")] = None,
) -> None:
    """Every rating with the decision it rates."""
    with session(ctx).client() as client:
        pieces = client.export(format)
        if output is None:
            sys.stdout.flush()
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        part = output.with_name(output.name + ".part")
        with part.open("wb") as file:
            file.writelines(pieces)
        part.replace(output)
    err().print(f"wrote {output}", markup=False)
