"""Answers as JSON: OpenAI's chat completion and its chunks, and our `x_multimoe` beside them. Pure functions.

`x_multimoe` is the same object everywhere: with the decision alone (a dry run, the first chunk of a stream), then with
what every expert did (`final`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field

from gateway.api.policies import MODEL, Asked
from multimoe.decision import Choice, Considered, Decision
from multimoe.messages import ChatRequest, Modality
from multimoe.outputs import Frozen, Output, Usage, Worker
from multimoe.reply import Combine, Part, PartRole, Reply

SCHEMA = 1


class ExpertShare(Frozen):
    """One expert's share in an answer. `prob` is that of being drawn first, None where the gate was not asked.

    `status` "chosen" is before it has answered, and `reason` why one was spared or passed over; `output` is filled when
    the request says `include_outputs`. `inside` are those who answered in an expert that is a gateway itself.
    """

    id: str
    weight: float
    prob: float | None = None
    quality: float | None = None
    status: Literal["chosen", "ok", "error", "timeout", "skipped"] = "chosen"
    role: PartRole | None = None
    latency_ms: float | None = None
    cost: float | None = None
    error: str | None = None
    reason: str | None = None
    output: Output | None = None
    inside: tuple[Worker, ...] = ()


class ConsideredShare(Frozen):
    id: str
    prob: float
    quality: float


class GateRef(Frozen):
    version: int
    alias: str | None


class Routing(Frozen):
    """`x_multimoe`: who answers or answered, with what weight, how likely that choice was, and why.

    `entropy` of the gate's distribution in nats. `rateable` False says that the answer could not be kept, so a rating
    of it would not be found. `output` is the blended answer as data, where outputs were asked for. `combine` is
    how the answer was made, `combine_reason` why not as `combine_asked`, and `agreement` how like the other texts the
    one given is, where they were compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    schema_version: int = Field(default=SCHEMA, serialization_alias="schema")
    completion_id: str | None
    gate: GateRef | None
    top_k: int
    combine: Combine
    combine_asked: Combine
    combine_reason: str | None = None
    agreement: float | None = None
    strategy: str | None
    modalities: tuple[Modality, ...]
    explored: bool
    propensity: float | None
    entropy: float | None
    experts: tuple[ExpertShare, ...]
    considered: tuple[ConsideredShare, ...]
    ineligible: dict[str, str]
    reason: tuple[str, ...]
    timing_ms: dict[str, float]
    degraded: bool = False
    rateable: bool = True
    final: bool = False
    output: Output | None = None


def planned(asked: Asked, request: ChatRequest, decision: Decision | None, completion_id: str | None) -> Routing:
    """Before anybody has answered."""
    if decision is None:
        shares: tuple[ExpertShare, ...] = (ExpertShare(id=f"{MODEL}/{asked.expert}", weight=1.0),)
    else:
        shares = tuple(_chosen(choice) for choice in decision.chosen)
    combine: Combine = asked.blend.combine if decision else "best"
    return Routing(
        completion_id=completion_id,
        gate=GateRef(version=decision.gate_version, alias=_alias(asked, decision)) if decision else None,
        top_k=len(shares),
        combine=combine,
        combine_asked=combine,
        strategy=decision.strategy if decision else None,
        modalities=decision.modalities if decision else tuple(sorted(request.modalities)),
        explored=decision.explored if decision else False,
        propensity=decision.propensity if decision else None,
        entropy=_entropy([c.probability for c in decision.considered]) if decision else None,
        experts=shares,
        considered=_others(decision, {share.id for share in shares}),
        ineligible=decision.ineligible if decision else {},
        reason=decision.reasons if decision else ("asked for by name",),
        timing_ms=_rounded(decision.timing_ms if decision else {}),
    )


def done(plan: Routing, reply: Reply, outputs: bool, rateable: bool, total_ms: float) -> Routing:
    """After everybody has."""
    seen = {c.expert: c for c in reply.decision.considered} if reply.decision else {}
    shares = tuple(_did(part, seen.get(part.expert), outputs) for part in reply.parts)
    took = {("experts" if step == "answer" else step): ms for step, ms in reply.timing_ms.items()}
    return plan.model_copy(
        update={
            "combine": reply.combine,
            "combine_reason": reply.combine_reason or None,
            "agreement": reply.agreement,
            "experts": shares,
            "considered": _others(reply.decision, {share.id for share in shares}),
            "timing_ms": {**plan.timing_ms, **_rounded({**took, "total": total_ms})},
            "degraded": reply.degraded,
            "rateable": rateable,
            "final": True,
            "output": reply.output if outputs else None,
        }
    )


def as_json(routing: Routing) -> dict[str, Any]:
    return routing.model_dump(mode="json")


def served_model(asked: Asked, plan: Routing, reply: Reply | None) -> str:
    """The expert's id when exactly one made the text, else what was asked for."""
    if reply is None:
        return plan.experts[0].id if len(plan.experts) == 1 else asked.model
    spoke = [part.expert for part in reply.parts if part.role == "answer" and part.status == "ok"]
    return f"{MODEL}/{spoke[0]}" if len(spoke) == 1 else asked.model


def usage_json(usage: Usage, parts: Sequence[Part]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cost": cost_of(parts),
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def cost_of(parts: Sequence[Part]) -> float:
    """US$, of everyone who was asked."""
    return sum(part.cost for part in parts if part.status != "skipped")


def fingerprint(plan: Routing) -> str | None:
    return f"gate-{plan.gate.version}" if plan.gate else None


def path_taken(plan: Routing) -> str:
    if plan.gate is None:
        return "pinned"
    if plan.degraded:
        return "fallback"
    return "blend" if len(plan.experts) > 1 else "single"


def headers(plan: Routing, cost: float | None = None) -> Mapping[str, str]:
    """`cost` is left out of streams, whose headers go before it is known."""
    found = {
        "x-multimoe-completion-id": plan.completion_id or "",
        "x-multimoe-experts": ", ".join(f"{share.id};w={share.weight:.2g}" for share in plan.experts),
        "x-multimoe-path": path_taken(plan),
    }
    if plan.gate:
        found["x-multimoe-gate"] = str(plan.gate.version)
    if cost is not None:
        found["x-multimoe-cost"] = f"{cost:.6g}"
    return found


def _alias(asked: Asked, decision: Decision) -> str | None:
    """As what the version answered: a canary does so for requests that asked for none."""
    contest = decision.contest
    return "canary" if contest and contest.challenger == decision.gate_version else asked.gate_alias


def _chosen(choice: Choice) -> ExpertShare:
    return ExpertShare(
        id=f"{MODEL}/{choice.expert}", weight=choice.weight, prob=choice.probability, quality=choice.quality
    )


def _did(part: Part, seen: Considered | None, outputs: bool) -> ExpertShare:
    return ExpertShare(
        id=f"{MODEL}/{part.expert}",
        weight=part.weight,
        prob=seen.probability if seen else None,
        quality=seen.quality if seen else None,
        status=part.status,
        role=part.role,
        latency_ms=round(part.latency_ms, 1),
        cost=part.cost,
        error=part.error,
        reason=part.reason or None,
        output=part.output if outputs else None,
        inside=part.usage.by,
    )


def _others(decision: Decision | None, chosen: set[str]) -> tuple[ConsideredShare, ...]:
    considered = decision.considered if decision else ()
    named = ((f"{MODEL}/{c.expert}", c) for c in considered)
    return tuple(ConsideredShare(id=i, prob=c.probability, quality=c.quality) for i, c in named if i not in chosen)


def _entropy(probabilities: Sequence[float]) -> float:
    return round(sum(p * math.log(1 / p) for p in probabilities if p > 0), 4)


def _rounded(times: Mapping[str, float]) -> dict[str, float]:
    return {step: round(ms, 1) for step, ms in times.items()}
