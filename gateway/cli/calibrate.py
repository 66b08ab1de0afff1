"""`multimoe gate calibrate`: what each preference would have bought on one's own log, and which one meets a target."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.console import FAILED, AsJson, Json, err, percent, print_json, print_table
from gateway.cli.past import history
from gateway.cli.session import session
from multimoe.config import PREFERENCES
from multimoe.errors import BadInput

if TYPE_CHECKING:
    from multimoe.gate import Gate
    from multimoe.offpolicy import Estimate
    from multimoe.report.tradeoff import Setting, Target, Tradeoff

UNITS = {"cost": "US$ a request", "latency_ms": "ms a request", "share": "of all requests"}


def calibrate(
    ctx: typer.Context,
    target_cost: Annotated[float | None, typer.Option(min=0, help="At most so many US$ a request, on average.")] = None,
    target_latency_ms: Annotated[
        float | None, typer.Option(min=0, help="At most so many ms until the slowest expert asked is done, on average.")
    ] = None,
    target_share: Annotated[
        str | None,
        typer.Option(help="Ask an expert in at most this share of requests: NAME=0.5, or 0.5 for the dearest."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decide the requests of your own log again at every preference: cost, time, quality, and the one to set.

    Exits 1 where no preference meets the target.
    """
    from multimoe.report.tradeoff import GRID, Tradeoff, dearest

    wanted = [figure is not None for figure in (target_cost, target_latency_ms, target_share)]
    if sum(wanted) > 1:
        raise BadInput("one target at a time: --target-cost, --target-latency-ms or --target-share")
    past = history(session(ctx))
    target = _target(target_cost, target_latency_ms, target_share, past.gate)
    tradeoff = Tradeoff(past)
    err().print(f"deciding {len(tradeoff.requests)} logged requests again …", style="dim", markup=False)
    settings = tradeoff.sweep(sorted({*GRID, past.gate.spec.preference}))
    found = tradeoff.meet(target, settings) if target else None
    if as_json:
        print_json(_facts(tradeoff, settings, target, found))
    else:
        _show(tradeoff, settings, target.expert if target and target.expert else dearest(past.gate))
        typer.echo(_advice(target, found, settings))
    if target and not found:
        raise typer.Exit(FAILED)


def _target(cost: float | None, latency_ms: float | None, share: str | None, gate: "Gate") -> "Target | None":
    from multimoe.report.tradeoff import Target

    if cost is not None:
        return Target(figure="cost", limit=cost)
    if latency_ms is not None:
        return Target(figure="latency_ms", limit=latency_ms)
    return _share(share, gate) if share is not None else None


def _share(asked: str, gate: "Gate") -> "Target":
    """From `NAME=0.5` or `0.5`. Raises BadInput."""
    from multimoe.report.tradeoff import Target, dearest

    name, _, number = asked.rpartition("=")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise BadInput(f"--target-share {asked!r}: give NAME=SHARE or SHARE, a share from 0 to 1")
    there = [spec.name for spec in gate.experts]
    if name and name not in there:
        raise BadInput(f"--target-share names {name!r}; there are: {', '.join(there)}")
    return Target(figure="share", limit=share, expert=name or dearest(gate))


def _show(tradeoff: "Tradeoff", settings: Sequence["Setting"], expert: str) -> None:
    words = {number: word for word, number in PREFERENCES.items()}
    now = tradeoff.gate.spec.preference
    rows = [
        (
            f"{s.preference:g}",
            " ".join(filter(None, (words.get(s.preference, ""), "(now)" if s.preference == now else ""))),
            f"{1000 * s.cost:.4g}",
            f"{s.latency_ms:.0f} ms",
            f"{s.quality:.3f}",
            percent(s.shares[expert]),
            _interval(s.value) if s.value else "too few ratings",
            f"{s.value.effective_sample_size:.0f}" if s.value else "",
        )
        for s in settings
    ]
    asks = f"asks {expert} "
    columns = ("preference ", "", "US$ per 1000 ", "latency ", "quality ", asks, "by ratings, 95 % interval", "worth ")
    print_table(columns, rows)
    typer.echo(
        f"\nFrom {len(tradeoff.requests)} logged requests, decided again by gate {tradeoff.gate.version}. Cost adds up "
        "all experts asked,\nlatency is the slowest one's, quality what the gate predicts. By ratings (SNIPS): "
        f"{len(tradeoff.later)} rated answers that\nthe gate was not fitted on; worth: how many of the setting's own "
        "answers those amount to."
    )


def _interval(estimate: "Estimate") -> str:
    """Cut to what a rating can be."""
    low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    return f"{estimate.value:.3f}  {low:.3f} to {high:.3f}"


def _advice(target: "Target | None", found: "Setting | None", settings: Sequence["Setting"]) -> str:
    if target is None:
        return "\nName a target to find the preference for it: --target-cost, --target-latency-ms or --target-share."
    goal = f"at most {target.limit:g} {UNITS[target.figure]}"
    if found is None:
        least = min(settings, key=target.of)
        return (
            f"\nNo preference gives {goal}: at {least.preference:g} it is still {target.of(least):.4g}. "
            "Explore less (gate.explore), set max_cost or max_latency_ms in requests, or take dear experts out."
        )
    return (
        f"\nFor {goal}, set this in the catalog (expect {target.of(found):.4g}, quality {found.quality:.3f}):\n\n"
        f"gate:\n  preference: {found.preference:g}"
    )


def _facts(
    tradeoff: "Tradeoff", settings: Sequence["Setting"], target: "Target | None", found: "Setting | None"
) -> Json:
    return {
        "gate_version": tradeoff.gate.version,
        "requests": len(tradeoff.requests),
        "rated": len(tradeoff.later),
        "now": tradeoff.gate.spec.preference,
        "settings": [setting.model_dump() for setting in settings],
        "target": target.model_dump() if target else None,
        "found": found.model_dump() if found else None,
    }
