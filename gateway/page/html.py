"""Small pieces of HTML that the other files put together. Whatever comes from the API passes through `e` here or there.

Buttons carry `data-do` and their arguments as `data-*`; the bridge in `look.py` turns a click into a Gradio event.
"""

import zlib
from collections.abc import Iterable
from html import escape
from typing import Any

from gateway.client import Json

# Distinct under the common kinds of colour blindness; a name always stands beside the colour.
PALETTE = ("#2F6DB5", "#D9822B", "#1E8E6E", "#B5578E", "#7A6BC4", "#B08D12", "#4BA3C7", "#B5523B", "#6B8E23", "#7D7A75")


def e(value: object) -> str:
    return escape(str(value), quote=True)


def name(expert: Json) -> str:
    """The expert's name without the API's `multimoe/` before it."""
    return str(expert.get("id") or expert.get("name") or expert.get("expert") or "?").removeprefix("multimoe/")


def percent(share: object) -> str:
    value = 100 * number(share)
    return f"{value:.0f} %" if value >= 1 or value == 0 else "< 1 %"


def span(milliseconds: object) -> str:
    value = number(milliseconds)
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms"


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each, the same in every answer unless two experts of one answer would share it."""
    taken: dict[str, str] = {}
    for who in names:
        start = zlib.crc32(who.encode())
        order = [PALETTE[(start + step) % len(PALETTE)] for step in range(len(PALETTE))]
        taken[who] = next((colour for colour in order if colour not in taken.values()), order[0])
    return taken


def problem(sentence: str) -> str:
    return f'<div class="mm-note mm-bad" role="alert">{e(sentence[:1].upper() + sentence[1:])}</div>'


def done(sentence: str) -> str:
    return f'<div class="mm-note mm-good" role="status">{e(sentence)}</div>'


def meter(label: object, share: object) -> str:
    return f'<div class="mm-meter"><span>{e(label)}</span>{track(share)}<span>{percent(share)}</span></div>'


def track(share: object, colour: str = "var(--mm-faint-ink)") -> str:
    width = 100 * min(max(number(share), 0.0), 1.0)
    return f'<span class="mm-track"><i style="width:{width:.1f}%;background:{colour}"></i></span>'


def button(do: str, attributes: str, label: str, **data: Any) -> str:
    arguments = " ".join(f'data-{key}="{e(value)}"' for key, value in data.items())
    return f'<button type="button" data-do="{do}" {arguments} {attributes}>{label}</button>'


def number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
