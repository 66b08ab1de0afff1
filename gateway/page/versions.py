"""The gate's figures, its versions, and how far a retraining is."""

from collections.abc import Sequence

from gateway.change.verdicts import became, why
from gateway.client import Json
from gateway.page.html import button, done, e, number, percent, problem, track

GAIN = "gain_doubly_robust"  # the figure of a version's manifest that decides whether it is promoted
UNMOVED = ("candidate", "refused")  # stages of a version that was never on trial


def gate_cards(gate: Json, stats: Json) -> str:
    """The figures on top of the gate's tab."""
    figures = {
        "answers now": f"gate {gate.get('version', '?')}",
        "answers kept": f"{number(stats.get('interactions')):,.0f}",
        "ratings": f"{number(stats.get('ratings')):,.0f}",
        "of them good": percent(stats["positive"]) if stats.get("positive") is not None else "–",
        "of questions explored": percent((gate.get("defaults") or {}).get("explore")),
    }
    if trial := gate.get("challenger"):
        figures[f"on trial ({trial['stage']})"] = f"gate {trial['version']}"
    cards = "".join(
        f'<div class="mm-card"><b>{e(value)}</b><span>{e(key)}</span></div>' for key, value in figures.items()
    )
    return f'<div class="mm-cards">{cards}</div>'


def versions(rows: Sequence[Json], champion: object) -> str:
    """A row for each version, newest first, with what its judgement said."""
    if not rows:
        return '<div class="mm-card mm-empty"><p>No versions yet.</p></div>'
    newest = sorted(rows, key=lambda row: number(row.get("version")), reverse=True)
    body = "".join(_version(row, champion) for row in newest)
    head = "<tr><th>Version</th><th>Made</th><th>Ratings</th><th>Better by</th><th>Verdict</th><th></th></tr>"
    return (
        '<div class="mm-card"><h3>Versions</h3><div class="mm-scroll"><table class="mm-versions">'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div></div>"
    )


def trial(gate: Json) -> str:
    """What is known so far of the version on trial, and of a new one on probation; empty where there is neither."""
    lines = []
    if tried := gate.get("challenger"):
        seen = tried.get("seen") or {}
        does = f"answers {percent(tried.get('share'))} of questions" if tried.get("share") else "answers nothing yet"
        lines.append(
            f"Gate {tried.get('version')} {does} and chooses the same on {percent(seen.get('agreement'))} of "
            f"{number(seen.get('requests')):.0f}. {_earned(tried.get('earned'))}"
        )
    if watch := gate.get("watch"):
        lines.append(
            f"Gate {gate.get('version')} is on probation. {_earned(watch.get('earned'))} Compared with what gate "
            f"{watch.get('against')} earned before."
        )
    told = "".join(f"<p>{e(line)}</p>" for line in lines)
    return f'<div class="mm-card mm-trial"><h3>On trial</h3>{told}</div>' if lines else ""


def _earned(earned: object) -> str:
    if not isinstance(earned, dict):
        return ""
    return f"Better by {_interval(earned.get('gain'))} on {number(earned.get('ratings')):.0f} rated answers."


def job(running: Json) -> str:
    """How far a retraining is, or what came of it."""
    if running.get("status") == "failed":
        return problem(str(running.get("error") or "The retraining failed; the gateway's log says why."))
    result = running.get("result") or {}
    if result:
        kept = "answers now" if result.get("promoted") else "is kept, but does not answer"
        return done(f"Gate {result.get('version')} {became(result, kept)}: {result.get('reason', '')}")
    line = f"{e(running.get('message') or 'Waiting to start…')} {percent(running.get('progress'))}"
    bar = track(running.get("progress"), "var(--mm-accent)")
    return f'<div class="mm-job" role="status"><div class="mm-line mm-live">{line}</div>{bar}</div>'


def _version(row: Json, champion: object) -> str:
    version = row.get("version")
    serves = version == champion
    moved = row.get("stage") if row.get("stage") not in UNMOVED else None
    tag = f'<span class="mm-tag mm-dim">{e(moved)}</span>' if moved else ""
    tag = '<span class="mm-tag">answers now</span>' if serves else tag
    act = "" if serves else button("promote", 'class="mm-pill"', "Promote", version=version)
    gain = _interval((row.get("metrics") or {}).get(GAIN))
    made = str(row.get("created") or "")[:16].replace("T", " ")
    return (
        f"<tr><td><b>gate {e(version)}</b> {tag}</td><td>{e(made)}</td><td>{e(row.get('ratings') or 0)}</td>"
        f'<td>{e(gain)}</td><td class="mm-reason">{e(why(row) or "")}</td>'
        f"<td>{act}</td></tr>"
    )


def _interval(estimate: object) -> str:
    """An estimate with its interval, as +0.04 [0.01, 0.07]."""
    if isinstance(estimate, dict):
        value, low, high = (number(estimate.get(key)) for key in ("value", "low", "high"))
        return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return "–"
