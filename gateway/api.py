"""The REST API, put together: every endpoint, one way to say errors, one way in. It knows no Ray and loads no torch."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from gateway import audio, chat, embeddings, gates, health, models, ratings, roster
from gateway.edge import LOOPBACK, Edge
from gateway.limits import BodyLimit
from gateway.problems import refuse
from gateway.schemas import ErrorBody
from gateway.services import Services
from multimoe import __version__
from multimoe.errors import MultimoeError

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
)


REFUSALS: dict[int | str, str] = {"4XX": "Refused; the error says what to do.", "5XX": "Failed; try again later."}


def build_api(services: Services, echo_request_id: bool = True) -> FastAPI:
    """`echo_request_id` False where the server in front (Ray Serve) adds x-request-id to every response itself."""
    app = FastAPI(
        title="multimoe",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        responses={kind: {"model": ErrorBody, "description": what} for kind, what in REFUSALS.items()},
    )
    app.state.services = services
    for endpoints in (chat, audio, embeddings, models, roster, ratings, gates, health):
        app.include_router(endpoints.router)
    for kind in (MultimoeError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, refuse)
    # the last one added is the outermost
    app.add_middleware(BodyLimit, limit=services.catalog.limits.body_bytes)
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=LOOPBACK,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=list(EXPOSED),
    )
    app.add_middleware(Edge, echo_request_id=echo_request_id)
    return app
