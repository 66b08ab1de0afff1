"""Where a request waits: its body is read, then it has its turn. Who can have none in time is told so at once.

It knows HTTP; who comes when is `admission`'s to say, and how bodies come in `intake`'s.
"""

import re
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access.admission import Admission, Overloaded, Turn
from gateway.access.fair_use import is_work
from gateway.access.intake import Intake, TooSlow
from gateway.access.limits import closing
from gateway.problems import Problem, problem
from multimoe.config import Limits
from multimoe.errors import MultimoeError

WEIGHT = re.compile(r";w=[^,]*")
LATE = (503, 504)  # what the gateway answers where an expert or the gate had no room, or not enough time


class Gatekeeper:
    """ASGI middleware, inside the limits on keys and bodies. Other requests than those for work pass."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.intake = Intake(limits.body_seconds, limits.body_bytes)
        self.admission = Admission(limits.stretch, limits.wait_seconds) if limits.admission == "adaptive" else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
            return
        inside = False  # from then on the application answers for itself

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal inside
            inside = True
            await self.app(scope, receive, send)

        try:
            await self._admit(serve, scope, receive, send)
        except (MultimoeError, ClientDisconnect) as error:
            if inside:
                raise
            if isinstance(error, MultimoeError):
                await _refusal(error, scope).response()(scope, receive, send)

    async def _admit(self, serve: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        who = _who(scope)
        if self.admission is not None:
            self.admission.check(who)
        announced = int(Headers(scope=scope).get("content-length") or 0)
        async with self.intake.body(receive, announced, who) as body:
            if self.admission is None:
                await serve(scope, body.replay(receive), send)
                return
            async with self.admission.turn(who) as turn:
                await serve(scope, body.replay(receive), self._watched(turn, scope, send))

    def _watched(self, turn: Turn, scope: Scope, send: Send) -> Send:
        """Sees what became of the request, and for how long nobody but its reader kept it."""
        turn.counts = False  # until a whole answer has gone out
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = Headers(raw=message["headers"]).get("x-multimoe-experts", "")
                turn.kind = f"{scope['path']} {WEIGHT.sub('', told)}"
            began = time.monotonic()
            await send(message)
            turn.paused += time.monotonic() - began
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                turn.late = status in LATE
                turn.counts = turn.late or status == 200

        return watched


def _who(scope: Scope) -> str:
    """The key, or the address where no key is needed."""
    key = scope["caller"].key
    return f"key {key.id}" if key else f"address {(scope.get('client') or ('',))[0]}"


def _refusal(error: MultimoeError, scope: Scope) -> Problem:
    unread = closing(Headers(scope=scope))
    if isinstance(error, TooSlow):
        return Problem(408, error.message, error.code, headers={"connection": "close"})
    if isinstance(error, Overloaded):
        return Problem(503, error.message, error.code, headers={"retry-after": str(error.retry_after)} | unread)
    found = problem(error, scope.get("request_id", ""))
    return Problem(found.status, found.message, found.code, found.param, {**found.headers, **unread})
