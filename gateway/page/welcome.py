"""The page before the first question: things to try, and the line that says whether the gateway is there."""

from collections.abc import Sequence

from gateway.client import Json
from gateway.page.examples import Example
from gateway.page.html import button, e

ICONS = {
    "Words": '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round">'
    '<path d="M5 7h14M5 12h14M5 17h8"/></svg>',
    "Pictures": '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7">'
    '<rect x="4" y="5" width="16" height="14" rx="3"/><path d="m5 17 5-5 4 4 2-2 3 3"/></svg>',
    "Sounds": '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round">'
    '<path d="M4 10v4M8 7v10M12 4v16M16 8v8M20 10v4"/></svg>',
}


def welcome(examples: Sequence[Example]) -> str:
    """What stands there before the first question: things to try, a column for each kind."""
    columns: dict[str, list[str]] = {}
    for number, example in enumerate(examples):
        picture = example.thumbnail()
        icon = f'<img src="{picture}" alt="">' if picture else ICONS[example.kind]
        label = f"{icon}<span>{e(example.title)}</span>"
        columns.setdefault(example.kind, []).append(button("example", "", label, number=number))
    tried = "".join(
        f"<section><h2>{e(kind)}</h2><div>{''.join(cards)}</div></section>" for kind, cards in columns.items()
    )
    return (
        '<div class="mm-welcome"><h1>Ask with words, a picture or a sound</h1><p>A gate reads your question and picks '
        "the experts that should answer it. You see who answered and why, and your thumbs teach the gate.</p>"
        f'<div class="mm-examples">{tried}</div></div>'
    )


def status(gate: Json | None, experts: Sequence[Json], problem: str = "") -> str:
    """The pill in the page's head: which gate answers, where that may be known, and with how many experts."""
    if problem:
        return f'<div class="mm-status mm-off" role="status"><i></i>{e(problem)}</div>'
    up = sum(expert.get("state") in ("ready", "asleep") for expert in experts)
    version = f"gate {e(gate.get('version', '?'))} · " if gate else ""
    return f'<div class="mm-status" role="status"><i></i>{version}{up}/{len(experts)} experts ready</div>'
