"""/v1/gate: the gate that answers, its versions, training a new one, and which one serves or is on trial."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.sse import EventStream, frame
from gateway.change import gate_versions, stages
from gateway.change.monitor import Monitor
from gateway.cluster import GateState
from gateway.reading.schemas import Canary, Promotion
from gateway.services import Product, Services, StrictRoute
from multimoe.errors import MultimoeError, Unavailable
from multimoe.evidence import Look
from multimoe.feedback import FeedbackLog, Job
from multimoe.journal import Standing, Step

logger = logging.getLogger(__name__)
router = APIRouter(route_class=StrictRoute, tags=["gate"])

JOB = "retrain"
POLL_SECONDS = 0.3
USUAL_SHARE = 0.1  # of a canary, where the catalog has none
Json = dict[str, Any]
STREAM: Json = {"text/event-stream": {}}


def monitor_of(request: Request) -> Monitor:
    return cast(Monitor, request.app.state.monitor)


Watching = Annotated[Monitor, Depends(monitor_of)]


class TrainBody(BaseModel):
    """There is nothing to choose yet; an empty object or no body at all."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@router.get("/v1/gate")
async def gate(services: Product, monitor: Watching) -> Json:
    """The version that answers now, what it was made from, and what is known of the one on trial beside it."""
    state = await services.cluster.gate_state()
    standing = await asyncio.to_thread(services.registry.standing)
    made = await asyncio.to_thread(gate_versions.told_of, services.registry, state.version)
    defaults = services.catalog.gate.model_dump(include={"top_k", "strategy", "temperature", "explore", "preference"})
    return {
        **made,
        "object": "gate",
        "encoder_revisions": state.encoder_revisions,
        "defaults": defaults,
        **_told(await _look(monitor, standing, state)),
    }


@router.get("/v1/gate/versions")
async def versions(services: Product) -> Json:
    """Every version, newest first, with its stage; one that is damaged says so."""
    return {"object": "list", "data": await asyncio.to_thread(gate_versions.told, services.registry)}


@router.get("/v1/gate/versions/{version}")
async def version(version: int, services: Product) -> Json:
    """From what a version was made, how good it was judged, how far it came and why no further."""
    await asyncio.to_thread(services.registry.manifest, version)
    return await asyncio.to_thread(gate_versions.told_of, services.registry, version)


@router.post("/v1/gate/train", status_code=202)
async def train(services: Product, body: TrainBody | None = None) -> Json:
    """Learn from the ratings in the background; 409 while that is being done already. Follow the job it names."""
    job = await asyncio.shield(_started(services))  # a job that is opened is begun, even if who asked hangs up
    return {"object": "gate.job", "job_id": job.id, "status": job.status}


@router.get("/v1/gate/jobs")
async def jobs(services: Product) -> Json:
    """The latest retrainings, newest first."""
    found = await services.in_store(services.log.jobs)
    return {"object": "list", "data": [job.model_dump(mode="json") for job in found]}


@router.get("/v1/gate/jobs/{id}")
async def job(id: str, services: Product) -> Json:
    """How far a retraining is: `status`, `progress` from 0 to 1, in the end `result`, the manifest made."""
    return (await services.in_store(services.log.job, id)).model_dump(mode="json")


@router.get("/v1/gate/jobs/{id}/events", response_class=StreamingResponse, responses={200: {"content": STREAM}})
async def events(id: str, services: Product) -> Response:
    """The same as server-sent events: the job each time it has changed, the last time when it has ended."""
    await services.in_store(services.log.job, id)
    return EventStream(_changes(id, services))


@router.put("/v1/gate/aliases/champion")
async def promote(body: Promotion, services: Product, monitor: Watching) -> Json:
    """Serve this version from now on, without dropping a request. 404 or 409 leaves everything as it was."""
    return await _take(stages.by_hand("promoted", body.version, _now()), services, monitor)


@router.put("/v1/gate/aliases/canary")
async def canary(body: Canary, services: Product, monitor: Watching) -> Json:
    """Let this version answer a share of requests. Ratings promote it or take it back."""
    share = body.share or services.catalog.gate.rollout.canary_share or USUAL_SHARE
    return await _take(stages.by_hand("canary", body.version, _now(), share), services, monitor)


@router.put("/v1/gate/aliases/shadow")
async def shadow(body: Promotion, services: Product, monitor: Watching) -> Json:
    """Let this version decide beside the champion and answer nothing."""
    return await _take(stages.by_hand("shadow", body.version, _now()), services, monitor)


@router.delete("/v1/gate/aliases/challenger")
async def withdraw(services: Product, monitor: Watching) -> Json:
    """End the trial, canary or shadow; the champion goes on. 409 where there is none."""
    standing = await asyncio.to_thread(services.registry.standing)
    return await _take(stages.withdrawal(standing, _now()), services, monitor, standing)


@router.post("/v1/gate/rollback")
async def rollback(services: Product, monitor: Watching) -> Json:
    """Undo the last change of who answers: withdraw the canary, or serve the champion before this one.

    409 where there is none.
    """
    standing = await asyncio.to_thread(services.registry.standing)
    return await _take(stages.rollback(standing, _now()), services, monitor, standing)


async def _take(step: Step, services: Services, monitor: Monitor, expected: Standing | None = None) -> Json:
    await stages.take(services.cluster, services.registry, services.log, step, expected)
    return await gate(services, monitor)


async def _look(monitor: Monitor, standing: Standing, state: GateState) -> Look:
    """Without the store who serves and who is on trial is still known, only not what ratings say of them."""
    try:
        return await monitor.look(standing, state)
    except Unavailable as error:
        logger.warning("the versions on trial could not be looked at: %s", error)
        return Look(standing=standing)


def _now() -> datetime:
    return datetime.now(UTC)


def _told(look: Look) -> Json:
    """Who is on trial and what is known of it; and of a champion on probation."""
    standing, trial = look.standing, gate_versions.trial_of(look.standing)
    tried = trial and trial | {
        "seen": look.seen and look.seen.model_dump(mode="json"),
        "earned": look.canary and look.canary.model_dump(mode="json"),
    }
    watch = look.watch and {
        "since": standing.model_dump(mode="json")["watched"],
        "against": standing.champions[-2],
        "enough": look.enough,
        "earned": look.watch.model_dump(mode="json"),
    }
    return {"challenger": tried, "watch": watch}


async def _started(services: Services) -> Job:
    job = await services.in_store(services.log.start_job, JOB)
    try:
        await services.cluster.train(job.id)
    except Exception:
        await services.in_store(_give_up, services.log, job.id)
        raise
    return job


def _give_up(log: FeedbackLog, job: str) -> None:
    try:
        log.finish_job(job, "failed", error="the retraining could not be started")
    except MultimoeError as error:
        logger.warning("a job that never began stays open: %s", error)


async def _changes(id: str, services: Services) -> AsyncGenerator[bytes, None]:
    seen = None
    while True:
        job = await services.in_store(services.log.job, id)
        if job != seen:
            yield frame(job.model_dump(mode="json"))
            seen = job
        if job.status != "running":
            return
        await asyncio.sleep(POLL_SECONDS)
