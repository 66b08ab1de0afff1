"""Is one gate better than another? Answered from rated answers that neither has learned from, with intervals.

It replays both gates on the logged requests. It knows neither the log nor files, and promotes nothing.

A log is cut into blocks of time; what was learned before each block is judged on it, and all blocks together answer
(progressive validation; Blum, Kalai & Langford 1999). Ratings that trained an early candidate also judge a later one,
yet each candidate is fixed before the answers it is judged on are rated, so that the errors of blocks add up like
those of a fair game. Cross-validation has no such order: it called a candidate better in up to 6 % of logs of chance
ratings by the doubly robust estimate, this in up to 3 %, and from the same log it proves about twice as much as one
hold-out of the last 30 % (benchmarks/promotion.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multimoe import offpolicy
from multimoe.errors import TooLittleData
from multimoe.examples import Example, votes
from multimoe.gate import Gate
from multimoe.offpolicy import Estimate, Log, Replay
from multimoe.replay import Replayed, joined, replay
from multimoe.verdict import Check, Verdict

FEWEST_JUDGED = 20  # later answers that were drawn and rated
SMALLEST_SAMPLE = 5.0  # effective sample size; below it, a few lucky answers would decide


@dataclass(frozen=True, eq=False)
class Holdout:
    """Rated answers, and a gate that learned only from what came before them."""

    rows: Sequence[Example]
    candidate: Gate


def judge(holdouts: Sequence[Holdout], champion: Gate) -> Verdict:
    """Is what was learned worth more than the champion, on rated answers that neither learned from?"""
    drawn = [Holdout([row for row in h.rows if judgeable(row, champion)], h.candidate) for h in holdouts]
    drawn = [holdout for holdout in drawn if holdout.rows]
    rows = [row for holdout in drawn for row in holdout.rows]
    if len(rows) < FEWEST_JUDGED:
        why = f"{len(rows)} later answers were drawn by chance and rated, {FEWEST_JUDGED} are needed"
        return _unproven(why, len(rows))
    ours = [replay(holdout.rows, holdout.candidate) for holdout in drawn]
    theirs = [replay(holdout.rows, champion) for holdout in drawn]
    verdict = _worth_it(proven(*_evidence(rows, joined(ours), joined(theirs))), champion.spec.promotion.least_gain)
    return verdict.weighed([_newest(*_evidence(drawn[-1].rows, ours[-1], theirs[-1]))]) if verdict.better else verdict


def proven(log: Log, candidate: Replay, champion: Replay) -> Verdict:
    """Better means that the 95 % intervals of the gain by doubly robust estimate and by SNIPS both lie above zero.

    The first alone believes its reward model where no logged answer contradicts it: on logs of chance ratings with ten
    experts it called up to 8 % of candidates better, both together at most 2 %.
    """
    if np.ptp(log.rewards) == 0:
        return _unproven(
            f"all {len(log)} later answers have the same rating, which tells no gate from another", len(log)
        )
    try:
        metrics = {
            "candidate_snips": offpolicy.snips(log, candidate),
            "candidate_doubly_robust": offpolicy.doubly_robust(log, candidate),
            "champion_snips": offpolicy.snips(log, champion),
            "champion_doubly_robust": offpolicy.doubly_robust(log, champion),
            "gain_snips": offpolicy.snips_gain(log, candidate, champion),
            "gain_doubly_robust": offpolicy.doubly_robust_gain(log, candidate, champion),
        }
    except TooLittleData as error:
        return _unproven(error.message, len(log))
    gain, check = metrics["gain_doubly_robust"], metrics["gain_snips"]
    if gain.effective_sample_size < SMALLEST_SAMPLE:
        worth = f"they are worth only {gain.effective_sample_size:.0f} of its own, {SMALLEST_SAMPLE:.0f} are needed"
        return _unproven(f"not proven better: {_figures(gain, check)}, but {worth}; explore more", len(log), metrics)
    if not (gain.low > 0 and check.low > 0):  # so that what is no number proves nothing
        return _unproven(f"not proven better: {_figures(gain, check)}", len(log), metrics)
    reason = f"better: {_figures(gain, check)}"
    return Verdict("better", reason, len(log), metrics, (Check(name="gain", passed=True, reason=reason),))


def _worth_it(verdict: Verdict, least: float) -> Verdict:
    """Every change costs evidence: what the new champion learned from judges its successors no more."""
    if not verdict.better or verdict.metrics["gain_doubly_robust"].value >= least:
        return verdict
    return _unproven(f"{verdict.reason}; under {least:+.3f} is not worth a change", verdict.judged, verdict.metrics)


def judgeable(example: Example, gate: Gate) -> bool:
    """Rated, and drawn by chance: a choice that could not have been another says nothing about others."""
    decision = example.decision
    known = {expert.name for expert in gate.experts}
    return (
        decision is not None
        and example.reward is not None
        and 0 < decision.propensity < 1
        and any(considered.expert in known for considered in decision.considered)
    )


def logged(rows: Sequence[Example], model: Gate) -> Log:
    """Judgeable `rows` as the estimators take them, with `model`, which must not have learned from them, guessing."""
    return _log(rows, replay(rows, model))


def replayed(rows: Sequence[Example], policy: Gate, model: Gate) -> Replay:
    """`policy` on logged requests: its chance of each logged choice, and what `model` expects of its own choices.

    Both gates have the same roster. It explores as the catalog says, even where a request asked for more: that is how
    it would serve.
    """
    return _replay(replay(rows, policy), replay(rows, model))


def _evidence(rows: Sequence[Example], ours: Replayed, theirs: Replayed) -> tuple[Log, Replay, Replay]:
    return _log(rows, ours), _replay(ours, ours), _replay(theirs, ours)


def _log(rows: Sequence[Example], model: Replayed) -> Log:
    raters = [row.rater for row in rows]
    names = [f"rater {rater}" if rater is not None else f"row {i}" for i, rater in enumerate(raters)]
    return Log(
        rewards=np.array([row.reward for row in rows], dtype=np.float64),
        propensities=np.array([row.decision.propensity for row in rows if row.decision]),
        predicted=model.predicted(),
        groups=np.unique(names, return_inverse=True)[1],
        votes=votes(raters),
        options=model.offered,
    )


def _replay(policy: Replayed, model: Replayed) -> Replay:
    return Replay(policy.chances, policy.expected(model.quality), policy.first)


def _newest(log: Log, candidate: Replay, champion: Replay) -> Check:
    """What the newest answers say of the one candidate that would serve, should only earlier ones have been better."""
    try:
        gain = offpolicy.doubly_robust_gain(log, candidate, champion)
    except TooLittleData as error:
        return Check(name="newest", passed=True, reason=error.message)
    figures = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) on the newest {gain.n} answers"
    return Check(name="newest", passed=gain.high >= 0, reason=f"gains {figures}")


def _unproven(why: str, judged: int, metrics: Mapping[str, Estimate] | None = None) -> Verdict:
    return Verdict("not proven", why, judged, dict(metrics or {}), (Check(name="gain", passed=False, reason=why),))


def _figures(gain: Estimate, check: Estimate) -> str:
    return (
        f"{gain.value:+.3f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f}; by SNIPS {check.low:+.3f} to "
        f"{check.high:+.3f}) on {gain.n} later answers"
    )
