"""/v1/experts: who can answer, in what state, and adding, scaling and removing them while the product runs."""

import asyncio
import logging
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BeforeValidator

from gateway.api.policies import MODEL
from gateway.cluster import ExpertState
from gateway.reading.schemas import Scale
from gateway.records.bulkhead import COUNTING_SECONDS
from gateway.services import Product, Services, StrictRoute
from multimoe.config import ExpertSpec, validate
from multimoe.errors import BadInput, NotFound, Unavailable
from multimoe.feedback import ExpertStats

logger = logging.getLogger(__name__)
router = APIRouter(route_class=StrictRoute, tags=["experts"])

Json = dict[str, Any]
NewExpert = Annotated[ExpertSpec, BeforeValidator(lambda tree: validate(ExpertSpec, tree, "the expert"))]


@router.get("/v1/experts")
async def experts(services: Product) -> Json:
    """Every expert with its state, replicas, cost and how it has done so far."""
    roster, states, stats = await asyncio.gather(
        services.cluster.roster(), services.cluster.expert_states(), _stats(services)
    )
    return {"object": "list", "data": [_summary(spec, states, stats) for spec in roster]}


@router.get("/v1/experts/{name:path}")
async def expert(name: str, services: Product) -> Json:
    """One of them, with what it is made of. Its backend's options are left out: they may hold a key."""
    spec = _find(name, await services.cluster.roster())
    states, stats = await asyncio.gather(services.cluster.expert_states(), _stats(services))
    return _summary(spec, states, stats) | {"spec": spec.model_dump(mode="json", exclude={"options"})}


@router.post("/v1/experts", status_code=201)
async def add(spec: NewExpert, services: Product) -> Json:
    """Deploy an expert (one entry of the catalog's `experts`); the gate routes to it at once, from its card."""
    await services.cluster.add(spec)
    return await expert(spec.name, services)


@router.put("/v1/experts/{name:path}/scale")
async def scale(name: str, limits: Scale, services: Product) -> Json:
    """Between how many replicas it may have; `min_replicas` 0 lets it sleep until it is asked."""
    plain = name.removeprefix(f"{MODEL}/")
    await services.cluster.scale(plain, limits.min_replicas, limits.max_replicas)
    return await expert(plain, services)


@router.put("/v1/experts/{name:path}")  # after `scale`, whose addresses it would take
async def replace(name: str, spec: NewExpert, services: Product) -> Json:
    """Upgrade an expert in place: the new edition takes over once it is up, and no request is dropped.

    It may take as long as the edition takes to load. Where it does not come up, the one before goes on.
    """
    if spec.name != name.removeprefix(f"{MODEL}/"):
        raise BadInput(f"the address names {name[:64]!r}, and the body {spec.name!r}", "name")
    await services.cluster.replace(spec)
    return await expert(spec.name, services)


@router.delete("/v1/experts/{name:path}")
async def remove(name: str, services: Product) -> Json:
    """Take an expert out. What it is answering is finished first."""
    plain = name.removeprefix(f"{MODEL}/")
    await services.cluster.remove(plain)
    return {"id": f"{MODEL}/{plain}", "object": "expert", "deleted": True}


def _find(name: str, roster: tuple[ExpertSpec, ...]) -> ExpertSpec:
    plain = name.removeprefix(f"{MODEL}/")
    for spec in roster:
        if spec.name == plain:
            return spec
    there = ", ".join(spec.name for spec in roster)
    raise NotFound(f"no expert {plain[:64]!r}; there are: {there}", "name", "expert_not_found")


def _summary(spec: ExpertSpec, states: dict[str, ExpertState], stats: dict[str, ExpertStats]) -> Json:
    state = states.get(spec.name) or ExpertState(state="down", message="not deployed")
    return {
        "id": f"{MODEL}/{spec.name}",
        "object": "expert",
        "name": spec.name,
        **state.model_dump(mode="json"),
        "inputs": sorted(spec.inputs),
        "output": spec.output,
        "cost": spec.cost,
        "latency_ms": spec.latency_ms,
        "description": spec.card.description,
        "card": spec.card.model_dump(mode="json"),
        "stats": stats.get(spec.name, ExpertStats()).model_dump(mode="json"),
    }


async def _stats(services: Services) -> dict[str, ExpertStats]:
    """Empty where the store is not there: the experts are, and can be seen."""
    try:
        return (await services.in_store.within(COUNTING_SECONDS, services.log.stats)).experts
    except Unavailable as error:
        logger.warning("no statistics: %s", error)
        return {}
