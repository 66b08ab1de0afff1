"""`multimoe keys`: who may use the gateway, and how much. Works on the store itself, so the first key needs no running
product.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from gateway.cli.console import AsJson, out, print_json, print_table
from gateway.cli.session import session

if TYPE_CHECKING:  # loads the database, which the other commands do not need
    from multimoe.feedback import FeedbackLog, Key, Quota, Scope

app = typer.Typer(name="keys", help="Make, list, limit and revoke API keys.", no_args_is_help=True)

CATALOG, UNLIMITED = "catalog", "unlimited"
A_NUMBER = f"a number, `{UNLIMITED}`, or `{CATALOG}` for what the catalog says"
PerMinute = Annotated[str | None, typer.Option(help=f"Requests a minute: {A_NUMBER}.", metavar="N")]
AtOnce = Annotated[str | None, typer.Option(help="Requests under way at once.", metavar="N")]
Tokens = Annotated[str | None, typer.Option(help="Tokens a day, read and written.", metavar="N")]
Cost = Annotated[str | None, typer.Option(help="US$ a day.", metavar="US$")]


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is, or what it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="chat, rate or admin; may be given again. [default: chat rate]")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Keys of one tenant share their answers. Default: the key alone.")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Until it expires. Default: never.")] = None,
    requests_per_minute: PerMinute = None,
    concurrent_requests: AtOnce = None,
    tokens_per_day: Tokens = None,
    cost_per_day: Cost = None,
) -> None:
    """Make a key and show it, this once. From the first key on, nobody gets in without one."""
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    given = _given(requests_per_minute, concurrent_requests, tokens_per_day, cost_per_day)
    with _log(ctx) as log:
        quota = _changed(given)
        key, secret = log.create_key(name, _scopes(scope or ["chat", "rate"]), tenant, expires, quota)
    out().print(secret, markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"key {key.id} for {name}: {' '.join(sorted(key.scopes))}; it is shown only now", err=True)


@app.command()
def limit(
    ctx: typer.Context,
    id: Annotated[str, typer.Argument(help="As `multimoe keys list` shows it.")],
    requests_per_minute: PerMinute = None,
    concurrent_requests: AtOnce = None,
    tokens_per_day: Tokens = None,
    cost_per_day: Cost = None,
) -> None:
    """Change how much a key may ask for; within seconds it holds on every gateway. What is left out stays."""
    given = _given(requests_per_minute, concurrent_requests, tokens_per_day, cost_per_day)
    if not given:
        raise typer.BadParameter("say what to change, such as --requests-per-minute 60")
    with _log(ctx) as log:
        key = log.limit_key(id, lambda quota: _changed(given, quota))
    typer.echo(f"key {id}: {_told(key.quota) or 'as the catalog says'}")


@app.command("list")
def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Every key, without its secret."""
    with _log(ctx) as log:
        keys = log.all_keys()
    if as_json:
        print_json([key.model_dump(mode="json", exclude={"digest"}) for key in keys])
        return
    print_table(("id", "name", "tenant", "scopes", "made", "state", "limits"), [_row(key) for key in keys])


@app.command()
def revoke(ctx: typer.Context, id: Annotated[str, typer.Argument(help="As `multimoe keys list` shows it.")]) -> None:
    """Take a key back; within seconds it opens nothing any more."""
    with _log(ctx) as log:
        log.revoke_key(id)
    typer.echo(f"key {id} is revoked")


def _scopes(words: list[str]) -> "list[Scope]":
    from multimoe.feedback import Scope

    if wrong := [word for word in words if word not in get_args(Scope)]:
        raise typer.BadParameter(f"no scope {wrong[0]!r}; there are: {', '.join(get_args(Scope))}")
    return [cast("Scope", word) for word in words]


def _given(per_minute: str | None, at_once: str | None, tokens: str | None, cost: str | None) -> dict[str, Any]:
    words = {
        "requests_per_minute": per_minute,
        "concurrent_requests": at_once,
        "tokens_per_day": tokens,
        "cost_per_day": cost,
    }
    return {name: None if word == CATALOG else word for name, word in words.items() if word is not None}


def _changed(given: dict[str, Any], quota: "Quota | None" = None) -> "Quota":
    from pydantic import ValidationError

    from multimoe.feedback import Quota

    try:
        return Quota.model_validate((quota.model_dump() if quota else {}) | given)
    except ValidationError as error:
        wrong = str(error.errors()[0]["loc"][0])
        option = f"--{wrong.replace('_', '-')}"
        raise typer.BadParameter(f"{given.get(wrong)!r} is nothing for {option}; give {A_NUMBER}") from error


@contextmanager
def _log(ctx: typer.Context) -> "Iterator[FeedbackLog]":
    from multimoe.feedback import FeedbackLog

    catalog = session(ctx).catalog()
    catalog.home.mkdir(parents=True, exist_ok=True)
    with FeedbackLog.open(catalog.store_url) as log:
        yield log


def _row(key: "Key") -> tuple[object, ...]:
    now = datetime.now(UTC)
    state = "holds" if key.holds(now) else "revoked" if key.revoked else "expired"
    if key.holds(now) and key.expires:
        state = f"until {key.expires:%Y-%m-%d}"
    scopes = " ".join(sorted(key.scopes))
    return key.id, key.name, key.tenant, scopes, f"{key.created:%Y-%m-%d}", state, _told(key.quota)


def _told(quota: "Quota") -> str:
    said = quota.model_dump(exclude_none=True).items()
    return ", ".join(f"{amount} {name.replace('_', ' ')}" for name, amount in said)
