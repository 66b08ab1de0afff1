"""POST /v1/chat/completions, whole or streamed, and POST /v1/route, which only says who would answer."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.access.guard import Caller
from gateway.api.exchange import Exchange
from gateway.api.policies import Asked, asked_for
from gateway.api.replies import (
    Routing,
    as_json,
    cost_of,
    done,
    fingerprint,
    headers,
    planned,
    served_model,
    usage_json,
)
from gateway.api.sse import DONE, EventStream, frame, hung_up
from gateway.problems import problem
from gateway.reading.schemas import ChatBody
from gateway.reading.wire import chat_request
from gateway.services import Asking, Product, RequestId, Services, Spending, StrictRoute, Via
from multimoe.errors import MultimoeError
from multimoe.messages import ChatRequest
from multimoe.reply import Event, Finished, Reply, Spoken

logger = logging.getLogger(__name__)
router = APIRouter(route_class=StrictRoute, tags=["chat"])

CLIENT_GONE = 499  # nobody reads it; it is for the access log
Result = TypeVar("Result")
Json = dict[str, Any]


@router.post("/v1/chat/completions", responses={200: {"content": {"application/json": {}, "text/event-stream": {}}}})
async def complete(
    body: ChatBody,
    request: Request,
    services: Product,
    request_id: RequestId,
    via: Via,
    caller: Asking,
    spent: Spending,
) -> Response:
    """Ask the mixture (`multimoe`, `multimoe:PRESET`) or one expert (`multimoe/NAME`), as OpenAI's chat completions.

    Images come as `data:` URLs, recordings as `input_audio`; both by address where the catalog allows its host.
    `x_multimoe` asks for more than OpenAI has words for, and comes back saying who answered. With `stream` the routing
    comes before the first word.
    """
    asked = await asked_for(body, request.headers, services)
    question = await _question(body, services, caller, via)
    exchange = Exchange(services, asked, question, request_id, spent, user=body.user, tenant=caller.tenant)
    shown = request.headers.get("x-multimoe-metadata") != "disabled"
    if body.stream:
        return await _stream(
            exchange, shown, include_usage=bool(body.stream_options and body.stream_options.include_usage)
        )
    reply = await unless_gone(request, exchange.answer())
    return Response(status_code=CLIENT_GONE) if reply is None else _completion(exchange, reply, shown)


@router.post("/v1/route")
async def route(body: ChatBody, request: Request, services: Product, caller: Asking) -> Routing:
    """Who would answer this chat body, with what weight and why. No expert is asked and nothing is recorded."""
    asked = await asked_for(body, request.headers, services)
    question = await _question(body, services, caller)
    return planned(asked, question, await _decision(asked, question, services), completion_id=None)


async def _question(body: ChatBody, services: Services, caller: Caller, via: tuple[str, ...] = ()) -> ChatRequest:
    id = services.signer.new_id(caller.tenant)
    return await chat_request(body, id, services.catalog.limits, services.decoder, services.fetcher, via)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` gives; None, and `work` cancelled, when the client hangs up first."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(hung_up(request.receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _decision(asked: Asked, question: ChatRequest, services: Services) -> Any:
    if asked.expert is not None:
        return None
    return (await services.cluster.decide(question, asked.policy)).decision


def _plan(exchange: Exchange) -> Routing:
    decision = exchange.routed.decision if exchange.routed else None
    return planned(exchange.asked, exchange.request, decision, exchange.request.id)


def _outcome(exchange: Exchange, plan: Routing, reply: Reply) -> Routing:
    return done(plan, reply, exchange.asked.include_outputs, exchange.rateable, exchange.elapsed_ms)


def _completion(exchange: Exchange, reply: Reply, shown: bool) -> Response:
    routing = _outcome(exchange, _plan(exchange), reply)
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    body = {
        **_envelope(exchange, routing, "chat.completion", served_model(exchange.asked, routing, reply)),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}],
        "usage": usage_json(reply.usage, reply.parts),
        **({"x_multimoe": as_json(routing)} if shown else {}),
    }
    return Response(orjson.dumps(body), media_type="application/json", headers=headers(routing, cost_of(reply.parts)))


async def _stream(exchange: Exchange, shown: bool, include_usage: bool) -> Response:
    """The response starts when it is decided who answers: what fails before that still has a status of its own."""
    events = exchange.events()
    await anext(events)
    plan = _plan(exchange)
    return EventStream(Chunks(exchange, plan, shown, include_usage).frames(events), headers(plan))


class Chunks:
    """The chunks of one streamed answer."""

    def __init__(self, exchange: Exchange, plan: Routing, shown: bool, include_usage: bool) -> None:
        self.exchange = exchange
        self.plan = plan
        self.shown = shown
        self.include_usage = include_usage
        self.model = served_model(exchange.asked, plan, None)

    async def frames(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
        """Who answers, the words, how it ended, what it cost. An error is a frame of its own, and the last."""
        try:
            yield self._first()
            async for event in events:
                if isinstance(event, Spoken):
                    yield self._chunk({"content": event.text})
                elif isinstance(event, Finished):
                    for last in self._last(event.reply):
                        yield last
            yield DONE
        except Exception as error:
            if not isinstance(error, MultimoeError):
                logger.exception("stream failed", extra={"request_id": self.exchange.request_id})
            yield frame(problem(error, self.exchange.request_id).body)
        finally:
            await events.aclose()

    def _first(self) -> bytes:
        leader = max(self.plan.experts, key=lambda share: share.weight).id
        # Open WebUI takes a chunk with selected_model_id for that alone, so no words may be in it
        extra = {"selected_model_id": leader, "x_multimoe": as_json(self.plan)} if self.shown else {}
        return self._chunk({"role": "assistant", "content": ""}, extra=extra)

    def _last(self, reply: Reply) -> list[bytes]:
        self.model = served_model(self.exchange.asked, self.plan, reply)
        routing = _outcome(self.exchange, self.plan, reply)
        extra = {"x_multimoe": as_json(routing)} if self.shown else {}
        chunks = [self._chunk({}, reply.finish, extra)]
        if self.include_usage:
            usage = {"choices": [], "usage": usage_json(reply.usage, reply.parts)}
            chunks.append(frame({**self._head(), **usage}))
        return chunks

    def _chunk(self, delta: Json, finish: str | None = None, extra: Mapping[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self.include_usage else {}  # the nulls are missed where they are missing
        return frame({**self._head(), "choices": [choice], **usage, **(extra or {})})

    def _head(self) -> Json:
        return _envelope(self.exchange, self.plan, "chat.completion.chunk", self.model)


def _envelope(exchange: Exchange, routing: Routing, kind: str, model: str) -> Json:
    return {
        "id": exchange.request.id,
        "object": kind,
        "created": int(exchange.created.timestamp()),
        "model": model,
        "system_fingerprint": fingerprint(routing),
    }
