"""What stands under an answer: the weights, who and how long, why, and the thumbs."""

from collections.abc import Sequence

from gateway.client import Json
from gateway.page.html import button, colours, e, name, number, percent, problem, span
from gateway.page.turn import ANSWER, Turn

GOOD = (
    "M7 10v11H3V10h4Zm3 11h7.2a2.5 2.5 0 0 0 2.4-1.9l1.5-6A2.5 2.5 0 0 0 18.7 10H14V5.5A2.5 2.5 0 0 0 11.5 3L10 9v12Z"
)
BAD = "M7 14V3H3v11h4Zm3-11h7.2a2.5 2.5 0 0 1 2.4 1.9l1.5 6A2.5 2.5 0 0 1 18.7 14H14v4.5a2.5 2.5 0 0 1-2.5 2.5L10 15V3Z"
WRONG = {"wrong_expert": "Wrong expert", "too_slow": "Too slow", "hallucinated": "Made up", "unsafe": "Unsafe"}
STATES = {
    "streaming": "Answering…",
    "stopped": "Stopped. The words above are what had come by then.",
    "routed": "Nobody was asked. These would answer:",
}
TAGS = {"error": "failed", "timeout": "too late", "skipped": "not needed"}


def footer(turn: Turn, place: int) -> str:
    """What stands under an answer: the weights, who and how long, why, and the thumbs."""
    if turn.state == "failed":
        return problem(turn.problem)
    parts = [_state_line(turn), _bar(turn.experts), _who(turn, place), _degraded(turn), _why(turn)]
    if turn.state in ("done", "stopped"):
        parts.append(_thumbs(turn, place))
    return f'<div class="mm-foot" data-state="{e(turn.state)}">{"".join(parts)}</div>'


def _state_line(turn: Turn) -> str:
    said = ("Asking…" if turn.info else "Choosing experts…") if turn.state == "routing" else STATES.get(turn.state)
    live = " mm-live" if turn.state in ("routing", "streaming") else ""
    return f'<div class="mm-line{live}">{said}</div>' if said else ""


def _bar(experts: Sequence[Json]) -> str:
    if not experts:
        return '<div class="mm-bar mm-wait"></div>'
    tint = colours(map(name, experts))
    segments = "".join(
        f'<i style="flex:{number(x["weight"]):.4f};background:{tint[name(x)]}" '
        f'title="{e(name(x))} {percent(x.get("weight"))}"></i>'
        for x in experts
        if number(x.get("weight"))
    )
    said = ", ".join(f"{name(x)} {percent(x.get('weight'))}" for x in experts)
    return f'<div class="mm-bar" role="img" aria-label="{e(said)}">{segments}</div>'


def _who(turn: Turn, place: int) -> str:
    tint = colours(map(name, turn.experts))
    chips = []
    for x in turn.experts:
        who = name(x)
        thumbs = _pair(turn, place, who) if turn.rateable and x.get("status") == "ok" else ""
        tag = TAGS.get(str(x.get("status")), "")
        tag = tag or ("evidence" if x.get("role") == "evidence" else "")
        chips.append(
            f'<span class="mm-chip{" mm-out" if tag in ("failed", "too late") else ""}">'
            f'<i style="background:{tint[who]}"></i><b>{e(who)}</b> {percent(x.get("weight"))}'
            f"{f'<em>{tag}</em>' if tag else ''}{thumbs}</span>"
        )
    return f'<div class="mm-who">{"".join(chips)}</div>' if chips else ""


def _meta(turn: Turn) -> str:
    gate = turn.info.get("gate") or {}
    tokens = number(turn.usage.get("total_tokens"))
    facts = (
        span(total(turn.info)) if turn.info.get("timing_ms") else "",
        f"{tokens:.0f} tokens" if tokens else "",
        f"gate {gate['version']}" if "version" in gate else "",
        "explored" if turn.info.get("explored") else "",
    )
    return e(" · ".join(fact for fact in facts if fact))


def _degraded(turn: Turn) -> str:
    if not turn.failed_experts:
        return ""
    lost = " and ".join(name(x) for x in turn.failed_experts)
    why = "; ".join(str(x["error"]) for x in turn.failed_experts if x.get("error"))
    said = f"{lost} failed{f' ({why})' if why else ''}; the others answered without it."
    return f'<div class="mm-note" role="status">{e(said)}</div>'


def _why(turn: Turn) -> str:
    reasons = turn.info.get("reason") or turn.info.get("reasons") or ()
    return f'<div class="mm-why"><span>Why</span> {e("; ".join(map(str, reasons)))}</div>' if reasons else ""


def _thumbs(turn: Turn, place: int) -> str:
    rate = _pair(turn, place, ANSWER) + _reasons(turn, place) if turn.rateable else ""
    copy = button("copy", 'class="mm-quiet"', "Copy", text=turn.answer)
    details = button("inspect", 'class="mm-quiet"', "Details", turn=place)
    note = f'<span class="mm-saved" role="status">{e(turn.note)}</span>' if turn.note else ""
    return f'<div class="mm-rate">{rate}{copy}{details}{note}<span class="mm-meta">{_meta(turn)}</span></div>'


def _reasons(turn: Turn, place: int) -> str:
    """What was wrong with an answer, asked only after its thumb went down."""
    given = turn.ratings.get(ANSWER, "good")
    pills = "".join(
        button("rate", f'class="mm-pill" aria-pressed="{yes(given == key)}"', label, turn=place, value=key)
        for key, label in WRONG.items()
    )
    return f'<span class="mm-wrong">{pills}</span>' if given != "good" else ""


def _pair(turn: Turn, place: int, who: str) -> str:
    given, of = turn.ratings.get(who, ""), who or "the answer"
    pressed = {"good": given == "good", "bad": bool(given) and given != "good"}
    return (
        '<span class="mm-pair">'
        + "".join(
            button(
                "rate",
                f'class="mm-thumb mm-{value}" aria-pressed="{yes(pressed[value])}" '
                f'aria-label="{said}: {e(of)}" title="{said}: {e(of)}"',
                f'<svg viewBox="0 0 24 24" aria-hidden="true"><path d="{path}"/></svg>',
                turn=place,
                expert=who,
                value=value,
            )
            for value, said, path in (("good", "Good", GOOD), ("bad", "Bad", BAD))
        )
        + "</span>"
    )


def total(info: Json) -> float:
    times = info.get("timing_ms") or {}
    return number(times["total"]) if "total" in times else sum(map(number, times.values()))


def yes(claim: bool) -> str:
    return "true" if claim else "false"
