"""/v1/feedback and /v1/routing: what people made of answers, and the decisions behind past answers."""

import asyncio
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gateway.access.guard import Caller
from gateway.api.policies import MODEL
from gateway.reading.schemas import RatingBody
from gateway.records.bulkhead import COUNTING_SECONDS
from gateway.services import Asking, Product, Services, StrictRoute
from multimoe.errors import Unavailable
from multimoe.feedback import Format, Interaction, Rating, Target

router = APIRouter(route_class=StrictRoute, tags=["feedback"])

PIECE = 64 * 1024  # characters of an export sent at once
PEOPLE = 10  # whose ratings may come from one address
MEDIA_TYPES = {"csv": "text/csv", "vw": "text/plain"}
Json = dict[str, Any]
EXPORTS: Json = {kind: {"schema": {"type": "string"}} for kind in (*MEDIA_TYPES.values(), "application/x-ndjson")}


def _moment(sent: Any) -> Any:
    """A number would be taken for seconds since 1970, which nobody means."""
    if isinstance(sent, str) and sent.replace(".", "", 1).lstrip("+-").isdigit():
        raise ValueError(f"{sent[:32]!r} is no moment; send one as 2026-01-31T12:00:00Z")
    return sent


@router.post("/v1/feedback", status_code=201, responses={200: {"description": "It replaced an earlier rating."}})
async def rate(body: RatingBody, services: Product, request: Request, caller: Asking) -> Response:
    """Rate an answer, one expert's part of it, or compare two. On disk when this answers 201 (new) or 200 (changed)."""
    await _check_owner(services, caller, body.completion_id)
    await _check_compared(services, caller, body)
    _check_pace(services, request, _rater(caller, body.user))
    rating = Rating(
        **body.model_dump(exclude={"expert", "preferred", "rejected", "user"}),
        user=_rater(caller, body.user),
        expert=_plain(body.expert),
        preferred=_plain(body.preferred),
        rejected=tuple(name.removeprefix(f"{MODEL}/") for name in body.rejected),
    )
    created = await services.in_store(services.log.rate, rating)
    return JSONResponse(_rating(rating), 201 if created else 200)


@router.get("/v1/feedback")
async def ratings(completion_id: str, services: Product, caller: Asking) -> Json:
    """All ratings of one answer, oldest first."""
    await _check_owner(services, caller, completion_id)
    found = await services.in_store(_ratings, completion_id, services)
    return {"object": "list", "data": found}


@router.delete("/v1/feedback")
async def withdraw(
    completion_id: str,
    services: Product,
    request: Request,
    caller: Asking,
    target: Target = "answer",
    expert: str | None = None,
    name: str = "user_rating",
    user: str | None = None,
) -> Json:
    """Take a rating back; `deleted` is false where there was none."""
    await _check_owner(services, caller, completion_id)
    rater = _rater(caller, user)
    _check_pace(services, request, rater)
    await services.in_store(services.log.interaction, completion_id)
    deleted = await services.in_store(services.log.withdraw, completion_id, target, _plain(expert), name, rater)
    return {"object": "feedback.deleted", "completion_id": completion_id, "deleted": deleted}


@router.get("/v1/feedback/stats")
async def stats(services: Product) -> Json:
    """Counts of answers and ratings, in all and by expert."""
    return (await services.in_store.within(COUNTING_SECONDS, services.log.stats)).model_dump(mode="json")


@router.get("/v1/feedback/export", response_class=StreamingResponse, responses={200: {"content": EXPORTS}})
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
    since: Annotated[datetime | None, BeforeValidator(_moment)] = None,
    before: str | None = None,
) -> Json:
    """Past answers with their decisions, newest first; `before` is the id to go on from."""
    moment = since.replace(tzinfo=UTC) if since and since.tzinfo is None else since
    found = await services.in_store(services.log.interactions, limit, before, _plain(expert), moment)
    return {"object": "list", "data": [_interaction(one) for one in found], "has_more": len(found) == limit}


@router.get("/v1/routing/{completion_id}")
async def decision(completion_id: str, services: Product, caller: Asking) -> Json:
    """One past answer: its whole decision, what each expert did, and its ratings."""
    await _check_owner(services, caller, completion_id)
    found = await services.in_store(services.log.interaction, completion_id)
    return _interaction(found) | {"ratings": await services.in_store(_ratings, completion_id, services)}


async def _check_owner(services: Services, caller: Caller, id: str) -> None:
    """Raises NotFound, as for an answer that never was, where another tenant asked for it."""
    if caller.key is None or caller.key.may("admin"):
        return
    services.signer.check(id, caller.tenant)


async def _check_compared(services: Services, caller: Caller, body: RatingBody) -> None:
    """Raises NotFound where an answer of another tenant is compared with."""
    compared = {name.removeprefix(f"{MODEL}/") for name in (body.preferred, *body.rejected) if name}
    if not compared:
        return
    found = await services.in_store(services.log.interaction, body.completion_id)
    for id in compared - set(found.experts):
        await _check_owner(services, caller, id)


def _rater(caller: Caller, user: str | None) -> str | None:
    """Users as an application names them are its own: nobody rates in another tenant's name."""
    return "/".join(filter(None, (caller.tenant, user))) or None


def _check_pace(services: Services, request: Request, user: str | None) -> None:
    """Raises Unavailable (`rate_limit_exceeded`). Names are free to choose, so addresses are counted as well."""
    limit = services.catalog.limits.ratings_per_minute
    address = request.client.host if request.client else ""
    allowed = {f"address {address}": PEOPLE * limit} | ({f"user {user}": limit} if user else {})
    for who, per_minute in allowed.items():
        if wait := services.pace.wait(who, per_minute):
            raise Unavailable(
                f"{who!r:.80} gives more than {per_minute} ratings a minute; wait {math.ceil(wait)} s",
                "user" if who.startswith("user") else None,
                "rate_limit_exceeded",
            )


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
