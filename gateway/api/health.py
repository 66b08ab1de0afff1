"""Is it alive, is it ready, which one is it, what are its limits; and the pages that explain the API, offline."""

import asyncio
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from gateway.access.drain import HEADERS
from gateway.access.fair_use import Left, allowance_of, left
from gateway.access.quota import Limit, Standing
from gateway.problems import RETRY_SECONDS, Problem
from gateway.services import Asking, Product, Services
from multimoe import __version__
from multimoe.checkpoint import Registry
from multimoe.config import Limits
from multimoe.errors import CheckpointError, MultimoeError, NotFound

router = APIRouter(tags=["health"])

READY_SECONDS = 3.0
SWAGGER = {  # file -> media type; bundled, because the pages must work where there is no internet
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
DOCS_POLICY = (  # FastAPI's page starts itself with a script in the page
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# the spec's check mark would be fetched from swagger.io
PARAMETERS = {"validatorUrl": None, "displayRequestDuration": True, "filter": True}


class LimitsNow(Limits):
    """`yours` is what is limited for the key that asks."""

    yours: dict[Limit, Left]


@router.get("/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "Not yet; the error says what is missing."}})
async def ready(services: Product) -> Any:
    """The gate answers, at least one expert is up or wakes when asked, and nobody is stopping this gateway."""
    if services.drain.draining:
        return Problem(503, "not ready: it is being stopped", "not_ready", headers=HEADERS).response()
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
    reasons = await asyncio.to_thread(_gate_troubles, services.registry, gate.version)
    if services.recorder.away:
        reasons.append("the store does not take records, so answers cannot be rated")
    status: dict[str, Any] = {"status": "degraded", "reasons": reasons} if reasons else {"status": "ready"}
    return status | {"gate": gate.version, "experts": {name: s.state for name, s in states.items()}}


def _gate_troubles(registry: Registry, serving: int) -> list[str]:
    """Why another version than the champion serves, as after a start with one that is damaged."""
    try:
        champion = registry.champion()
    except CheckpointError:
        return [f"the journal of gate versions cannot be read, so nobody knows which should serve; gate {serving} does"]
    return [] if serving == champion else [f"gate {champion} should serve and does not; gate {serving} does"]


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(services: Product) -> Response:
    """What this node counts, for Prometheus: Ray Serve's own series and `ray_multimoe_*`."""
    return PlainTextResponse(await services.cluster.metrics(), media_type="text/plain; version=0.0.4")


@router.get("/version")
async def version() -> dict[str, str]:
    """The product's version."""
    return {"name": "multimoe", "version": __version__}


@router.get("/v1/limits")
async def limits(services: Product, caller: Asking) -> LimitsNow:
    """What a request may be at most, and what your key may still have; sizes in bytes, durations in seconds."""
    who, allowed = allowance_of(caller, services.catalog.limits)
    standing = await services.meter.standing(who, allowed) if allowed else Standing()
    return LimitsNow(**services.catalog.limits.model_dump(), yours=left(standing))


@router.get("/", include_in_schema=False)
async def home() -> Response:
    return RedirectResponse("/ui/")


@router.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    """Browsers ask for it at the root, whatever page they show; the page brings its own."""
    return Response(status_code=204)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    page = get_swagger_ui_html(
        openapi_url=str(request.app.openapi_url),
        title="multimoe API",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon-32x32.png",
        swagger_ui_parameters=PARAMETERS,
    )
    page.headers["content-security-policy"] = DOCS_POLICY
    return page


@router.get("/docs/{name}", include_in_schema=False)
async def swagger(name: str) -> Response:
    if name not in SWAGGER:
        raise NotFound(f"there is no {name[:64]!r} here; /docs is the page", code="unknown_url")
    data = files("fastapi_swagger.resources").joinpath(name).read_bytes()
    return Response(data, media_type=SWAGGER[name], headers={"cache-control": "public, max-age=86400"})
