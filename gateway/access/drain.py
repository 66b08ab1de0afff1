"""How a gateway stops: it says that it is not ready, takes nothing new, and knows how much is still being answered.

It knows ASGI alone. Health checks and metrics go on being answered; everything else is put off to another gateway, or
to this one's next start.
"""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.problems import RETRY_SECONDS, Problem

ALWAYS = ("/health", "/ready", "/metrics")
WATCHING = "/events"  # streams that last as long as somebody watches: nobody's answer is in them
HEADERS: Mapping[str, str] = {"retry-after": str(RETRY_SECONDS), "connection": "close"}


class Drain:
    """Of one gateway replica. `under_way` counts requests whose answer is not out yet."""

    def __init__(self) -> None:
        self.draining = False
        self.under_way = 0

    def begin(self) -> int:
        """Take nothing new from now on; how many are left."""
        self.draining = True
        return self.under_way


class Draining:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS or scope["path"].endswith(WATCHING):
            await self.app(scope, receive, send)
            return
        if self.drain.draining:
            refused = Problem(503, "this gateway is being stopped; try again soon", "stopping", headers=HEADERS)
            await refused.response()(scope, receive, send)
            return
        self.drain.under_way += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.under_way -= 1
