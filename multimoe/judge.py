"""Is one gate better than another? Answered from rated answers that neither has learned from, with intervals.

It replays both gates on the logged requests. It knows neither the log nor files, and promotes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from multimoe import offpolicy
from multimoe.errors import TooLittleData
from multimoe.examples import Example, votes
from multimoe.gate import Gate

FEWEST_JUDGED = 20  # later answers that were drawn and rated
SMALLEST_SAMPLE = 5.0  # effective sample size; below it, a few lucky answers would decide


@dataclass(frozen=True)
class Verdict:
    """`reason` says in words why the candidate is better, or why that is not proven."""

    better: bool
    reason: str
    judged: int = 0
    metrics: dict[str, offpolicy.Estimate] = field(default_factory=dict)


def judge(later: Sequence[Example], candidate: Gate, champion: Gate) -> Verdict:
    """Is the candidate worth more than the champion on rated answers neither learned from?

    Better means that the 95 % intervals of the gain by doubly robust estimate and by SNIPS both lie above zero. The
    first alone believes its reward model, the candidate's own, where no logged answer contradicts it: on ratings that
    were pure chance it called 9 of 60 candidates better; both together called none.
    """
    rows = [example for example in later if _judgeable(example, candidate)]
    if len(rows) < FEWEST_JUDGED:
        return Verdict(False, f"{len(rows)} later answers were drawn by chance and rated, {FEWEST_JUDGED} are needed")
    log = _log(rows, candidate)
    new, old = _replay(rows, candidate, candidate), _replay(rows, champion, candidate)
    try:
        metrics = {
            "candidate_snips": offpolicy.snips(log, new),
            "candidate_doubly_robust": offpolicy.doubly_robust(log, new),
            "champion_snips": offpolicy.snips(log, old),
            "champion_doubly_robust": offpolicy.doubly_robust(log, old),
            "gain_snips": offpolicy.snips_gain(log, new, old),
            "gain_doubly_robust": offpolicy.doubly_robust_gain(log, new, old),
        }
    except TooLittleData as error:
        return Verdict(False, error.message, len(rows))
    return _verdict(metrics, len(rows))


def _verdict(metrics: dict[str, offpolicy.Estimate], judged: int) -> Verdict:
    gain, check = metrics["gain_doubly_robust"], metrics["gain_snips"]
    figures = (
        f"{gain.value:+.3f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f}; by SNIPS {check.low:+.3f} to "
        f"{check.high:+.3f}) on {judged} later answers"
    )
    if gain.effective_sample_size < SMALLEST_SAMPLE:
        worth = f"they are worth only {gain.effective_sample_size:.0f} of its own, {SMALLEST_SAMPLE:.0f} are needed"
        return Verdict(False, f"not proven better: {figures}, but {worth}; explore more", judged, metrics)
    better = gain.low > 0 and check.low > 0
    return Verdict(better, f"{'better' if better else 'not proven better'}: {figures}", judged, metrics)


def _judgeable(example: Example, gate: Gate) -> bool:
    """Rated, and drawn by chance: a choice that could not have been another says nothing about others."""
    decision = example.decision
    known = {expert.name for expert in gate.experts}
    return (
        decision is not None
        and example.reward is not None
        and 0 < decision.propensity < 1
        and any(considered.expert in known for considered in decision.considered)
    )


def _log(rows: Sequence[Example], model: Gate) -> offpolicy.Log:
    raters = [example.rater for example in rows]
    names = [f"rater {rater}" if rater is not None else f"row {i}" for i, rater in enumerate(raters)]
    return offpolicy.Log(
        rewards=np.array([example.reward for example in rows], dtype=np.float64),
        propensities=np.array([example.decision.propensity for example in rows if example.decision]),
        predicted=np.array([_predicted(example, model) for example in rows]),
        groups=np.unique(names, return_inverse=True)[1],
        votes=votes(raters),
    )


def _predicted(example: Example, model: Gate) -> float:
    """The model's guess for the logged answer. An expert that is gone has no guess, nor a chance to be drawn again."""
    known = {expert.name for expert in model.experts}
    chosen = [choice for choice in example.decision.chosen if choice.expert in known] if example.decision else []
    quality = model.qualities(example.embedding, [choice.expert for choice in chosen])
    weights = np.array([choice.weight for choice in chosen])
    return float(weights @ quality / weights.sum()) if weights.sum() > 0 else 0.5


def _replay(rows: Sequence[Example], policy: Gate, model: Gate) -> offpolicy.Replay:
    """`policy` on logged requests: its chance of each logged choice, and what `model` expects of its own choices.

    It explores as the catalog says, even where a request asked for more: that is how it would serve.
    """
    chances, expected = [], []
    for example in rows:
        if example.decision:
            asked = example.decision.policy.model_copy(update={"explore": None})
            names, plan = policy.replan(example.embedding, example.decision, asked)
            order = [c.expert for c in example.decision.chosen]
            known = all(name in names for name in order)
            chances.append(plan.probability([names.index(name) for name in order]) if known else 0.0)
            expected.append(plan.expected(model.qualities(example.embedding, names)))
    return offpolicy.Replay(np.array(chances), np.array(expected))
