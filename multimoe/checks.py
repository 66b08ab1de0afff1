"""What speaks against a candidate that is better on average: each check is one way in which averages deceive.

A candidate may starve an expert nobody knows enough of, be surer than it is right, fail what it must be able to do, or
move load and cost further than was agreed to. The checks know gates and rated answers, and neither log nor files.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from multimoe.calibration import Reliability
from multimoe.config import PromotionSpec
from multimoe.decision import Policy
from multimoe.errors import MultimoeError
from multimoe.examples import Example, about, label_votes
from multimoe.gate import Gate
from multimoe.golden import Golden
from multimoe.judge import Holdout
from multimoe.replay import Replayed, replay
from multimoe.training import predictions
from multimoe.verdict import Check

Float = NDArray[np.float64]

NEWEST = 1000  # decisions of the log by which the use of experts is compared
RESAMPLES = 200
TOLD = 3  # failures listed by name


def refusals(
    holdouts: Sequence[Holdout], champion: Gate, examples: Sequence[Example], requests: Sequence[Golden]
) -> tuple[Check, ...]:
    """All checks of the last candidate, the one that would serve, passed or not; `examples` are all there are."""
    candidate, spec = holdouts[-1].candidate, champion.spec.promotion
    rows = [example for example in examples if _decided(example, candidate)][-NEWEST:]
    asked = [request for request in requests if _present(request, candidate)]
    used = _use(rows, candidate, champion, known_within(examples, candidate), spec) if rows else ()
    return (*used, calibration(holdouts, champion, spec), *([golden(asked, candidate)] if asked else []))


def known_within(examples: Sequence[Example], gate: Gate) -> Float:
    """Half the 95 % interval of each expert's mean rating, (experts,) (Agresti & Coull 1998); 0.49 without any."""
    column = {expert.name: i for i, expert in enumerate(gate.experts)}
    labels = [label for _, label in about(examples, column)]
    counted = label_votes(labels)
    at = np.array([column[label.expert] for label in labels], dtype=np.intp)
    scores = np.array([label.score for label in labels])
    n = np.bincount(at, counted, minlength=len(column)) + 4
    mean = (np.bincount(at, counted * scores, minlength=len(column)) + 2) / n
    half: Float = 1.96 * np.sqrt(mean * (1 - mean) / n)
    return half


def calibration(holdouts: Sequence[Holdout], champion: Gate, spec: PromotionSpec) -> Check:
    """Whether predictions on answers not learned from became less true, by more than tolerance and noise."""
    rows = [row for holdout in holdouts for row in holdout.rows]
    before, scores = predictions(rows, champion)
    if len(scores) == 0:
        return Check(name="calibration", passed=True, reason="no later answers are rated")
    counted = label_votes([label for _, label in about(rows, {expert.name for expert in champion.experts})])
    predicted = np.concatenate([predictions(holdout.rows, holdout.candidate)[0] for holdout in holdouts])
    new, old, least = _errors(predicted, before, scores, counted)
    lost = new - old > spec.calibration and least > 0
    told = f"calibration error {new:.3f}, the champion's {old:.3f}, on {len(scores)} later labels"
    return Check(
        name="calibration",
        passed=not lost,
        reason=f"loses calibration: {told}" if lost else told,
        figures={"calibration_error": new, "calibration_error_before": old},
    )


def golden(requests: Sequence[Golden], candidate: Gate) -> Check:
    """Whether one of the experts that must be able to answer is among the best for each golden request."""
    failed = [request for request in requests if not _answered(request, candidate)]
    if not failed:
        return Check(name="golden", passed=True, reason=f"answers all {len(requests)} golden requests")
    named = "; ".join(f"{request.name!r} does not go to {' or '.join(request.experts)}" for request in failed[:TOLD])
    more = f" and {len(failed) - TOLD} more" if len(failed) > TOLD else ""
    return Check(
        name="golden", passed=False, reason=f"fails {len(failed)} of {len(requests)} golden requests: {named}{more}"
    )


def _use(
    rows: Sequence[Example], candidate: Gate, champion: Gate, doubt: Float, spec: PromotionSpec
) -> tuple[Check, ...]:
    new, old = replay(rows, candidate), replay(rows, champion)
    costs = np.array([expert.cost for expert in candidate.experts])
    return _starvation(candidate, new, old, doubt, spec), _load(candidate, new, old, spec), _cost(new, old, costs, spec)


def _decided(example: Example, gate: Gate) -> bool:
    known = {expert.name for expert in gate.experts}
    return example.decision is not None and any(c.expert in known for c in example.decision.considered)


def _present(request: Golden, gate: Gate) -> bool:
    """Whether there is still someone who must be able to answer it."""
    return any(expert.name in request.experts for expert in gate.experts)


def _starvation(gate: Gate, new: Replayed, old: Replayed, doubt: Float, spec: PromotionSpec) -> Check:
    """Without its share an expert's interval stays wide for ever: it is judged by what chance said so far."""
    after, before = new.mean_part(), old.mean_part()
    starved = (after < spec.starved * before) & (doubt > spec.known_within)
    if not starved.any():
        return Check(name="starvation", passed=True, reason="every expert little is known of keeps a share")
    told = "; ".join(
        f"{gate.experts[i].name}'s share of requests it may answer falls from {before[i]:.1%} to {after[i]:.1%}, "
        f"though its quality is known only to ±{doubt[i]:.2f}"
        for i in np.flatnonzero(starved)
    )
    return Check(name="starvation", passed=False, reason=f"starves an expert: {told}")


def _load(gate: Gate, new: Replayed, old: Replayed, spec: PromotionSpec) -> Check:
    moved = new.parts.mean(axis=0) - old.parts.mean(axis=0)
    most = int(np.abs(moved).argmax())
    told = f"moves {gate.experts[most].name}'s share of the load by {moved[most]:+.1%}"
    passed = bool(abs(moved[most]) <= spec.load_drift)
    return Check(name="load", passed=passed, reason=told if passed else f"{told}, {spec.load_drift:.1%} is allowed")


def _cost(new: Replayed, old: Replayed, costs: Float, spec: PromotionSpec) -> Check:
    after, before = (float((replayed.called @ costs).mean()) for replayed in (new, old))
    told = f"costs US${after:.2g} a request, the champion US${before:.2g}"
    passed = after <= spec.most_cost * before + 1e-12
    return Check(name="cost", passed=passed, reason=told if passed else f"{told}; {spec.most_cost:g} times is allowed")


def _errors(predicted: Float, before: Float, scores: Float, counted: Float) -> tuple[float, float, float]:
    """Calibration errors of both predictions, and the 5 % quantile of their difference over resampled labels."""
    new, old = Reliability(predicted, scores), Reliability(before, scores)
    generator = np.random.default_rng(0)
    drawn = (generator.multinomial(len(scores), np.full(len(scores), 1 / len(scores))) for _ in range(RESAMPLES))
    differences = [new.error(times * counted) - old.error(times * counted) for times in drawn]
    return new.error(counted), old.error(counted), float(np.quantile(differences, 0.05))


def _answered(request: Golden, gate: Gate) -> bool:
    """Among as many as the strategy asks at most: those it chooses without chance, then those with the next weights."""
    greedy = Policy(explore=False)
    try:
        names, plan = gate.replan(request.embedding, gate.decide(request.embedding, greedy, seed=0), greedy)
    except MultimoeError:
        return False
    by_weight = sorted(range(len(names)), key=lambda i: -plan.shares[i])
    best = list(dict.fromkeys([*plan.greedy, *by_weight]))[: plan.longest]
    return any(names[i] in request.experts for i in best)
