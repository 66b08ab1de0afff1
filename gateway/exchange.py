"""One question and its answer at the gateway: the mixture's events within the deadline, and the record they leave.

It knows no JSON. Whatever becomes of a request that was routed (answered, failed, given up by the client) is recorded
once, before its end is told.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from gateway.policies import Asked
from gateway.services import Services
from multimoe.blend import say
from multimoe.errors import ExpertTimeout, MultimoeError
from multimoe.feedback import Interaction, Outcome
from multimoe.messages import ChatRequest
from multimoe.outputs import Usage
from multimoe.reply import Decided, Event, Finished, Part, Reply, Routed, Spoken

logger = logging.getLogger(__name__)

Status = Literal["ok", "degraded", "error", "cancelled"]


def new_completion_id() -> str:
    return f"chatcmpl-{secrets.token_urlsafe(21)}"  # 28 characters, 168 bits: knowing it is the right to rate


@dataclass
class Exchange:
    services: Services
    asked: Asked
    request: ChatRequest
    request_id: str
    user: str | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.perf_counter)
    decided: bool = False
    routed: Routed | None = None
    reply: Reply | None = None
    rateable: bool = True
    _said: list[str] = field(default_factory=list)

    @property
    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.began) * 1000

    async def events(self) -> AsyncGenerator[Event, None]:
        """Decided, Spoken ..., Finished. Raises what the mixture raises, and ExpertTimeout past the deadline."""
        events = within(self._ask(), self.services.catalog.limits.request_seconds)
        try:
            async for event in events:
                self._keep(event)
                if isinstance(event, Finished):
                    await self._record("degraded" if event.reply.degraded else "ok")
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            if self.reply is None:
                await self._record("cancelled")
            raise
        except Exception:
            await self._record("error")
            raise
        finally:
            await events.aclose()

    async def answer(self) -> Reply:
        """The whole answer."""
        async for _ in self.events():
            pass
        if self.reply is None:
            raise RuntimeError("the mixture ended without Finished")
        return self.reply

    def _ask(self) -> AsyncGenerator[Event, None]:
        mixture, asked = self.services.mixture, self.asked
        if asked.expert is not None:
            return mixture.ask_one(asked.expert, self.request)
        return mixture.answer(self.request, asked.policy, asked.combine)

    def _keep(self, event: Event) -> None:
        match event:
            case Decided(routed):
                self.decided, self.routed = True, routed
            case Spoken(text):
                self._said.append(text)
            case Finished(reply):
                self.reply = reply

    async def _record(self, status: Status) -> None:
        """In the store, if anybody was chosen. The answer goes out without a record rather than not at all."""
        if not self.decided:
            return
        try:
            await asyncio.to_thread(self.services.log.record, self._interaction(status))
        except MultimoeError as error:
            self.rateable = False
            logger.error("an answer was not recorded", extra={"completion_id": self.request.id, "error": str(error)})

    def _interaction(self, status: Status) -> Interaction:
        keep = self.services.catalog.store.keep_text
        return Interaction(
            id=self.request.id,
            created=self.created,
            model=self.asked.model,
            user=self.user,
            decision=self.routed.decision if self.routed else None,
            embedding=self.routed.embedding if self.routed else None,
            question=self.request.text if keep else None,
            answer=(self.reply.text if self.reply else "".join(self._said)) if keep else None,
            outcomes=tuple(_outcome(part, keep) for part in self.reply.parts) if self.reply else (),
            status=status,
            usage=self.reply.usage if self.reply else Usage(),
            timing_ms={**(self.reply.timing_ms if self.reply else {}), "total": self.elapsed_ms},
            request_id=self.request_id,
        )


def _outcome(part: Part, keep_text: bool) -> Outcome:
    return Outcome(
        expert=part.expert,
        role=part.role,
        weight=part.weight,
        status=part.status,
        latency_ms=part.latency_ms,
        cost=part.cost,
        text=say(part.output) if keep_text and part.output is not None else None,
    )


async def within(events: AsyncGenerator[Event, None], seconds: float) -> AsyncGenerator[Event, None]:
    """`events`, closed and ended by ExpertTimeout when they are not done after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            yield event
    except TimeoutError as error:
        raise ExpertTimeout(f"no answer within {seconds:g} s; ask for less, or for a faster model") from error
    finally:
        await events.aclose()
