"""/v1/gate: the gate that answers, its versions, training a new one, and which one serves.

The serving gate is swapped first and the pointer moved after it, so that a version that cannot serve never becomes
champion; where the second step fails, the first is undone.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gateway.schemas import Promotion
from gateway.services import Product, Services, StrictRoute
from gateway.sse import EventStream, frame
from multimoe.checkpoint import Registry
from multimoe.errors import CheckpointError, MultimoeError
from multimoe.feedback import FeedbackLog

logger = logging.getLogger(__name__)
router = APIRouter(route_class=StrictRoute, tags=["gate"])

JOB = "retrain"
POLL_SECONDS = 0.3
Json = dict[str, Any]


class TrainBody(BaseModel):
    """There is nothing to choose yet; an empty object or no body at all."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@router.get("/v1/gate")
async def gate(services: Product) -> Json:
    """The version that answers now, and what it was made from."""
    state = await services.cluster.gate_state()
    made = await asyncio.to_thread(_version, services.registry, state.version)
    spec = services.catalog.gate
    defaults = spec.model_dump(include={"top_k", "strategy", "temperature", "explore", "preference"})
    return {**made, **state.model_dump(mode="json"), "object": "gate", "defaults": defaults}


@router.get("/v1/gate/versions")
async def versions(services: Product) -> Json:
    """Every version, newest first; one that is damaged says so."""
    return {"object": "list", "data": await asyncio.to_thread(_versions, services.registry)}


@router.get("/v1/gate/versions/{version}")
async def version(version: int, services: Product) -> Json:
    """From what a version was made, how good it was judged, and why it was promoted or not."""
    await asyncio.to_thread(services.registry.manifest, version)
    return await asyncio.to_thread(_version, services.registry, version)


@router.post("/v1/gate/train", status_code=202)
async def train(services: Product, body: TrainBody | None = None) -> Json:
    """Learn from the ratings in the background; 409 while that is being done already. Follow the job it names."""
    job = await asyncio.to_thread(services.log.start_job, JOB)
    try:
        await services.cluster.train(job.id)
    except Exception:
        await asyncio.to_thread(_give_up, services.log, job.id)
        raise
    return {"object": "gate.job", "job_id": job.id, "status": job.status}


@router.get("/v1/gate/jobs")
async def jobs(services: Product) -> Json:
    """The latest retrainings, newest first."""
    found = await asyncio.to_thread(services.log.jobs)
    return {"object": "list", "data": [job.model_dump(mode="json") for job in found]}


@router.get("/v1/gate/jobs/{id}")
async def job(id: str, services: Product) -> Json:
    """How far a retraining is: `status`, `progress` from 0 to 1, in the end `result`, the manifest made."""
    return (await asyncio.to_thread(services.log.job, id)).model_dump(mode="json")


@router.get("/v1/gate/jobs/{id}/events")
async def events(id: str, services: Product) -> Response:
    """The same as server-sent events: the job each time it has changed, the last time when it has ended."""
    await asyncio.to_thread(services.log.job, id)
    return EventStream(_changes(id, services))


@router.put("/v1/gate/aliases/champion")
async def promote(body: Promotion, services: Product) -> Json:
    """Serve this version from now on, without dropping a request. 404 or 409 leaves everything as it was."""
    await asyncio.to_thread(services.registry.load, body.version)
    before = (await services.cluster.gate_state()).version
    await services.cluster.serve_gate(body.version)
    try:
        await asyncio.to_thread(services.registry.promote, body.version, datetime.now(UTC))
    except MultimoeError:
        await services.cluster.serve_gate(before)
        raise
    return await gate(services)


@router.post("/v1/gate/rollback")
async def rollback(services: Product) -> Json:
    """Serve the champion before this one. 409 where there is none."""
    champion = await asyncio.to_thread(services.registry.champion)
    back_to = await asyncio.to_thread(services.registry.rollback, datetime.now(UTC))
    try:
        await services.cluster.serve_gate(back_to)
    except MultimoeError:
        await asyncio.to_thread(services.registry.promote, champion, datetime.now(UTC))
        raise
    return await gate(services)


def _versions(registry: Registry) -> list[Json]:
    return [_version(registry, version) for version in reversed(registry.versions())]


def _version(registry: Registry, version: int) -> Json:
    aliases = ["champion"] if version == registry.champion() else []
    try:
        manifest = registry.manifest(version).model_dump(mode="json")
    except CheckpointError as error:
        manifest = {"version": version, "promoted": False, "reason": str(error)}
    return {"object": "gate.version", "aliases": aliases, **manifest}


def _give_up(log: FeedbackLog, job: str) -> None:
    try:
        log.finish_job(job, "failed", error="the retraining could not be started")
    except MultimoeError as error:
        logger.warning("a job that never began stays open: %s", error)


async def _changes(id: str, services: Services) -> AsyncGenerator[bytes, None]:
    seen = None
    while True:
        job = await asyncio.to_thread(services.log.job, id)
        if job != seen:
            yield frame(job.model_dump(mode="json"))
            seen = job
        if job.status != "running":
            return
        await asyncio.sleep(POLL_SECONDS)
