"""Asking and rating: `ask`, `route` (who would answer?) and `rate`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import AsJson, Json, err, out, percent, plain, print_json, print_table
from gateway.cli.session import session
from multimoe.errors import BadInput

Question = Annotated[str, typer.Argument(help="What to ask; may be empty when a file is attached.")]
Attach = Annotated[
    list[Path] | None,
    typer.Option("-a", "--attach", exists=True, dir_okay=False, help="A picture or recording; may be repeated."),
]
Only = Annotated[list[str] | None, typer.Option("--expert", help="Ask only this expert; may be repeated.")]
Preset = Annotated[str | None, typer.Option(help="One of the catalog's presets, such as fast or best.")]
TopK = Annotated[int | None, typer.Option(min=1, max=16, help="How many experts answer.")]

WORDS = {"up": 1.0, "good": 1.0, "down": 0.0, "bad": 0.0}


def ask(
    ctx: typer.Context,
    question: Question = "",
    attach: Attach = None,
    expert: Only = None,
    preset: Preset = None,
    top_k: TopK = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="At most so many tokens.")] = None,
    stream: Annotated[bool, typer.Option(help="Print the answer as it comes.")] = True,
    as_json: AsJson = False,
) -> None:
    """Ask, and see who answered."""
    from gateway.client import chat_body

    messages = chat_body(question, attach or ())
    options: Json = {"x_multimoe": policy(expert, top_k)} | ({"max_tokens": max_tokens} if max_tokens else {})
    with session(ctx).client() as client:
        if stream and not as_json:
            info = _stream(client.stream_chat(messages, model_name(preset), **options))
        else:
            reply = client.chat(messages, model_name(preset), **options)
            info = reply.get("x_multimoe", {})
            print_json(reply) if as_json else typer.echo(reply["choices"][0]["message"]["content"])
    if not as_json:
        err().print(routing_line(info), style="dim", markup=False, soft_wrap=True)


def route(
    ctx: typer.Context,
    question: Question = "",
    attach: Attach = None,
    expert: Only = None,
    preset: Preset = None,
    top_k: TopK = None,
    as_json: AsJson = False,
) -> None:
    """Show who would answer, without asking anyone."""
    from gateway.client import chat_body

    with session(ctx).client() as client:
        info = client.route(chat_body(question, attach or ()), model_name(preset), x_multimoe=policy(expert, top_k))
    if as_json:
        print_json(info)
        return
    print_table(("expert", "weight ", "probability ", "quality "), _considered(info))
    for name, why in info.get("ineligible", {}).items():
        out().print(f"{plain(name)}: {why}", style="dim", markup=False)
    out().print("; ".join(info.get("reason", [])), markup=False)


def rate(
    ctx: typer.Context,
    completion_id: Annotated[str, typer.Argument(help="The id in the line under an answer.")],
    score: Annotated[str, typer.Argument(help="up, down, or a number from 0 (useless) to 1 (perfect).")],
    expert: Annotated[str | None, typer.Option(help="Rate this expert's part instead of the whole answer.")] = None,
    comment: Annotated[str | None, typer.Option(help="Why.")] = None,
    as_json: AsJson = False,
) -> None:
    """Rate an answer, or one expert's part of it. Rating again replaces the earlier rating."""
    with session(ctx).client() as client:
        rating = client.feedback(completion_id, number(score), expert=expert, comment=comment)
    print_json(rating) if as_json else typer.echo("rated; the next `multimoe gate train` learns from it")


def number(score: str) -> float:
    """Raises BadInput for anything but up, down or a number from 0 to 1."""
    if score in WORDS:
        return WORDS[score]
    try:
        value = float(score)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadInput(f"cannot rate {score!r}; say up, down, or a number from 0 to 1")
    return value


def model_name(preset: str | None) -> str:
    return f"multimoe:{preset}" if preset else "multimoe"


def policy(experts: list[str] | None, top_k: int | None) -> Json:
    return ({"experts": experts} if experts else {}) | ({"top_k": top_k} if top_k else {})


def routing_line(info: Json) -> str:
    """Who answered with what weight, how long it took, and the id that rates it."""
    who = " + ".join(
        f"{plain(e.get('id'))} {percent(e.get('weight'))}"
        + ("" if e.get("status", "ok") == "ok" else f" {e['status']}")
        for e in info.get("experts", [])
    )
    version = f"gate {gate['version']}" if (gate := info.get("gate")) else "not routed"
    return " · ".join((who, f"{latency_ms(info):.0f} ms", version, str(info.get("completion_id", ""))))


def latency_ms(info: Json) -> float:
    """From the request's arrival to the answer's last word: the sum of its parts where no total is given."""
    timing: dict[str, float] = info.get("timing_ms", {})
    return float(timing.get("total", sum(timing.values())))


def _stream(events: "Iterator[object]") -> Json:
    """Print the words as they come; what the last routing event said."""
    from gateway.client import Routing, Said

    info: Json = {}
    for event in events:
        if isinstance(event, Said):
            typer.echo(event.text, nl=False)
        elif isinstance(event, Routing):
            info |= event.info
    typer.echo()
    return info


def _considered(info: Json) -> list[tuple[object, ...]]:
    weights = {e["id"]: e.get("weight") for e in info.get("experts", [])}
    seen = {e["id"]: e for e in [*info.get("experts", []), *info.get("considered", [])]}
    return [
        (plain(name), percent(weights.get(name)), percent(e.get("prob")), percent(e.get("quality")))
        for name, e in seen.items()
    ]
