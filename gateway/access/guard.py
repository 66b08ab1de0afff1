"""Who may do what: every request but the two health checks needs a key whose scope covers it, or is refused.

Default deny: what no rule names needs the scope "admin", so that a new endpoint is closed until somebody opens it.
Where no key was ever made and the gateway listens on loopback alone, everybody on this machine may do everything.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Literal
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access.pace import Pace
from gateway.problems import RETRY_SECONDS, Problem
from multimoe.config import Server
from multimoe.errors import BadConfig, MultimoeError, Unavailable
from multimoe.feedback import FeedbackLog, Key
from multimoe.feedback import Scope as Right
from multimoe.feedback.keys import matching

OPEN: Literal["open"] = "open"
ANY = "*"
RULES: tuple[tuple[str, str, Right | Literal["open"]], ...] = (  # methods, path, what it takes; the first match rules
    (ANY, r"/health|/ready", OPEN),  # those that are not served there answer 405
    ("GET", r"/version|/v1/limits|/openapi\.json|/docs(/[\w.-]+)?|/favicon\.ico|/", "chat"),
    ("GET", r"/v1/(models|experts)(/[^/]+){0,2}", "chat"),
    ("POST", r"/v1/(chat/completions|route|embeddings|audio/transcriptions)", "chat"),
    ("GET", r"/v1/routing/[^/]+", "chat"),
    ("GET POST DELETE", r"/v1/feedback", "rate"),
)
FRESH_SECONDS = 5.0  # for which a look at the keys is good: a revoked one is refused that much later at most
AHEAD_SECONDS = 4.0  # after which the next look begins, for which nobody has to wait as a rule
RECENT_SECONDS = 2 * FRESH_SECONDS  # after the last look, in which its keys do while the next one takes long
LOOK_SECONDS = 0.2  # that a request waits for a new look; those that come while the store hangs do not
FIRST_LOOK_SECONDS = 2.0  # the same, where there was none yet or none for a while
WRONG_PER_MINUTE = 60  # keys that do not fit, from one address


ELSEWHERE = Problem(
    403,
    "without keys this gateway answers to 127.0.0.1 and localhost only; make a key with `multimoe keys create NAME`",
    "host_not_allowed",
)


@dataclass(frozen=True)
class Caller:
    """Who asks. `key` is None where no key is needed; then everything may be done, and answers are nobody's."""

    key: Key | None = None

    @property
    def tenant(self) -> str | None:
        return self.key.tenant if self.key else None


class KeyRing:
    """The keys of the store, as they were `FRESH_SECONDS` ago at most; while the store is gone, as last seen.

    Of one that is silent this holds while the last look was a recent one; after a pause, old keys count only once it
    has said that it is away.
    """

    def __init__(self, log: FeedbackLog, required: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.log = log
        self.required = required
        self.clock = clock
        self._keys: dict[str, Key] | None = None
        self._seen = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._began = float("-inf")
        self._known = False  # whether the keys were those of just now when the look began
        self._trouble: MultimoeError | None = None

    async def needed(self) -> bool:
        """From the first key on, even if all are revoked: who takes back a leaked one wants nobody let in.

        Raises Unavailable where the store has not been reached once, or not for a while and says nothing.
        """
        return bool(await self._look()) or self.required

    async def holder(self, sent: str) -> Key | None:
        """The key that was sent, if it is one of ours and holds."""
        key = matching(sent, await self._look())
        return key if key is not None and key.holds(datetime.now(UTC)) else None

    async def _look(self) -> dict[str, Key]:
        age = self.clock() - self._seen
        if age > AHEAD_SECONDS and (self._looking is None or self._looking.done()):
            self._looking, self._began = asyncio.create_task(self._read()), self.clock()
            self._known = self._began - self._seen < RECENT_SECONDS
        if age > FRESH_SECONDS and self._looking is not None:
            patience = LOOK_SECONDS if self._known else FIRST_LOOK_SECONDS
            await asyncio.wait([self._looking], timeout=max(0.0, self._began + patience - self.clock()))
            if not self._known and self._seen < self._began:
                raise Unavailable("the store does not answer in time", code="store_unavailable")
        if self._keys is None:
            raise self._trouble or Unavailable("the store does not answer in time", code="store_unavailable")
        return self._keys

    async def _read(self) -> None:
        try:
            self._keys = {key.digest: key for key in await asyncio.to_thread(self.log.all_keys)}
        except MultimoeError as error:
            self._trouble = error
            if self._keys is None:
                return
        self._seen = self.clock()


class Guard:
    """ASGI middleware. Leaves the `Caller` in scope["caller"]."""

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self.app = app
        self.ring = ring
        self.wrong = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            refused = await self._admit(scope)
        except MultimoeError as error:  # the store, before its first answer: nobody is known, so nobody is let in
            refused = Problem(503, f"keys cannot be checked: {error}", error.code, headers=_later(RETRY_SECONDS))
        if refused is None:
            await self.app(scope, receive, send)
        else:
            await refused.response()(scope, receive, send)

    async def _admit(self, scope: Scope) -> Problem | None:
        wanted = needed_for(scope.get("method", "GET"), scope["path"])
        scope["caller"] = Caller()
        if wanted == OPEN:
            return None
        if not await self.ring.needed():
            return None if addressed_here(Headers(scope=scope)) else ELSEWHERE
        address = (scope.get("client") or ("",))[0]
        sent = _sent(Headers(scope=scope))
        key = await self.ring.holder(sent) if sent else None
        if key is None:
            return self._unknown(address, sent)
        if not key.may(wanted):
            message = f"this key has {_listed(key.scopes)}, and this needs {wanted!r}; ask for a key that has it"
            return Problem(403, message, "scope_missing")
        scope["caller"] = Caller(key)
        return None

    def _unknown(self, address: str, sent: str | None) -> Problem:
        if wait := self.wrong.wait(address, WRONG_PER_MINUTE):
            message = f"too many wrong keys from {address}; wait {math.ceil(wait)} s"
            return Problem(429, message, "rate_limit_exceeded", headers=_later(wait))
        why = "this key is unknown, expired or revoked" if sent else "a key is needed"
        message = f"{why}; send `Authorization: Bearer mm-…` (`multimoe keys create NAME` makes one)"
        return Problem(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})


def needed_for(method: str, path: str) -> Right | Literal["open"]:
    method = "GET" if method == "HEAD" else method
    matches = (what for methods, pattern, what in RULES if _fits(method, methods) and re.fullmatch(pattern, path))
    return next(matches, "admin")


def _fits(method: str, methods: str) -> bool:
    return methods == ANY or method in methods.split()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def addressed_here(headers: Headers) -> bool:
    """Whether the caller means this machine; a web page whose name was made to lead here (DNS rebinding) does not."""
    try:
        return is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or "")
    except ValueError:
        return False


def keys_required(server: Server) -> bool:
    return server.keys == "required" or not is_loopback(server.host)


def refuse_open_house(server: Server, log: FeedbackLog) -> None:
    """Raises BadConfig where others could reach a gateway that nobody has a key for."""
    now = datetime.now(UTC)
    if keys_required(server) and not any(key.holds(now) for key in log.all_keys()):
        raise BadConfig(
            f"{server.host} can be reached from elsewhere, and there is no key yet: make one with "
            "`multimoe keys create NAME --scope admin`, or listen on 127.0.0.1"
            if not is_loopback(server.host)
            else "server.keys is `required`, and there is no key yet: make one with `multimoe keys create NAME`",
            "server.host",
        )


def _sent(headers: Headers) -> str | None:
    """The key, where exactly one is sent as it should be."""
    values = headers.getlist("authorization")
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _listed(scopes: frozenset[Right]) -> str:
    return " and ".join(repr(scope) for scope in sorted(scopes))


def _later(seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(seconds))}
