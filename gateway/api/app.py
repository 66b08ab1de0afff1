"""The REST API, put together: every endpoint, one way to say errors, one way in. It knows no Ray and loads no torch."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from gateway.access.drain import Draining
from gateway.access.edge import LOOPBACK, Edge
from gateway.access.fair_use import HEADERS, FairUse
from gateway.access.gatekeeper import Gatekeeper
from gateway.access.guard import Guard, KeyRing, keys_required
from gateway.access.limits import BodyLimit
from gateway.api import audio, chat, embeddings, gates, health, models, ratings, roster
from gateway.api.description import describe
from gateway.change.monitor import Monitor
from gateway.problems import refuse
from gateway.provenance import installation
from gateway.reading.schemas import ErrorBody
from gateway.services import Services
from multimoe import __version__
from multimoe.errors import MultimoeError, Unavailable

__all__ = ["Services", "build_api"]

DESCRIPTION = """One OpenAI-compatible endpoint in front of text, image and audio experts. A learned gate picks who
answers, their outputs are blended, and ratings teach the gate. Use any OpenAI client with `base_url` ending in `/v1`;
`x_multimoe` in a request asks for more than OpenAI has words for, and in an answer says who answered and why."""

EXPOSED = (
    "x-request-id",
    "x-multimoe-completion-id",
    "x-multimoe-experts",
    "x-multimoe-gate",
    "x-multimoe-path",
    "x-multimoe-cost",
    "openai-processing-ms",
    "retry-after",
    *HEADERS,
)


REFUSALS: dict[int | str, str] = {"4XX": "Refused; the error says what to do.", "5XX": "Failed; try again later."}


def build_api(services: Services, echo_request_id: bool = True) -> FastAPI:
    """`echo_request_id` False where the server in front (Ray Serve) adds x-request-id to every response itself."""
    monitor = Monitor(services)
    app = FastAPI(
        title="multimoe",
        lifespan=lambda _: _serving(monitor, services),
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        responses={kind: {"model": ErrorBody, "description": what} for kind, what in REFUSALS.items()},
    )
    app.state.services, app.state.monitor = services, monitor
    for endpoints in (chat, audio, embeddings, models, roster, ratings, gates, health):
        app.include_router(endpoints.router)
    app.openapi = describe(app)  # type: ignore[method-assign]  # as FastAPI's documentation has it
    for kind in (MultimoeError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, refuse)
    # the last one added is the outermost
    app.add_middleware(Gatekeeper, limits=services.catalog.limits)
    app.add_middleware(BodyLimit, limit=services.catalog.limits.body_bytes)
    app.add_middleware(FairUse, meter=services.meter, limits=services.catalog.limits)
    app.add_middleware(Guard, ring=KeyRing(services.log, keys_required(services.catalog.server)))
    app.add_middleware(Draining, drain=services.drain)
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=LOOPBACK,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=list(EXPOSED),
    )
    here, hops = installation(services.catalog.home), services.catalog.limits.hops
    app.add_middleware(Edge, here=here, hops=hops, echo_request_id=echo_request_id)
    return app


@asynccontextmanager
async def _serving(monitor: Monitor, services: Services) -> AsyncGenerator[None, None]:
    """While the API is up, decoders wait and versions on trial are watched; when it goes down, the store is let go."""
    with suppress(Unavailable):  # which every file is told, and the log
        await services.decoder.start()
    task = asyncio.create_task(monitor.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(services.decoder.close)
        services.meter.close()
        await services.recorder.close()
        services.in_store.close()
        await asyncio.to_thread(services.log.close)
