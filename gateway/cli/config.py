"""`multimoe config`: check, show and describe the catalog."""

import typer
import yaml

from gateway.cli.console import AsJson, print_json
from gateway.cli.session import session

app = typer.Typer(name="config", help="Check, show and describe the catalog.", no_args_is_help=True)


@app.command("validate")
def check(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Read the catalog; every mistake is named with the place and the nearest right word."""
    asked = session(ctx)
    catalog = asked.catalog()
    facts = {"catalog": str(asked.catalog_path), "experts": [e.name for e in catalog.experts], "valid": True}
    if as_json:
        print_json(facts)
    else:
        typer.echo(f"{asked.catalog_path} is valid: {len(catalog.experts)} experts")


@app.command()
def show(ctx: typer.Context, as_json: AsJson = False) -> None:
    """The catalog with every default filled in."""
    tree = session(ctx).catalog().model_dump(mode="json")
    if as_json:
        print_json(tree)
    else:
        typer.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def schema() -> None:
    """The catalog's JSON Schema, from which editors complete and check."""
    from multimoe.config import Catalog

    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema"} | Catalog.model_json_schema())
