"""`multimoe gate`: the versions of the gate, and making, promoting and undoing one.

Where a product is up it is asked; else, unless --url names one, the work is done here on the same store and folders.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.change.verdicts import became, why
from gateway.cli.console import NOT_BETTER, AsJson, Json, err, percent, print_json, print_table, short
from gateway.cli.session import Session, session
from multimoe.errors import MultimoeError

if TYPE_CHECKING:
    from gateway.change.offline import OfflineGates
    from gateway.client import Client

app = typer.Typer(name="gate", help="See, train, promote and roll back versions of the gate.", no_args_is_help=True)

POLL_SECONDS = 0.3
ON_TRIAL = ("shadow", "canary")

Version = Annotated[int, typer.Argument(min=0, help="A version, as `multimoe gate list` shows it.")]


@app.command("list")
def list_versions(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Every version, when and from how many ratings it was made, how far it came and why no further."""
    with gates(session(ctx)) as at:
        versions = at.versions()
    if as_json:
        print_json(versions)
        return
    columns = ("version ", "stage", "made", "parent ", "ratings ", "gain, 95 % interval", "why")
    print_table(columns, [_row(version) for version in versions])


@app.command()
def show(
    ctx: typer.Context,
    version: Annotated[int | None, typer.Argument(min=0, help="Default: the version that serves.")] = None,
) -> None:
    """One version with its manifest, as JSON."""
    with gates(session(ctx)) as at:
        print_json(at.gate() if version is None else _one(at.versions(), version))


@app.command()
def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Which version serves, which one is on trial beside it, and what ratings say of both so far."""
    with gates(session(ctx)) as at:
        gate = at.gate()
    print_json(gate) if as_json else typer.echo("\n".join(stages(gate)))


@app.command()
def train(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Learn from the ratings, judge on later ones, and let only what is better on its way to serve.

    The catalog's gate.rollout says by which stages. Exits 3 when the new version is kept and nothing else.
    """
    from gateway.change.offline import OfflineGates

    with gates(session(ctx)) as at, progress() as bar:
        follow = Follow(bar)
        manifest = at.retrain(follow) if isinstance(at, OfflineGates) else _in_the_product(at, follow)
    print_json(manifest) if as_json else typer.echo(verdict(manifest))
    if not manifest.get("promoted") and manifest.get("stage") not in ON_TRIAL:
        raise typer.Exit(NOT_BETTER)


@app.command()
def promote(
    ctx: typer.Context,
    version: Version,
    canary: Annotated[
        float | None,
        typer.Option(min=0.001, max=0.5, help="Answer only this share of requests, and let ratings decide."),
    ] = None,
    shadow: Annotated[bool, typer.Option(help="Only decide beside the champion, and answer nothing.")] = False,
) -> None:
    """Serve this version from now on, whatever its figures say; or put it on trial first."""
    if canary and shadow:
        raise typer.BadParameter("give --canary or --shadow, not both")
    with gates(session(ctx)) as at:
        if canary or shadow:
            at.put_on_trial(version, canary or 0.0)
            typer.echo("\n".join(stages(at.gate())))
            return
        at.promote(version)
    typer.echo(f"gate {version} serves")


@app.command()
def withdraw(ctx: typer.Context) -> None:
    """End the trial, canary or shadow; the champion goes on."""
    with gates(session(ctx)) as at:
        at.withdraw()
        typer.echo("\n".join(stages(at.gate())))


@app.command()
def rollback(ctx: typer.Context) -> None:
    """Withdraw the canary; where there is none, serve the version again that served before."""
    with gates(session(ctx)) as at:
        at.rollback()
        now = at.gate()
    typer.echo(f"gate {now.get('version')} serves")


@contextmanager
def gates(asked: Session) -> "Iterator[Client | OfflineGates]":
    """The running product; where none was named and none answers, the folders it would serve from."""
    with asked.client() as client:
        if asked.given_url is not None or _answers(client):
            yield client
            return
    from gateway.change.offline import OfflineGates

    catalog = asked.catalog()
    err().print(f"nothing answers at {asked.url}; working on {catalog.home}", style="dim", markup=False, soft_wrap=True)
    yield OfflineGates(catalog)


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
    kept = "is promoted and serves" if manifest.get("promoted") else "is kept but not promoted"
    return f"gate {manifest.get('version')} {became(manifest, kept)}: {manifest.get('reason', '')}"


def stages(gate: Json) -> list[str]:
    """Who serves and who is on trial, in a few lines."""
    lines = [f"gate {gate.get('version')} serves"]
    if watch := gate.get("watch"):
        against = f"against what gate {watch['against']} earned before"
        lines.append(f"  on probation: {_gain(watch['earned'])} of {watch['enough']}, {against}")
    if (trial := gate.get("challenger")) is None:
        return [*lines, "no version is on trial"]
    does = f"answers {percent(trial['share'])} of requests" if trial["share"] else "answers nothing"
    lines.append(f"gate {trial['version']} is in {trial['stage']} since {str(trial['since'])[:16]} and {does}")
    if seen := trial.get("seen"):
        cost = seen["cost"]
        lines.append(
            f"  chooses as the champion on {percent(seen['agreement'])} of {seen['requests']} requests, at "
            f"US${cost['challenger']:.3g} each instead of US${cost['champion']:.3g}"
        )
    return [*lines, f"  by ratings: {_gain(earned)}"] if (earned := trial.get("earned")) else lines


def _gain(earned: Json) -> str:
    gain = earned["gain"]
    return f"{gain['value']:+.3f} ({gain['low']:+.2f} to {gain['high']:+.2f}) on {earned['ratings']} rated answers"


def result(job: Json) -> Json:
    """The manifest of a finished job. Raises the reason of a failed one."""
    if job["status"] == "failed":
        raise MultimoeError(str(job.get("error") or "the retraining failed without saying why; see the server's log"))
    return dict(job.get("result") or {})


def _answers(client: "Client") -> bool:
    """Whether anything listens there, in whatever state."""
    try:
        client.gate()
    except MultimoeError as error:
        return error.code != "unreachable"
    return True


def _in_the_product(client: "Client", follow: Follow) -> Json:
    job_id = client.train()
    while (job := client.job(job_id))["status"] == "running":
        follow(job.get("progress", 0.0), job.get("message", ""))
        time.sleep(POLL_SECONDS)
    return result(job)


def _one(versions: list[Json], version: int) -> Json:
    for found in versions:
        if found.get("version") == version:
            return found
    raise MultimoeError(f"there is no gate {version}; `multimoe gate list` shows those there are")


def _row(version: Json) -> tuple[object, ...]:
    gain: Json = (version.get("metrics") or {}).get("gain_doubly_robust") or {}
    return (
        version.get("version"),
        version.get("stage"),
        str(version.get("created") or "")[:16],
        version.get("parent"),
        version.get("ratings"),
        f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" if gain else "",
        short(why(version)),
    )
