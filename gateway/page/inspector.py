"""Everything about one answer: shares, what else was considered, times, each expert's own output, the raw JSON."""

import json
from collections.abc import Mapping

from gateway.client import Json
from gateway.page.html import colours, e, meter, name, number, percent, span, track
from gateway.page.turn import Turn

STEPS = {"embed": "read", "route": "route", "experts": "experts", "combine": "blend", "blend": "blend"}


def inspector(turn: Turn | None) -> str:
    """Everything about one answer: shares, what else was considered, times, each expert's own output, the raw JSON."""
    if turn is None or not turn.info:
        return (
            '<div class="mm-card mm-empty"><h3>Who answers, and why</h3><p>Ask something, and this panel shows which '
            "experts the gate chose, with what weight, what else it considered, and how long each step took.</p></div>"
        )
    sections = (_shares(turn), _considered(turn), _timeline(turn), _facts(turn), _outputs(turn), _raw(turn))
    return f'<div class="mm-card mm-inspector">{"".join(sections)}</div>'


def output(said: Json) -> str:
    """One expert's own output, by its kind."""
    match said.get("kind"):
        case "labels":
            rows = [(row.get("name"), row.get("probability")) for row in (said.get("labels") or ())[:5]]
            return "".join(meter(label, share) for label, share in rows)
        case "words" | "objects":
            found = [str(box.get("text", "")) for box in said.get("boxes") or ()]
            return f"<p>{e(' · '.join(found)) or 'nothing found'}</p>"
        case "transcript":
            spoken = " ".join(str(part.get("text", "")).strip() for part in said.get("segments") or ())
            return f"<p>“{e(spoken)}”</p>"
        case "events":
            rows = [(f"{ev.get('label')} {number(ev.get('start')):.1f} s", ev.get("score")) for ev in said["events"]]
            return "".join(meter(label, share) for label, share in rows[:6])
        case _:
            return f"<p>{e(said.get('text', json.dumps(said)))}</p>"


def _shares(turn: Turn) -> str:
    tint = colours(map(name, turn.experts))
    rows = "".join(
        f'<tr><td><i class="mm-dot" style="background:{tint[name(x)]}"></i>{e(name(x))}</td>'
        f'<td class="mm-grow">{track(x.get("weight"), tint[name(x)])}</td><td>{percent(x.get("weight"))}</td>'
        f"<td>{span(x['latency_ms']) if x.get('latency_ms') else ''}</td></tr>"
        for x in turn.experts
    )
    gate = turn.info.get("gate") or {}
    chip = f'<span class="mm-tag">gate {e(gate["version"])} {e(gate.get("alias") or "")}</span>' if gate else ""
    title = "Who would answer" if turn.state == "routed" else "Who answered"
    return f'<h3>{title} {chip}</h3><table class="mm-shares">{rows}</table>'


def _considered(turn: Turn) -> str:
    chosen = {name(x) for x in turn.experts}
    others = [x for x in turn.info.get("considered") or () if name(x) not in chosen][:8]
    rows = "".join(meter(name(x), x.get("prob")) for x in others)
    barred = [f"<dt>{e(who)}</dt><dd>{e(why)}</dd>" for who, why in (turn.info.get("ineligible") or {}).items()]
    closed = f'<details><summary>Could not answer this</summary><dl class="mm-facts">{"".join(barred)}</dl></details>'
    return (f"<h4>Also considered</h4>{rows}" if rows else "") + (closed if barred else "")


def _timeline(turn: Turn) -> str:
    measured = turn.info.get("timing_ms") or {}
    times = {step: number(ms) for step, ms in measured.items() if step not in ("total", "first_token")}
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
        "how blended": " because ".join(filter(None, (info.get("combine"), info.get("combine_reason")))),
        "first word after": span(first) if (first := (info.get("timing_ms") or {}).get("first_token")) else None,
        "read as": ", ".join(map(str, info.get("modalities") or ())),
        "propensity": f"{number(info['propensity']):.3f}" if info.get("propensity") is not None else None,
        "explored": {True: "yes, drawn by chance", False: "no, the likeliest"}.get(bool(info.get("explored"))),
        "tokens": f"{usage['prompt_tokens']} in, {usage['completion_tokens']} out"
        if "prompt_tokens" in usage
        else None,
        "cost": f"${number(usage['cost']):.5f}" if usage.get("cost") else None,
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
