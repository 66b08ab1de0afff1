"""Two gates decide the same request: which of them answers, and exactly how likely the answer's choice was.

The challenger answers a share of requests, none in shadow, drawn independently of either gate's own draw. So the logged
propensity is (1 - share) * the champion's chance of the choice + share * the challenger's, whoever made it: ratings of
either one's answers then tell about both.
"""

from collections.abc import Mapping
from random import Random

from multimoe.decision import Considered, Contest, Decision
from multimoe.embedding import Embedding
from multimoe.gate import Gate

COIN = 2**32  # added to the seed that the gates draw with, which is smaller


def contest(
    ours: Decision, theirs: Decision, champion: Gate, challenger: Gate, embedding: Embedding, share: float
) -> Decision:
    """The decision that is carried out. `ours` is the champion's, both were made from the same request and seed."""
    answering, beaten = (theirs, ours) if challenger_answers(ours.seed, share) else (ours, theirs)
    chances = [
        decided.propensity if decided is answering else gate.choice_probability(embedding, answering)
        for decided, gate in ((ours, champion), (theirs, challenger))
    ]
    weight = {theirs.gate_version: share, ours.gate_version: 1 - share}
    first = _mixed(answering, beaten, weight)
    return answering.model_copy(
        update={
            "propensity": min(1.0, (1 - share) * chances[0] + share * chances[1]),
            "chosen": tuple(c.model_copy(update={"probability": first[c.expert]}) for c in answering.chosen),
            "considered": _reordered(answering, first),
            "contest": Contest(
                champion=ours.gate_version,
                challenger=theirs.gate_version,
                share=share,
                champion_chance=chances[0],
                challenger_chance=chances[1],
                champion_choice=_names(ours),
                challenger_choice=_names(theirs),
                gain=_expected(theirs, theirs) - _expected(ours, theirs),
            ),
        }
    )


def defaulted(ours: Decision, challenger: int, share: float, error: str) -> Decision:
    """The champion's decision, where the challenger could make none."""
    return ours.model_copy(
        update={
            "contest": Contest(
                champion=ours.gate_version,
                challenger=challenger,
                share=share,
                champion_chance=ours.propensity,
                champion_choice=_names(ours),
                error=error,
            )
        }
    )


def challenger_answers(seed: int, share: float) -> bool:
    return Random(seed + COIN).random() < share  # noqa: S311  # chance that can be repeated, not a secret


def _mixed(answering: Decision, beaten: Decision, weight: Mapping[int, float]) -> dict[str, float]:
    """Probabilities of being drawn first, by expert, before it is known who answers."""
    other = {c.expert: c.probability for c in beaten.considered}
    ours, theirs = weight[answering.gate_version], weight[beaten.gate_version]
    return {c.expert: min(1.0, ours * c.probability + theirs * other[c.expert]) for c in answering.considered}


def _reordered(decision: Decision, first: Mapping[str, float]) -> tuple[Considered, ...]:
    considered = (c.model_copy(update={"probability": first[c.expert]}) for c in decision.considered)
    return tuple(sorted(considered, key=lambda c: (-c.probability, -c.quality)))


def _expected(decision: Decision, model: Decision) -> float:
    """The quality of one decision's choice, as the gate behind `model` predicts it."""
    quality = {c.expert: c.quality for c in model.considered}
    return sum(choice.weight * quality[choice.expert] for choice in decision.chosen)


def _names(decision: Decision) -> tuple[str, ...]:
    return tuple(choice.expert for choice in decision.chosen)
