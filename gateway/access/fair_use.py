"""Holds each key to its limits, before a body is read, and tells it in OpenAI's own headers how it stands.

It knows HTTP and asks the meter. Whoever asks without a key, where none is needed, counts as one key together.
"""

import math
import re

from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access.guard import Caller
from gateway.access.limits import closing
from gateway.access.meter import Meter
from gateway.access.quota import Allowance, Limit, Spent, Standing, allowance
from gateway.problems import Problem
from multimoe.config import Limits

WORK = r"/v1/(chat/completions|route|embeddings|audio/transcriptions)"  # what takes the experts' or the gate's time
TOLD: tuple[tuple[Limit, str], ...] = (("requests_per_minute", "requests"), ("tokens_per_day", "tokens"))
HEADERS = tuple(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for _, of in TOLD)
WORDS: dict[Limit, str] = {
    "requests_per_minute": "{limit:g} requests a minute",
    "concurrent_requests": "{limit:g} requests at once",
    "tokens_per_day": "{limit:,.0f} tokens a day",
    "cost_per_day": "US$ {limit:g} a day",
}


class Left(BaseModel):
    """What a key may have of something, what is left of it, and when there is more again."""

    limit: float
    remaining: float
    reset_seconds: float


class FairUse:
    """ASGI middleware, inside the guard. Leaves a `Spent` in scope["spent"] that whoever answers adds to."""

    def __init__(self, app: ASGIApp, meter: Meter, limits: Limits) -> None:
        self.app = app
        self.meter = meter
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
            return
        scope["spent"] = spent = Spent()
        who, allowed = allowance_of(scope["caller"], self.limits)
        if not allowed:
            await self.app(scope, receive, send)
            return
        standing = await self.meter.admit(who, allowed)
        told = headers(standing)

        async def send_told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(told)
            await send(message)

        if standing.refused:
            told |= closing(Headers(scope=scope))
            await refusal(standing).response()(scope, receive, send_told)
            return
        try:
            await self.app(scope, receive, send_told)
        finally:
            self.meter.settle(who, allowed, spent)


def is_work(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and bool(re.fullmatch(WORK, scope["path"]))


def allowance_of(caller: Caller, limits: Limits) -> tuple[str, Allowance]:
    """Under whose name the caller is counted, and what is allowed."""
    key = caller.key
    return (key.id if key else ""), allowance(key.quota if key else None, limits)


def headers(standing: Standing) -> dict[str, str]:
    told = {}
    for name, of in TOLD:
        if level := standing.levels.get(name):
            told[f"x-ratelimit-limit-{of}"] = f"{level.limit:.0f}"
            told[f"x-ratelimit-remaining-{of}"] = str(math.floor(level.remaining + 1e-9))
            told[f"x-ratelimit-reset-{of}"] = duration(level.reset)
    return told


def refusal(standing: Standing) -> Problem:
    name = standing.refused
    assert name is not None  # noqa: S101  # asked only where something refuses
    wait = max(1, math.ceil(standing.wait))
    message = f"this key may have {WORDS[name].format(limit=standing.levels[name].limit)}, and has; wait {wait} s"
    later = {"retry-after": str(wait)}
    if name.endswith("_per_day"):  # to try again in a second or two, as SDKs do, would be no use
        return Problem(429, message, "insufficient_quota", headers=later | {"x-should-retry": "false"})
    return Problem(429, message, "rate_limit_exceeded", headers=later)


def duration(seconds: float) -> str:
    """As OpenAI writes it: 200ms, 1s, 6m0s, 3h12m5s."""
    if seconds < 1:
        return f"{math.ceil(max(0.0, seconds) * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes or hours else "") + f"{rest}s"


def left(standing: Standing) -> dict[Limit, Left]:
    return {
        name: Left(limit=level.limit, remaining=level.remaining, reset_seconds=round(level.reset, 3))
        for name, level in standing.levels.items()
    }
