"""What each expert is worth to a request, and which experts may not answer it; `strategies` then chooses among them.

It knows neither embeddings nor cards.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from multimoe.config import ExpertSpec
from multimoe.decision import Policy
from multimoe.errors import UnknownModel
from multimoe.messages import Modality
from multimoe.strategies.batch import Plans, Routes, plans, route_batch
from multimoe.strategies.choices import every_order, plackett_luce
from multimoe.strategies.plan import Plan, plan

__all__ = [
    "Plan",
    "Plans",
    "Routes",
    "every_order",
    "ineligible",
    "loads",
    "overflowing",
    "plackett_luce",
    "plan",
    "plans",
    "route_batch",
    "utilities",
]

Float = NDArray[np.float64]


def utilities(quality: Float, costs: Float, latencies: Float, preference: float, load: Float | None = None) -> Float:
    """Quality less what it costs in money and time, (n,); costs and latencies in [0, 1] of the roster's dearest.

    At `preference` 1 quality alone counts; at 0 the dearest and slowest expert pays a whole unit of quality. Time is
    latency (1 + load): an expert with room for R requests answers R in its latency, so whoever finds L there waits
    L / R = `load` (n,) of it.
    """
    time = latencies if load is None else latencies * (1 + load)
    utility: Float = quality - (1 - preference) * (costs + time) / 2
    return utility


def loads(
    experts: Sequence[ExpertSpec], in_flight: Mapping[str, int], replicas: Mapping[str, int], capacity_factor: float
) -> dict[str, float]:
    """The share of each expert's room that its requests `in_flight` (under way and waiting) take; at 1 it is full.

    Its room is `capacity_factor` times the capacity of its `replicas`, of which a sleeping expert will have one.
    """
    return {
        expert.name: in_flight.get(expert.name, 0)
        / (capacity_factor * (expert.capacity or expert.serve.max_ongoing_requests) * max(1, replicas[expert.name]))
        for expert in experts
    }


def overflowing(load: Mapping[str, float]) -> dict[str, str]:
    """Which experts are full, and that in words, by the `load` of all that may answer; none where all are."""
    full = {name: f"is full, at {share:.0%} of its room" for name, share in load.items() if share >= 1}
    return full if len(full) < len(load) else {}


def ineligible(
    experts: Sequence[ExpertSpec], present: Sequence[Modality], policy: Policy, unavailable: Mapping[str, str]
) -> dict[str, str]:
    """Why an expert may not answer, in words; experts that may are not listed. Raises UnknownModel."""
    for name in policy.experts:
        if name not in (names := {expert.name for expert in experts}):
            raise UnknownModel(f"no expert {name!r}; there are: {', '.join(sorted(names))}", param="experts")
    limits = policy.experts or policy.exclude or policy.max_cost is not None or policy.max_latency_ms is not None
    reasons: dict[str, str] = {}
    for expert in experts:
        if expert.inputs.isdisjoint(present):
            reasons[expert.name] = f"reads {_listed(expert.inputs)}, the request has {_listed(present)}"
        elif limits and (objection := _objection(expert, policy)):
            reasons[expert.name] = objection
        elif expert.name in unavailable:
            reasons[expert.name] = unavailable[expert.name]
    return reasons


def _objection(expert: ExpertSpec, policy: Policy) -> str | None:
    """Why the request does not want this expert."""
    if policy.experts and expert.name not in policy.experts:
        return "not among the experts asked for"
    if expert.name in policy.exclude:
        return "excluded by the request"
    if policy.max_cost is not None and expert.cost > policy.max_cost:
        return f"costs US${expert.cost:g}, the limit is US${policy.max_cost:g}"
    if policy.max_latency_ms is not None and expert.latency_ms > policy.max_latency_ms:
        return f"usually takes {expert.latency_ms:g} ms, the limit is {policy.max_latency_ms:g} ms"
    return None


def _listed(modalities: Sequence[Modality] | frozenset[Modality]) -> str:
    return " and ".join(sorted(modalities)) or "nothing"
