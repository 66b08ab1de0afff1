"""`multimoe experts`: who can answer, and changing that while the product runs."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from gateway.cli.console import AsJson, Json, plain, print_json, print_table, short
from gateway.cli.session import session
from multimoe.config import ExpertSpec, validate
from multimoe.errors import BadConfig

app = typer.Typer(name="experts", help="See, add, scale and remove experts of a running product.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The expert's name, as `multimoe experts list` shows it.")]


@app.command("list")
def list_experts(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Every expert, what it reads and writes, and whether it is up."""
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
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="YAML: one entry of `experts`.")],
    pull: Annotated[bool, typer.Option(help="Fetch its weights to this machine first.")] = True,
) -> None:
    """Deploy an expert into the running product; the gate routes to it at once, from its card."""
    spec = validate(ExpertSpec, _entry(file), str(file))
    if pull and spec.weights:
        from gateway.cli.weights import fetch

        fetch(session(ctx).catalog().weights, list(spec.weights.values()))
    with session(ctx).client() as client:
        client.add_expert(spec.model_dump(mode="json", exclude_unset=True))
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


def _entry(file: Path) -> Any:
    """The mapping in `file`; a list of one, as cut out of a catalog, will do. Raises BadConfig."""
    try:
        tree = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise BadConfig(f"{file} is not YAML: {error}") from error
    return tree[0] if isinstance(tree, list) and len(tree) == 1 else tree


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
