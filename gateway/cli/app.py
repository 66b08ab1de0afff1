"""The commands put together: options that stand anywhere on the line, and errors that become an exit code."""

import os
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

import multimoe
from gateway.cli import (
    ask,
    calibrate,
    check,
    config,
    evaluate,
    experts,
    feedback,
    gate,
    keys,
    machine,
    report,
    scaffold,
    serve,
    weights,
)
from gateway.cli.console import explain
from gateway.cli.session import Session

ANYWHERE = {"--catalog": 1, "--url": 1, "--debug": 0}  # option -> how many values it takes


class Root(TyperGroup):
    """Lets the common options follow the command's name, and turns an error into a sentence and an exit code."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # vendored click
        return super().parse_args(ctx, hoist(args))

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # vendored click
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            status = explain(error)
            if status is None or (isinstance(ctx.obj, Session) and ctx.obj.debug):
                raise
            raise typer.Exit(status) from error


def hoist(args: list[str]) -> list[str]:
    """`args` with the common options moved to the front, as far as a `--`."""
    end = args.index("--") if "--" in args else len(args)
    front: list[str] = []
    rest: list[str] = []
    words = iter(args[:end])
    for word in words:
        name, _, value = word.partition("=")
        if name not in ANYWHERE:
            rest.append(word)
            continue
        front.append(word)
        if ANYWHERE[name] and not value:
            front += [following] if (following := next(words, None)) is not None else []
    return front + rest + args[end:]


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    ctx: typer.Context,
    catalog: Annotated[
        Path | None,
        typer.Option(
            envvar="MULTIMOE_CATALOG",
            help="The catalog file. Default: ./multimoe.yaml, else deploy/local.yaml.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(envvar="MULTIMOE_URL", help="A running multimoe. Default: the catalog's.", show_default=False),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """One OpenAI-compatible endpoint that learns which of your models should answer."""
    ctx.obj = Session(catalog, url, debug or os.environ.get("MULTIMOE_DEBUG") == "1")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(multimoe.__version__)


for command in (serve.serve, ask.ask, ask.route, ask.rate, report.report, machine.doctor):
    app.command()(command)
experts.app.command()(check.check)
experts.app.command()(scaffold.new)
gate.app.command()(calibrate.calibrate)
gate.app.command()(evaluate.evaluate)
for noun in (experts.app, gate.app, feedback.app, weights.app, config.app, keys.app):
    app.add_typer(noun)
