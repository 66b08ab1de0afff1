"""The outermost layer: every request gets an id and a stopwatch, and whatever breaks inside becomes a plain 500.

It also keeps other people's web pages from giving orders to a gateway on this machine: a browser says where a request
comes from, and one that changes something is taken from this host and from pages served on this machine only.
"""

import logging
import re
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import Problem, problem

logger = logging.getLogger(__name__)

SANE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
LOOPBACK = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Edge:
    """ASGI middleware. `echo_request_id` False where the server in front (Ray Serve) adds x-request-id itself."""

    def __init__(self, app: ASGIApp, echo_request_id: bool = True) -> None:
        self.app = app
        self.echo_request_id = echo_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = scope["request_id"] = _request_id(headers)
        began = time.perf_counter()
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._mark(MutableHeaders(scope=message), request_id, began)
            await send(message)

        try:
            if refused := _foreign(scope["method"], headers):
                await refused.response()(scope, receive, send_marked)
            else:
                await self.app(scope, receive, send_marked)
        except Exception as error:
            logger.exception("request failed", extra={"request_id": request_id, "path": scope["path"]})
            if started:
                raise  # half an answer cannot become an error any more; the server cuts the line
            await problem(error, request_id).response()(scope, receive, send_marked)

    def _mark(self, headers: MutableHeaders, request_id: str, began: float) -> None:
        if self.echo_request_id:
            headers["x-request-id"] = request_id
        headers["openai-processing-ms"] = f"{(time.perf_counter() - began) * 1000:.0f}"
        headers.setdefault("x-content-type-options", "nosniff")


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if SANE_ID.fullmatch(sent) else f"req-{secrets.token_hex(12)}"


def _foreign(method: str, headers: Headers) -> Problem | None:
    origin = headers.get("origin")
    if method in SAFE_METHODS or origin is None or re.fullmatch(LOOPBACK, origin):
        return None
    if urlsplit(origin).netloc == headers.get("host"):
        return None
    return Problem(403, "pages of other sites may not use this gateway from a browser", "origin_not_allowed")
