"""`multimoe weights`: fetch, list and check the pretrained weights the catalog names."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from gateway.cli.console import FAILED, AsJson, err, print_json, print_table
from gateway.cli.session import session
from multimoe.config import Catalog

if TYPE_CHECKING:
    from multimoe.weights import Progress as Pulled

app = typer.Typer(name="weights", help="Fetch and check pretrained weights.", no_args_is_help=True)


@app.command()
def pull(ctx: typer.Context) -> None:
    """Fetch what is missing, checked against its pinned hash; what a cut line left is continued."""
    catalog = session(ctx).catalog()
    fetched = fetch(catalog.weights, catalog.weight_uris())
    found = f"fetched {fetched} of" if fetched else "all of"
    err().print(f"{found} {len(catalog.weight_uris())} files and folders are in {catalog.weights}", markup=False)


@app.command("list")
def list_weights(ctx: typer.Context, as_json: AsJson = False) -> None:
    """What the catalog names, who needs it, and whether it is here."""
    from multimoe.weights import Weights

    catalog = session(ctx).catalog()
    missing = set(Weights(catalog.weights).missing(catalog.weight_uris()))
    owners = owners_of_weights(catalog)
    if as_json:
        print_json([{"uri": uri, "used_by": who, "here": uri not in missing} for uri, who in owners.items()])
        return
    rows = [("no" if uri in missing else "yes", ", ".join(who), uri.split("?", 1)[0]) for uri, who in owners.items()]
    print_table(("here", "used by", "weights"), rows)


@app.command()
def verify(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Hash every file again. Exits 1 when one is missing or not the pinned one."""
    from multimoe.weights import Weights

    catalog = session(ctx).catalog()
    problems = Weights(catalog.weights).verify(catalog.weight_uris())
    if as_json:
        print_json({"root": str(catalog.weights), "checked": len(catalog.weight_uris()), "problems": problems})
    else:
        typer.echo("\n".join(problems) or f"{len(catalog.weight_uris())} files and folders are the pinned ones")
    if problems:
        raise typer.Exit(FAILED)


def fetch(root: Path, uris: list[str]) -> int:
    """Pull what is missing under a bar for each package; how many URIs that were. Raises WeightsError."""
    from multimoe.weights import Weights

    held = Weights(root)
    missing = held.missing(uris)
    if missing:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=err()) as bars:
            held.pull(missing, Bars(bars))
    return len(missing)


class Bars:
    """A bar for each package, made when it is first heard of."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, news: "Pulled") -> None:
        if news.name not in self._tasks:
            self._tasks[news.name] = self._bars.add_task(news.name, total=None)
        task = self._tasks[news.name]
        if news.stage == "downloading":
            self._bars.update(task, description=news.name, completed=news.done, total=news.total)
        else:
            self._bars.update(task, description=f"{news.name} ({news.stage})")


def owners_of_weights(catalog: Catalog) -> dict[str, list[str]]:
    """Each weights URI with the experts and encoders that read it."""
    owners: dict[str, list[str]] = {uri: [] for uri in catalog.weight_uris()}
    for modality, encoder in catalog.gate.encoders.items():
        for uri in encoder.weights.values():
            owners[uri].append(f"gate ({modality})")
    for expert in catalog.experts:
        for uri in dict.fromkeys(expert.weights.values()):
            owners[uri].append(expert.name)
    return owners
