"""/v1/feedback and /v1/routing: what people made of answers, and the decisions behind past answers."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import JSONResponse, Response, StreamingResponse

from gateway.policies import MODEL
from gateway.schemas import RatingBody
from gateway.services import Product, Services, StrictRoute
from multimoe.feedback import Format, Interaction, Rating, Target

router = APIRouter(route_class=StrictRoute, tags=["feedback"])

PIECE = 64 * 1024  # characters of an export sent at once
MEDIA_TYPES = {"csv": "text/csv", "vw": "text/plain"}
Json = dict[str, Any]


@router.post("/v1/feedback", status_code=201, responses={200: {"description": "It replaced an earlier rating."}})
async def rate(body: RatingBody, services: Product) -> Response:
    """Rate an answer, one expert's part of it, or compare two. On disk when this answers 201 (new) or 200 (changed)."""
    rating = Rating(
        **body.model_dump(exclude={"expert", "preferred", "rejected"}),
        expert=_plain(body.expert),
        preferred=_plain(body.preferred),
        rejected=tuple(name.removeprefix(f"{MODEL}/") for name in body.rejected),
    )
    created = await asyncio.to_thread(services.log.rate, rating)
    return JSONResponse(_rating(rating), 201 if created else 200)


@router.get("/v1/feedback")
async def ratings(completion_id: str, services: Product) -> Json:
    """All ratings of one answer, oldest first."""
    found = await asyncio.to_thread(_ratings, completion_id, services)
    return {"object": "list", "data": found}


@router.delete("/v1/feedback")
async def withdraw(
    completion_id: str,
    services: Product,
    target: Target = "answer",
    expert: str | None = None,
    name: str = "user_rating",
    user: str | None = None,
) -> Json:
    """Take a rating back; `deleted` is false where there was none."""
    await asyncio.to_thread(services.log.interaction, completion_id)
    deleted = await asyncio.to_thread(services.log.withdraw, completion_id, target, _plain(expert), name, user)
    return {"object": "feedback.deleted", "completion_id": completion_id, "deleted": deleted}


@router.get("/v1/feedback/stats")
async def stats(services: Product) -> Json:
    """Counts of answers and ratings, in all and by expert."""
    return (await asyncio.to_thread(services.log.stats)).model_dump(mode="json")


@router.get("/v1/feedback/export")
async def export(services: Product, format: Format = "jsonl") -> Response:
    """Every rating with its decision, for other programs, as a file."""
    pieces = await asyncio.to_thread(_pieces, services, format)
    suffix = {"csv": "csv", "vw": "vw"}.get(format, "jsonl")
    name = {"content-disposition": f'attachment; filename="multimoe-{format}.{suffix}"'}
    return StreamingResponse(pieces, media_type=MEDIA_TYPES.get(format, "application/x-ndjson"), headers=name)


@router.get("/v1/routing")
async def decisions(
    services: Product,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    expert: str | None = None,
    since: datetime | None = None,
    before: str | None = None,
) -> Json:
    """Past answers with their decisions, newest first; `before` is the id to go on from."""
    moment = since.replace(tzinfo=UTC) if since and since.tzinfo is None else since
    found = await asyncio.to_thread(services.log.interactions, limit, before, _plain(expert), moment)
    return {"object": "list", "data": [_interaction(one) for one in found], "has_more": len(found) == limit}


@router.get("/v1/routing/{completion_id}")
async def decision(completion_id: str, services: Product) -> Json:
    """One past answer: its whole decision, what each expert did, and its ratings."""
    found = await asyncio.to_thread(services.log.interaction, completion_id)
    return _interaction(found) | {"ratings": await asyncio.to_thread(_ratings, completion_id, services)}


def _plain(expert: str | None) -> str | None:
    return expert.removeprefix(f"{MODEL}/") if expert else None


def _ratings(completion_id: str, services: Services) -> list[Json]:
    services.log.interaction(completion_id)  # an answer nobody rated has none; one that never was is an error
    return [_rating(rating) for rating in services.log.ratings(completion_id)]


def _rating(rating: Rating) -> Json:
    return {"object": "feedback", **rating.model_dump(mode="json")}


def _interaction(found: Interaction) -> Json:
    return {"object": "routing", **found.model_dump(mode="json", exclude={"embedding"})}


def _pieces(services: Services, format: Format) -> Iterator[str]:
    """The export in larger pieces. The first is made at once, so that a store that is gone is still a status."""
    pieces = _joined(services.log.export(format))
    return chain([next(pieces, "")], pieces)


def _joined(lines: Iterator[str]) -> Iterator[str]:
    waiting: list[str] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size > PIECE:
            yield "\n".join(waiting) + "\n"
            waiting, size = [], 0
    if waiting:
        yield "\n".join(waiting) + "\n"
