"""Is it alive, is it ready, which one is it, what are its limits; and the pages that explain the API, offline."""

import asyncio
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from gateway.problems import RETRY_SECONDS, Problem
from gateway.services import Product, Services
from multimoe import __version__
from multimoe.errors import MultimoeError, NotFound

router = APIRouter(tags=["health"])

READY_SECONDS = 3.0
SWAGGER = {  # file -> media type; bundled, because the pages must work where there is no internet
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
# the spec's check mark would be fetched from swagger.io
PARAMETERS = {"validatorUrl": None, "displayRequestDuration": True, "filter": True}


@router.get("/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "Not yet; the error says what is missing."}})
async def ready(services: Product) -> Any:
    """The gate answers, and at least one expert is up or wakes when asked."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            return await _readiness(services)
    except MultimoeError as error:
        missing = str(error)
    except TimeoutError:
        missing = f"the gate does not answer within {READY_SECONDS:g} s"
    return Problem(503, f"not ready: {missing}", "not_ready", headers={"retry-after": str(RETRY_SECONDS)}).response()


async def _readiness(services: Services) -> Any:
    gate, states = await asyncio.gather(services.cluster.gate_state(), services.cluster.expert_states())
    able = sorted(name for name, state in states.items() if state.state in ("ready", "asleep"))
    if not able:
        seen = ", ".join(f"{name} is {state.state}" for name, state in states.items()) or "there is none"
        return Problem(
            503, f"not ready: no expert is up ({seen})", "not_ready", headers={"retry-after": str(RETRY_SECONDS)}
        ).response()
    return {"status": "ready", "gate": gate.version, "experts": {name: s.state for name, s in states.items()}}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: Product) -> Response:
    """What this node counts, for Prometheus: Ray Serve's own series and `ray_multimoe_*`."""
    return PlainTextResponse(await services.cluster.metrics(), media_type="text/plain; version=0.0.4")


@router.get("/version")
async def version() -> dict[str, str]:
    """The product's version."""
    return {"name": "multimoe", "version": __version__}


@router.get("/v1/limits")
async def limits(services: Product) -> dict[str, float]:
    """What a request may be at most; sizes in bytes, durations in seconds."""
    return services.catalog.limits.model_dump()


@router.get("/", include_in_schema=False)
async def home() -> Response:
    return RedirectResponse("/ui/")


@router.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    """Browsers ask for it at the root, whatever page they show; the page brings its own."""
    return Response(status_code=204)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url=str(request.app.openapi_url),
        title="multimoe API",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon-32x32.png",
        swagger_ui_parameters=PARAMETERS,
    )


@router.get("/docs/{name}", include_in_schema=False)
async def swagger(name: str) -> Response:
    if name not in SWAGGER:
        raise NotFound(f"there is no {name[:64]!r} here; /docs is the page", code="unknown_url")
    data = files("fastapi_swagger.resources").joinpath(name).read_bytes()
    return Response(data, media_type=SWAGGER[name], headers={"cache-control": "public, max-age=86400"})
