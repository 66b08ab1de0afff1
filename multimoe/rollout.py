"""How a new gate version comes to serve, and when it is taken back: which step comes next, and why, in words.

    proven better ──► shadow ──► canary ──► champion, watched ──► confirmed
                        │          │              │
                        └──────────┴── withdrawn  └── rolled back

It takes no step itself and reads no log: what is known is handed to it.
"""

from datetime import datetime, timedelta

import numpy as np

from multimoe.config import RolloutSpec
from multimoe.evidence import Earned, Look, Seen
from multimoe.journal import Standing, Step, Trial
from multimoe.offpolicy import Estimate

Z = 1.96  # of a 95 % interval


def first_step(version: int, spec: RolloutSpec, now: datetime, reason: str) -> Step:
    """Where a version goes that was proven better off-policy."""
    if spec.shadow_requests > 0:
        return Step(at=now, action="shadow", version=version, reason=reason)
    return _past_shadow(version, spec, now, reason)


def next_step(look: Look, spec: RolloutSpec, proof: Estimate | None, now: datetime) -> Step | None:
    """The step that what is known calls for; None to wait. `proof` is the gain by which the version was proven."""
    standing, trial = look.standing, look.standing.trial
    if standing.watched is not None and look.watch is not None:
        step = _after_watch(standing, standing.watched, look.watch, look.enough, spec, now)
        if step is not None:
            return step
    if trial is None or look.seen is None:
        return None
    if look.seen.errors:
        return _withdrawn(trial, now, f"it could not decide: {look.seen.error}")
    if look.canary is None:
        return _after_shadow(trial, look.seen, spec, proof, now)
    return _after_canary(standing.champion, trial, look.canary, spec, proof, now)


def still_stands(proof: Estimate | None, canary: Earned) -> bool:
    """Whether the gain proven off-policy, pooled with the canary's by precision, still clears zero at 95 %."""
    if proof is None:
        return False
    errors = np.array([max(proof.high - proof.low, 1e-9) / (2 * Z), canary.error])
    weights = errors**-2 / (errors**-2).sum()
    value = float(weights @ [proof.value, canary.gain.value])
    return bool(value > Z * float((errors**-2).sum()) ** -0.5)


def _after_shadow(trial: Trial, seen: Seen, spec: RolloutSpec, proof: Estimate | None, now: datetime) -> Step | None:
    if spec.shadow_requests == 0 or (proof is None and spec.canary_share == 0):
        return None  # put there by hand, and nothing but a hand can tell that it is good
    if seen.requests < spec.shadow_requests and now - trial.since < timedelta(days=spec.days):
        return None
    cost, usual = seen.cost.challenger, seen.cost.champion
    if cost > spec.most_cost * usual + 1e-12:
        told = f"its choices cost US${cost:.2g} a request, the champion's US${usual:.2g}"
        return _withdrawn(trial, now, f"{told}; promote it by hand if that is wanted")
    told = f"in shadow it chose as the champion on {seen.agreement:.0%} of {seen.requests} requests"
    return _past_shadow(trial.version, spec, now, told)


def _past_shadow(version: int, spec: RolloutSpec, now: datetime, reason: str) -> Step:
    if spec.canary_share > 0:
        return Step(at=now, action="canary", version=version, share=spec.canary_share, reason=reason)
    return _promoted(version, spec, now, reason)


def _after_canary(
    champion: int, trial: Trial, canary: Earned, spec: RolloutSpec, proof: Estimate | None, now: datetime
) -> Step | None:
    told = f"{_in_words(canary)} against gate {champion}"
    if canary.worse:
        return _withdrawn(trial, now, f"as a canary it earned less: {told}")
    if canary.no_worse:
        return _promoted(trial.version, spec, now, f"as a canary it was no worse: {told}")
    if canary.ratings < spec.canary_ratings and now - trial.since < timedelta(days=spec.days):
        return None
    if canary.gain.value - Z * canary.error > -spec.margin:  # one look, so a plain interval will do
        return _promoted(trial.version, spec, now, f"as a canary it was no worse: {told}")
    if still_stands(proof, canary):
        return _promoted(trial.version, spec, now, f"the canary was inconclusive and the proof stands: {told}")
    return _withdrawn(trial, now, f"the canary did not confirm that it is better: {told}")


def _after_watch(
    standing: Standing, since: datetime, watch: Earned, enough: int, spec: RolloutSpec, now: datetime
) -> Step | None:
    told = f"{_in_words(watch)} against what gate {standing.champions[-2]} earned before"
    if watch.worse:
        reason = f"as champion it earned less: {told}"
        return Step(at=now, action="rolled back", version=standing.champions[-2], reason=reason)
    if watch.ratings < enough and now - since < timedelta(days=spec.days):
        return None
    reason = f"not seen to be worse as champion: {told}" if watch.ratings else "there were no ratings to compare"
    return Step(at=now, action="confirmed", version=standing.champion, reason=reason)


def _promoted(version: int, spec: RolloutSpec, now: datetime, reason: str) -> Step:
    return Step(at=now, action="promoted", version=version, watched=spec.watch_ratings > 0, reason=reason)


def _withdrawn(trial: Trial, now: datetime, reason: str) -> Step:
    return Step(at=now, action="withdrawn", version=trial.version, reason=reason)


def _in_words(earned: Earned) -> str:
    gain = earned.gain
    return f"{gain.value:+.3f} ({gain.low:+.2f} to {gain.high:+.2f}) on {earned.ratings} rated answers"
