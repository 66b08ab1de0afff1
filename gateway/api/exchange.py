"""One question and its answer at the gateway: the mixture's events within the deadline, and the record they leave.

It knows no JSON. Whatever becomes of a request that was routed (answered, failed, given up by the client) is recorded
once, before its end is told.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from gateway.access.quota import Spent, tokens_in
from gateway.api.policies import Asked
from gateway.api.replies import cost_of
from gateway.services import Services
from multimoe.blend import say
from multimoe.errors import ExpertTimeout
from multimoe.feedback import Interaction, Outcome
from multimoe.messages import ChatRequest
from multimoe.outputs import Usage
from multimoe.reply import Decided, Event, Finished, Part, Reply, Routed, Spoken

logger = logging.getLogger(__name__)

LATE_RECORD_SECONDS = 0.05  # that the end of one which is late already waits for the store
EMBEDDING_SECONDS = 0.2  # that an answer of a named expert waits at most for what its ratings will need

Status = Literal["ok", "degraded", "error", "cancelled"]


@dataclass
class Exchange:
    services: Services
    asked: Asked
    request: ChatRequest
    request_id: str
    spent: Spent = field(default_factory=Spent)
    user: str | None = None
    tenant: str | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.perf_counter)
    decided: bool = False
    routed: Routed | None = None
    reply: Reply | None = None
    embedding: bytes | None = None  # where no gate decided, so that ratings teach all the same
    rateable: bool = True
    whole: bool = False  # nobody hears a word before all are there
    _said: list[str] = field(default_factory=list)

    @property
    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.began) * 1000

    @property
    def seconds(self) -> float:
        """From the question to the end: what the caller asked for, and no more than the limits allow."""
        most = self.services.catalog.limits.request_seconds
        return min(most, self.asked.timeout_s or most)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Decided, Spoken ..., Finished. Raises what the mixture raises, and ExpertTimeout past the deadline."""
        embedding = asyncio.create_task(self._embedded()) if self.asked.expert else None
        events = within(self._ask(), self.seconds)
        try:
            async for event in events:
                if isinstance(event, Finished) and embedding:
                    self.embedding = await _ready(embedding)
                self._keep(event)
                if isinstance(event, Finished):
                    await self._record("degraded" if event.reply.degraded else "ok")
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            if self.reply is None:
                await self._record("cancelled")
            raise
        except ExpertTimeout:
            with suppress(TimeoutError):
                async with asyncio.timeout(LATE_RECORD_SECONDS):  # it gets there, also when nobody waits any more
                    await self._record("error")
            raise
        except Exception:
            await self._record("error")
            raise
        finally:
            if embedding:
                embedding.cancel()
            self._spend()
            await events.aclose()

    async def answer(self) -> Reply:
        """The whole answer."""
        self.whole = True
        async for _ in self.events():
            pass
        if self.reply is None:
            raise RuntimeError("the mixture ended without Finished")
        return self.reply

    async def _embedded(self) -> bytes | None:
        """None where the gate has done enough of this lately."""
        embedded = await self.services.teaching.of(lambda: self.services.cluster.embed(self.request))
        return None if embedded is None else embedded.to_bytes()

    def _ask(self) -> AsyncGenerator[Event, None]:
        mixture, asked = self.services.mixture, self.asked
        if asked.expert is not None:
            return mixture.ask_one(asked.expert, self.request, self.seconds, self.whole)
        return mixture.answer(self.request, asked.policy, asked.blend, self.seconds, self.whole)

    def _keep(self, event: Event) -> None:
        match event:
            case Decided(routed):
                self.decided, self.routed = True, routed
            case Spoken(text):
                self._said.append(text)
            case Finished(reply):
                self.reply = reply

    def _spend(self) -> None:
        """What it has used; where it ended early, about what it had, and the price of all who were chosen."""
        if self.reply is not None:
            counted = self.reply.usage.prompt_tokens + self.reply.usage.completion_tokens
            self.spent.add(counted or tokens_in(self.request.text, self.reply.text), cost_of(self.reply.parts))
        elif self.decided:
            prices = {spec.name: spec.cost for spec in self.services.catalog.experts}
            chosen = [c.expert for c in self.routed.decision.chosen] if self.routed else [self.asked.expert or ""]
            self.spent.add(tokens_in(self.request.text, *self._said), sum(prices.get(name, 0.0) for name in chosen))

    async def _record(self, status: Status) -> None:
        """In the store, if anybody was chosen. The answer goes out without a record rather than not at all."""
        if not self.decided:
            return
        try:
            await self.services.recorder.record(self._interaction(status))
        except Exception as error:  # also what the store's engine makes of an answer it cannot hold
            self.rateable = False
            logger.error("an answer was not recorded", extra={"completion_id": self.request.id, "error": repr(error)})

    def _interaction(self, status: Status) -> Interaction:
        keep = self.services.catalog.store.keep_text
        return Interaction(
            id=self.request.id,
            created=self.created,
            model=self.asked.model,
            user=self.user,
            tenant=self.tenant,
            decision=self.routed.decision if self.routed else None,
            embedding=self.routed.embedding if self.routed else self.embedding,
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


async def _ready(embedding: asyncio.Task[bytes | None]) -> bytes | None:
    """What was embedded beside the answer; None where that failed or the answer would have to wait for it."""
    try:
        async with asyncio.timeout(EMBEDDING_SECONDS):
            return await embedding
    except Exception as error:  # nothing that happens beside an answer may fail it
        logger.warning("a request was not embedded; its ratings teach nothing", extra={"error": repr(error)})
        return None


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
        raise ExpertTimeout(f"no answer within {seconds:.3g} s; ask for less, or for a faster model") from error
    finally:
        await events.aclose()
