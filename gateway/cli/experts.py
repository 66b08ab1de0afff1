"""`multimoe experts`: who can answer, and changing that while the product runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.console import AsJson, Json, plain, print_json, print_table, short
from gateway.cli.session import session
from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig

app = typer.Typer(name="experts", help="See, add, scale and remove experts of a running product.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The expert's name, as `multimoe experts list` shows it.")]


@app.command("list")
def list_experts(
    ctx: typer.Context,
    installed: Annotated[bool, typer.Option("--installed", help="Those that packages on this machine offer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every expert, what it reads and writes, and whether it is up."""
    if installed:
        _list_installed(as_json)
        return
    with session(ctx).client() as client:
        experts = client.experts()
    if as_json:
        print_json(experts)
        return
    columns = ("expert", "state", "replicas ", "inputs", "output", "cost ", "description")
    print_table(columns, [_row(expert) for expert in experts])


@app.command()
def show(ctx: typer.Context, name: Name) -> None:
    """One expert, whole, as JSON."""
    with session(ctx).client() as client:
        print_json(client.expert(plain(name)))


@app.command()
def add(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A YAML file with one entry of `experts`, or the name of an installed one.")
    ],
    pull: Annotated[bool, typer.Option(help="Fetch its weights to this machine first.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Upgrade the expert of that name in place.")] = False,
) -> None:
    """Deploy an expert into the running product; the gate routes to it at once, from its card."""
    spec = _entry(source)
    if pull and spec.weights:
        from gateway.cli.weights import fetch

        fetch(session(ctx).catalog().weights, list(spec.weights.values()))
    with session(ctx).client() as client:
        entry = spec.model_dump(mode="json", exclude_unset=True)
        if replace:
            client.replace_expert(entry)
        else:
            client.add_expert(entry)
    typer.echo(f"{spec.name} is deployed; ask it alone with: multimoe ask --expert {spec.name} …")


@app.command()
def remove(ctx: typer.Context, name: Name) -> None:
    """Take an expert out; requests it is answering finish first."""
    with session(ctx).client() as client:
        client.remove_expert(plain(name))
    typer.echo(f"{plain(name)} is removed")


@app.command()
def scale(
    ctx: typer.Context,
    name: Name,
    low: Annotated[int, typer.Option("--min", min=0, help="Fewest replicas; 0 sleeps until asked.")],
    high: Annotated[int, typer.Option("--max", min=1, help="Most replicas.")],
) -> None:
    """Set between how many replicas an expert scales."""
    if low > high:
        raise typer.BadParameter(f"--min {low} is above --max {high}")
    with session(ctx).client() as client:
        client.scale(plain(name), low, high)
    typer.echo(f"{plain(name)} scales between {low} and {high}")


def _entry(source: str) -> ExpertSpec:
    """From a file, or as an installed package brings it. Raises BadConfig."""
    from multimoe.backends import find_offer, read_entry

    if Path(source).is_file():
        return read_entry(Path(source))
    if "/" in source or source.endswith((".yaml", ".yml")):
        raise BadConfig(f"there is no file {source}")
    offer = find_offer(source)
    entry = offer.entry()
    if entry is None:
        raise BadConfig(f"{offer.package} brings no catalog entry for {source!r}: write one with `backend: {source}`")
    return entry


def _list_installed(as_json: bool) -> None:
    from multimoe.backends import installed

    offers = [(offer, offer.entry()) for offer in installed()]
    if as_json:
        print_json([{**asdict(offer), "entry": entry and entry.model_dump(mode="json")} for offer, entry in offers])
        return
    rows = [
        (
            offer.name,
            f"{offer.package} {offer.version}",
            ", ".join(sorted(entry.inputs)) if entry else "",
            entry.output if entry else "",
            short(entry.card.description) if entry else "brings no catalog entry",
        )
        for offer, entry in offers
    ]
    print_table(("backend", "package", "inputs", "output", "description"), rows)


def _row(expert: Json) -> tuple[object, ...]:
    card: Any = expert.get("card") or {}
    return (
        plain(expert.get("name") or expert.get("id")),
        expert.get("state"),
        f"{expert.get('replicas', '')}",
        ", ".join(expert.get("inputs", [])),
        expert.get("output"),
        f"{expert.get('cost', 0):g}",
        short(expert.get("description") or card.get("description", "")),
    )
