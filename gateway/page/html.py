"""Answers, routing and gate versions as HTML. Whatever comes from the API is escaped here and nowhere else.

Buttons carry `data-do` and their arguments as `data-*`; the bridge in `look.py` turns a click into a Gradio event.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gateway.client import Json
from gateway.page.examples import Example
from gateway.page.turn import ANSWER, Turn

# Distinct under the common kinds of colour blindness; a name always stands beside the colour.
PALETTE = ("#2F6DB5", "#D9822B", "#1E8E6E", "#B5578E", "#7A6BC4", "#B08D12", "#4BA3C7", "#B5523B", "#6B8E23", "#7D7A75")

GOOD = '<path d="M7 10v11H3V10h4Zm3 11h7.2a2.5 2.5 0 0 0 2.4-1.9l1.5-6A2.5 2.5 0 0 0 18.7 10H14V5.500A2.5 2.5 0 0 0 11.5 3L10 9v12Z"/>'
BAD = '<path d="M7 14V3H3v11h4Zm3-11h7.2a2.5 2.5 0 0 1 2.4 1.9l1.5 6A2.5 2.5 0 0 1 18.7 14H14v4.500a2.5 2.5 0 0 1-2.5 2.500L10 15V3Z"/>'
ICONS = {
    "Words": '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round">'
    '<path d="M5 7h14M5 12h14M5 17h8"/></svg>',
    "Pictures": '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7">'
    '<rect x="4" y="5" width="16" height="14" rx="3"/><path d="m5 17 5-5 4 4 2-2 3 3"/></svg>',
    "Sounds": '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round">'
    '<path d="M4 10v4M8 7v10M12 4v16M16 8v8M20 10v4"/></svg>',
}
WRONG = {"wrong_expert": "Wrong expert", "too_slow": "Too slow", "hallucinated": "Made up", "unsafe": "Unsafe"}
STEPS = {"embed": "read", "route": "route", "experts": "experts", "combine": "blend", "blend": "blend"}


def e(value: object) -> str:
    return escape(str(value), quote=True)


def name(expert: Json) -> str:
    """The expert's name without the API's `multimoe/` before it."""
    return str(expert.get("id") or expert.get("name") or expert.get("expert") or "?").removeprefix("multimoe/")


def percent(share: object) -> str:
    value = 100 * _number(share)
    return f"{value:.0f} %" if value >= 1 or value == 0 else "< 1 %"


def span(milliseconds: object) -> str:
    value = _number(milliseconds)
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms"


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each, the same in every answer unless two experts of one answer would share it."""
    taken: dict[str, str] = {}
    for who in names:
        start = zlib.crc32(who.encode())
        order = [PALETTE[(start + step) % len(PALETTE)] for step in range(len(PALETTE))]
        taken[who] = next((colour for colour in order if colour not in taken.values()), order[0])
    return taken


def footer(turn: Turn, number: int) -> str:
    """What stands under an answer: the weights, who and how long, why, and the thumbs."""
    if turn.state == "failed":
        return problem(turn.problem)
    parts = [_state_line(turn), _bar(turn.experts), _who(turn, number), _degraded(turn), _why(turn)]
    if turn.state in ("done", "stopped") and turn.completion_id:
        parts.append(_thumbs(turn, number))
    return f'<div class="mm-foot" data-state="{e(turn.state)}">{"".join(parts)}</div>'


def inspector(turn: Turn | None) -> str:
    """Everything about one answer: shares, what else was considered, times, each expert's own output, the raw JSON."""
    if turn is None or not turn.info:
        return (
            '<div class="mm-card mm-empty"><h3>Who answers, and why</h3><p>Ask something, and this panel shows which '
            "experts the gate chose, with what weight, what else it considered, and how long each step took.</p></div>"
        )
    sections = (_shares(turn), _considered(turn), _timeline(turn), _facts(turn), _outputs(turn), _raw(turn))
    return f'<div class="mm-card mm-inspector">{"".join(sections)}</div>'


def status(gate: Json | None, experts: Sequence[Json], problem: str = "") -> str:
    """The pill in the page's head: which gate answers, and with how many experts."""
    if problem:
        return f'<div class="mm-status mm-off" role="status"><i></i>{e(problem)}</div>'
    up = sum(expert.get("state") in ("ready", "asleep") for expert in experts)
    version = f"gate {e((gate or {}).get('version', '?'))}"
    return f'<div class="mm-status" role="status"><i></i>{version} · {up} of {len(experts)} experts ready</div>'


def welcome(examples: Sequence[Example]) -> str:
    """What stands there before the first question: things to try, a column for each kind."""
    columns: dict[str, list[str]] = {}
    for number, example in enumerate(examples):
        picture = example.thumbnail()
        icon = f'<img src="{picture}" alt="">' if picture else ICONS[example.kind]
        label = f"{icon}<span>{e(example.title)}</span>"
        columns.setdefault(example.kind, []).append(_button("example", "", label, number=number))
    tried = "".join(f"<section><h2>{e(kind)}</h2>{''.join(cards)}</section>" for kind, cards in columns.items())
    return (
        '<div class="mm-welcome"><h1>Ask with words, a picture or a sound</h1><p>A gate reads your question and picks '
        "the experts that should answer it. You see who answered and why, and your thumbs teach the gate.</p>"
        f'<div class="mm-examples">{tried}</div></div>'
    )


def gate_cards(gate: Json, stats: Json) -> str:
    """The figures on top of the gate's tab."""
    figures = {"answers now": f"gate {gate.get('version', '?')}"} | {
        str(key).replace("_", " "): value for key, value in stats.items() if isinstance(value, int | float)
    }
    cards = "".join(
        f'<div class="mm-card"><b>{e(value)}</b><span>{e(key)}</span></div>' for key, value in figures.items()
    )
    return f'<div class="mm-cards">{cards}</div>'


def versions(rows: Sequence[Json], champion: object) -> str:
    """A row for each version, newest first, with what its judgement said."""
    if not rows:
        return '<div class="mm-card mm-empty"><p>No versions yet.</p></div>'
    newest = sorted(rows, key=lambda row: _number(row.get("version")), reverse=True)
    body = "".join(_version(row, champion) for row in newest)
    head = "<tr><th>Version</th><th>Made</th><th>Ratings</th><th>Better by</th><th>Verdict</th><th></th></tr>"
    return (
        '<div class="mm-card"><h3>Versions</h3><div class="mm-scroll"><table class="mm-versions">'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div></div>"
    )


def job(running: Json) -> str:
    """How far a retraining is, or what came of it."""
    if running.get("status") == "failed":
        return problem(str(running.get("error") or "The retraining failed; the gateway's log says why."))
    result = running.get("result") or {}
    if result:
        verdict = "answers now" if result.get("promoted") else "is kept, but does not answer"
        return done(f"Gate {result.get('version')} {verdict}: {result.get('reason', '')}")
    line = f"{e(running.get('message') or 'Waiting to start…')} {percent(running.get('progress'))}"
    bar = _track(running.get("progress"), "var(--mm-accent)")
    return f'<div class="mm-job" role="status"><div class="mm-line mm-live">{line}</div>{bar}</div>'


def problem(sentence: str) -> str:
    return f'<div class="mm-note mm-bad" role="alert">{e(sentence)}</div>'


def done(sentence: str) -> str:
    return f'<div class="mm-note mm-good" role="status">{e(sentence)}</div>'


def output(said: Json) -> str:
    """One expert's own output, by its kind."""
    match said.get("kind"):
        case "labels":
            rows = [(row.get("name"), row.get("probability")) for row in (said.get("labels") or ())[:5]]
            return "".join(_meter(label, share) for label, share in rows)
        case "words" | "objects":
            found = [str(box.get("text", "")) for box in said.get("boxes") or ()]
            return f"<p>{e(' · '.join(found)) or 'nothing found'}</p>"
        case "transcript":
            spoken = " ".join(str(part.get("text", "")).strip() for part in said.get("segments") or ())
            return f"<p>“{e(spoken)}”</p>"
        case "events":
            rows = [(f"{ev.get('label')} {_number(ev.get('start')):.1f} s", ev.get("score")) for ev in said["events"]]
            return "".join(_meter(label, share) for label, share in rows[:6])
        case _:
            return f"<p>{e(said.get('text', json.dumps(said)))}</p>"


def _version(row: Json, champion: object) -> str:
    version = row.get("version")
    serves = version == champion
    tag = '<span class="mm-tag">answers now</span>' if serves else ""
    act = "" if serves else _button("promote", 'class="mm-pill"', "Promote", version=version)
    made = str(row.get("created") or "")[:16].replace("T", " ")
    return (
        f"<tr><td><b>gate {e(version)}</b> {tag}</td><td>{e(made)}</td><td>{e(row.get('ratings') or 0)}</td>"
        f'<td>{e(_interval(row.get("improvement")))}</td><td class="mm-reason">{e(row.get("reason") or "")}</td>'
        f"<td>{act}</td></tr>"
    )


def _interval(estimate: object) -> str:
    """An estimate with its interval, as +0.04 [0.01, 0.07]."""
    if isinstance(estimate, dict):
        value, low, high = (_number(estimate.get(key)) for key in ("value", "low", "high"))
        return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{estimate:+.3f}" if isinstance(estimate, int | float) else "–"


def _state_line(turn: Turn) -> str:
    lines = {
        "routing": "Choosing experts…" if not turn.info else "Asking…",
        "streaming": "Answering…",
        "stopped": "Stopped. The words above are what had come by then.",
        "routed": "Nobody was asked. These would answer:",
    }
    said = lines.get(turn.state)
    live = " mm-live" if turn.state in ("routing", "streaming") else ""
    return f'<div class="mm-line{live}">{said}</div>' if said else ""


def _bar(experts: Sequence[Json]) -> str:
    if not experts:
        return '<div class="mm-bar mm-wait"></div>'
    tint = colours(map(name, experts))
    segments = "".join(
        f'<i style="flex:{max(_number(x.get("weight")), 0.004):.4f};background:{tint[name(x)]}" '
        f'title="{e(name(x))} {percent(x.get("weight"))}"></i>'
        for x in experts
    )
    said = ", ".join(f"{name(x)} {percent(x.get('weight'))}" for x in experts)
    return f'<div class="mm-bar" role="img" aria-label="{e(said)}">{segments}</div>'


def _who(turn: Turn, number: int) -> str:
    tint = colours(map(name, turn.experts))
    rateable = turn.state in ("done", "stopped")
    chips = []
    for x in turn.experts:
        who = name(x)
        thumbs = _pair(turn, number, who) if rateable and x.get("status", "ok") == "ok" else ""
        tag = {"error": "failed", "timeout": "too late", "skipped": "not needed"}.get(str(x.get("status")), "")
        tag = tag or ("evidence" if x.get("role") == "evidence" else "")
        chips.append(
            f'<span class="mm-chip{" mm-out" if tag in ("failed", "too late") else ""}">'
            f'<i style="background:{tint[who]}"></i><b>{e(who)}</b> {percent(x.get("weight"))}'
            f"{f'<em>{tag}</em>' if tag else ''}{thumbs}</span>"
        )
    return f'<div class="mm-who">{"".join(chips)}<span class="mm-meta">{_meta(turn)}</span></div>' if chips else ""


def _meta(turn: Turn) -> str:
    gate = turn.info.get("gate") or {}
    tokens = _number(turn.usage.get("total_tokens"))
    facts = (
        span(_total(turn.info)) if turn.info.get("timing_ms") else "",
        f"{tokens:.0f} tokens" if tokens else "",
        f"gate {gate['version']}" if "version" in gate else "",
        "explored" if turn.info.get("explored") else "",
    )
    return e(" · ".join(fact for fact in facts if fact))


def _degraded(turn: Turn) -> str:
    if not turn.failed_experts:
        return ""
    lost = " and ".join(name(x) for x in turn.failed_experts)
    why = next((str(x["error"]) for x in turn.failed_experts if x.get("error")), "")
    return f'<div class="mm-note" role="status">{e(lost)} failed; answered without it. {e(why)}</div>'


def _why(turn: Turn) -> str:
    reasons = turn.info.get("reason") or turn.info.get("reasons") or ()
    return f'<div class="mm-why"><span>Why</span> {e("; ".join(map(str, reasons)))}</div>' if reasons else ""


def _thumbs(turn: Turn, number: int) -> str:
    given = turn.ratings.get(ANSWER, "")
    wrong = "".join(
        _button("rate", f'class="mm-pill" aria-pressed="{_yes(given == key)}"', label, turn=number, value=key)
        for key, label in WRONG.items()
    )
    more = f'<span class="mm-wrong">{wrong}</span>' if given and given != "good" else ""
    copy = _button("copy", 'class="mm-quiet"', "Copy", text=turn.answer)
    details = _button("inspect", 'class="mm-quiet"', "Details", turn=number)
    note = f'<span class="mm-saved" role="status">{e(turn.note)}</span>' if turn.note else ""
    return f'<div class="mm-rate">{_pair(turn, number, ANSWER)}{more}{copy}{details}{note}</div>'


def _pair(turn: Turn, number: int, who: str) -> str:
    given, of = turn.ratings.get(who, ""), who or "the answer"
    pressed = {"good": given == "good", "bad": bool(given) and given != "good"}
    return (
        '<span class="mm-pair">'
        + "".join(
            _button(
                "rate",
                f'class="mm-thumb mm-{value}" aria-pressed="{_yes(pressed[value])}" '
                f'aria-label="{said}: {e(of)}" title="{said}: {e(of)}"',
                f'<svg viewBox="0 0 24 24" aria-hidden="true">{path}</svg>',
                turn=number,
                expert=who,
                value=value,
            )
            for value, said, path in (("good", "Good", GOOD), ("bad", "Bad", BAD))
        )
        + "</span>"
    )


def _shares(turn: Turn) -> str:
    tint = colours(map(name, turn.experts))
    rows = "".join(
        f'<tr><td><i class="mm-dot" style="background:{tint[name(x)]}"></i>{e(name(x))}</td>'
        f'<td class="mm-grow">{_track(x.get("weight"), tint[name(x)])}</td><td>{percent(x.get("weight"))}</td>'
        f"<td>{span(x['latency_ms']) if x.get('latency_ms') else ''}</td></tr>"
        for x in turn.experts
    )
    gate = turn.info.get("gate") or {}
    chip = f'<span class="mm-tag">gate {e(gate.get("version", "?"))} {e(gate.get("alias") or "")}</span>'
    return f'<h3>Who answered {chip}</h3><table class="mm-shares">{rows}</table>'


def _considered(turn: Turn) -> str:
    chosen = {name(x) for x in turn.experts}
    others = [x for x in turn.info.get("considered") or () if name(x) not in chosen][:8]
    rows = "".join(_meter(name(x), x.get("prob", x.get("probability"))) for x in others)
    return f"<h4>Also considered</h4>{rows}" if rows else ""


def _timeline(turn: Turn) -> str:
    times = {step: _number(ms) for step, ms in (turn.info.get("timing_ms") or {}).items() if step != "total"}
    if not sum(times.values()):
        return ""
    blocks = "".join(
        f'<i style="flex:{max(ms, sum(times.values()) / 50):.2f}" title="{e(step)} {span(ms)}"></i>'
        for step, ms in times.items()
    )
    legend = "".join(f"<span>{e(STEPS.get(step, step))} <b>{span(ms)}</b></span>" for step, ms in times.items())
    return f'<h4>Time</h4><div class="mm-time" aria-hidden="true">{blocks}</div><div class="mm-legend">{legend}</div>'


def _facts(turn: Turn) -> str:
    info, usage = turn.info, turn.usage
    shown: Mapping[str, object] = {
        "how blended": info.get("combine"),
        "read as": ", ".join(map(str, info.get("modalities") or ())),
        "propensity": f"{_number(info['propensity']):.3f}" if info.get("propensity") is not None else None,
        "explored": {True: "yes, drawn by chance", False: "no, the likeliest"}.get(bool(info.get("explored"))),
        "tokens": f"{usage['prompt_tokens']} in, {usage['completion_tokens']} out"
        if "prompt_tokens" in usage
        else None,
        "cost": f"${_number(usage['cost']):.5f}" if usage.get("cost") else None,
        "id": turn.completion_id,
    }
    rows = "".join(f"<dt>{e(key)}</dt><dd>{e(value)}</dd>" for key, value in shown.items() if value)
    return f'<dl class="mm-facts">{rows}</dl>'


def _outputs(turn: Turn) -> str:
    said = [x for x in turn.experts if isinstance(x.get("output"), dict)]
    boxes = "".join(f"<h4>{e(name(x))}</h4>{output(x['output'])}" for x in said)
    return f"<details><summary>What each expert said by itself</summary>{boxes}</details>" if said else ""


def _raw(turn: Turn) -> str:
    raw = e(json.dumps(turn.info, indent=2, ensure_ascii=False))
    return f"<details><summary>Raw JSON (x_multimoe)</summary><pre>{raw}</pre></details>"


def _meter(label: object, share: object) -> str:
    return f'<div class="mm-meter"><span>{e(label)}</span>{_track(share)}<span>{percent(share)}</span></div>'


def _track(share: object, colour: str = "var(--mm-faint-ink)") -> str:
    width = 100 * min(max(_number(share), 0.0), 1.0)
    return f'<span class="mm-track"><i style="width:{width:.1f}%;background:{colour}"></i></span>'


def _button(do: str, attributes: str, label: str, **data: Any) -> str:
    arguments = " ".join(f'data-{key}="{e(value)}"' for key, value in data.items())
    return f'<button type="button" data-do="{do}" {arguments} {attributes}>{label}</button>'


def _total(info: Json) -> float:
    times = info.get("timing_ms") or {}
    return _number(times["total"]) if "total" in times else sum(map(_number, times.values()))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _yes(claim: bool) -> str:
    return "true" if claim else "false"
