"""`multimoe gate`: the versions of the gate, and making, promoting and undoing one.

Training runs in the product where one is up, else here, from the same store into the same versions.
"""

import time
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.console import NOT_BETTER, AsJson, Json, err, print_json, print_table
from gateway.cli.session import Session, session
from multimoe.errors import MultimoeError, Unavailable

app = typer.Typer(name="gate", help="See, train, promote and roll back versions of the gate.", no_args_is_help=True)

POLL_SECONDS = 0.3

Version = Annotated[int, typer.Argument(min=0, help="A version, as `multimoe gate list` shows it.")]


@app.command("list")
def list_versions(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Every version, when and from how many ratings it was made, and which one serves."""
    with session(ctx).client() as client:
        versions = client.versions()
    if as_json:
        print_json(versions)
        return
    columns = ("version ", "alias", "made", "parent ", "ratings ", "improvement ", "promoted", "why")
    print_table(columns, [_row(version) for version in versions])


@app.command()
def show(
    ctx: typer.Context,
    version: Annotated[int | None, typer.Argument(min=0, help="Default: the version that serves.")] = None,
) -> None:
    """One version with its manifest, as JSON."""
    with session(ctx).client() as client:
        print_json(client.gate() if version is None else _one(client.versions(), version))


@app.command()
def train(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Learn from the ratings, judge on later ones, promote only what is better. Exits 3 when nothing is promoted."""
    asked = session(ctx)
    with progress() as shown:
        try:
            manifest = _in_the_product(asked, shown)
        except Unavailable as error:
            if error.code != "unreachable":
                raise
            err().print(f"nothing answers at {asked.url}; training here", style="dim", markup=False)
            manifest = _here(asked, shown)
    print_json(manifest) if as_json else typer.echo(verdict(manifest))
    if not manifest.get("promoted"):
        raise typer.Exit(NOT_BETTER)


@app.command()
def promote(ctx: typer.Context, version: Version) -> None:
    """Serve this version from now on, whatever its figures say."""
    with session(ctx).client() as client:
        client.promote(version)
    typer.echo(f"gate {version} serves")


@app.command()
def rollback(ctx: typer.Context) -> None:
    """Serve the version again that served before."""
    with session(ctx).client() as client:
        client.rollback()
        now = client.gate()
    typer.echo(f"gate {now.get('version')} serves")


class Follow:
    """A bar that follows a retraining: call it with a share from 0 to 1 and what is being done."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("waiting to start", total=1.0)

    def __call__(self, share: float, message: str) -> None:
        self._bar.update(self._task, completed=share, description=message)


def progress() -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err(), transient=True)


def verdict(manifest: Json) -> str:
    """One sentence on what came of a retraining."""
    version, why = manifest.get("version"), manifest.get("reason", "")
    done = "is promoted and serves" if manifest.get("promoted") else "is kept but not promoted"
    return f"gate {version} {done}: {why}"


def result(job: Json) -> Json:
    """The manifest of a finished job. Raises the reason of a failed one."""
    if job["status"] == "failed":
        raise MultimoeError(str(job.get("error") or "the retraining failed without saying why; see the server's log"))
    return dict(job.get("result") or {})


def _in_the_product(asked: Session, bar: Progress) -> Json:
    with asked.client() as client:
        job_id = client.train()
        follow = Follow(bar)
        while (job := client.job(job_id))["status"] == "running":
            follow(job.get("progress", 0.0), job.get("message", ""))
            time.sleep(POLL_SECONDS)
    return result(job)


def _here(asked: Session, bar: Progress) -> Json:
    from gateway.offline import retrain_here

    return dict(retrain_here(asked.catalog(), Follow(bar)).model_dump(mode="json"))


def _one(versions: list[Json], version: int) -> Json:
    for found in versions:
        if found.get("version") == version:
            return found
    raise MultimoeError(f"there is no gate {version}; `multimoe gate list` shows those there are")


def _row(version: Json) -> tuple[object, ...]:
    return (
        version.get("version"),
        ", ".join(version.get("aliases", [])),
        version.get("created"),
        version.get("parent"),
        version.get("ratings"),
        version.get("improvement"),
        version.get("promoted"),
        version.get("reason"),
    )
