"""The outermost layer: every request gets an id, a stopwatch and a line in the log, and whatever breaks a plain 500.

It also keeps other people's web pages from giving orders to a gateway on this machine: a browser says where a request
comes from, and one that changes something is taken from this host and from pages served on this machine only. And it
notes which gateways a request has come through, and ends one that goes round in circles.
"""

import logging
import re
import secrets
import time
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import Problem, problem
from gateway.provenance import HEADER, came_through
from multimoe.errors import LoopDetected

logger = logging.getLogger(__name__)

SANE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
LOOPBACK = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
PROBES = ("/health", "/ready", "/metrics")
SHUT = {  # what a browser may do with an answer of the API: nothing but read it
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-resource-policy": "same-origin",  # whom CORS lets read is let read all the same
    "cache-control": "no-store",
}


class Edge:
    """ASGI middleware. `here` names this installation; a request may have come through `hops` others.

    `echo_request_id` False where the server in front (Ray Serve) adds x-request-id itself.
    """

    def __init__(self, app: ASGIApp, here: str, hops: int, echo_request_id: bool = True) -> None:
        self.app = app
        self.here = here
        self.hops = hops
        self.echo_request_id = echo_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = scope["request_id"] = _request_id(headers)
        began = time.perf_counter()
        status, answered = 0, Headers()

        async def send_marked(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                marked = MutableHeaders(scope=message)
                self._mark(marked, request_id, began, secure=scope.get("scheme") == "https")
                status, answered = message["status"], marked
            await send(message)

        try:
            if refused := foreign(scope["method"], headers):
                await refused.response()(scope, receive, send_marked)
                return
            scope["via"] = came_through(headers.getlist(HEADER), self.here, self.hops)
            await self.app(scope, receive, send_marked)
        except LoopDetected as error:
            logger.warning("a request goes round in circles", extra={"request_id": request_id, "error": str(error)})
            await problem(error, request_id).response()(scope, receive, send_marked)
        except Exception as error:
            logger.exception("request failed", extra={"request_id": request_id, "path": scope["path"]})
            if status:
                raise  # half an answer cannot become an error any more; the server cuts the line
            await problem(error, request_id).response()(scope, receive, send_marked)
        finally:
            logger.log(_weight(scope["path"]), "request", extra=_told(scope, status, answered, began))

    def _mark(self, headers: MutableHeaders, request_id: str, began: float, secure: bool) -> None:
        if self.echo_request_id:
            headers["x-request-id"] = request_id
        headers["openai-processing-ms"] = f"{(time.perf_counter() - began) * 1000:.0f}"
        for name, value in SHUT.items():
            headers.setdefault(name, value)
        if secure:
            headers.setdefault("strict-transport-security", "max-age=31536000")


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if SANE_ID.fullmatch(sent) else f"req-{secrets.token_hex(12)}"


def _weight(path: str) -> int:
    """Probes come every few seconds, and say nothing as long as they are answered."""
    return logging.DEBUG if path in PROBES else logging.INFO


def _told(scope: Scope, status: int, answered: Headers, began: float) -> dict[str, object]:
    """What the log says of a request: never what was asked, nor with which key, only whose."""
    key = getattr(scope.get("caller"), "key", None)
    told = {
        "request_id": scope["request_id"],
        "method": scope["method"],
        "route": getattr(scope.get("route"), "path", None),  # as declared; None for an address that is not served
        "path": scope["path"],
        "status": status,  # 0 for a line that was cut before any
        "ms": round((time.perf_counter() - began) * 1000, 1),
        "key": key and key.id,
        "experts": answered.get("x-multimoe-experts"),
        "gate": answered.get("x-multimoe-gate"),
        "completion_id": answered.get("x-multimoe-completion-id"),
    }
    return {name: value for name, value in told.items() if value is not None or name == "route"}


def foreign(method: str, headers: Headers) -> Problem | None:
    """Why a browser may not give this order, where a page of another site wants it to."""
    origin = headers.get("origin")
    if method in SAFE_METHODS or origin is None or re.fullmatch(LOOPBACK, origin):
        return None
    with suppress(ValueError):  # what is no address is foreign
        if urlsplit(origin).netloc == headers.get("host"):
            return None
    return Problem(403, "pages of other sites may not use this gateway from a browser", "origin_not_allowed")
