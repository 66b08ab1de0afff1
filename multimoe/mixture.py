"""One request, from question to blended answer. The story reads top-down; it knows no Ray and no HTTP.

What it needs from outside, a gate to decide and experts to ask, comes as two small protocols, so that the same story
runs on a cluster, in one process and in tests.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from multimoe.config import ExpertSpec
from multimoe.decision import Policy
from multimoe.errors import BadInput, ExpertFailed, ExpertTimeout, MultimoeError, UnknownModel
from multimoe.expert import Delta
from multimoe.messages import ChatRequest
from multimoe.reply import Combine, Decided, Event, Finished, Part, PartRole, Reply, Routed, Spoken
from multimoe.run import Heard, Run

__all__ = [
    "Combine",
    "Decided",
    "Event",
    "Experts",
    "Finished",
    "Mixture",
    "Part",
    "Reply",
    "Routed",
    "Router",
    "Spoken",
]

logger = logging.getLogger(__name__)

ASIDE_SECONDS = 0.2  # how long a finished answer waits for experts that ran beside it; one still asleep is skipped


class Router(Protocol):
    async def decide(self, request: ChatRequest, policy: Policy) -> Routed: ...


class Experts(Protocol):
    async def roster(self) -> tuple[ExpertSpec, ...]: ...

    def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]: ...


class Mixture:
    """Answers requests: decide, ask, blend. Holds no state between requests."""

    def __init__(self, router: Router, experts: Experts, clock: Callable[[], float] = time.perf_counter) -> None:
        self.router = router
        self.experts = experts
        self.clock = clock

    async def answer(
        self, request: ChatRequest, policy: Policy, combine: Combine | None = None
    ) -> AsyncGenerator[Event, None]:
        """Decided, then the answer's text in pieces, then Finished. Raises MultimoeError before the first piece only.

        A chosen expert that fails is replaced by the next best of its kind and the reply says `degraded`.
        """
        routed = await self.router.decide(request, policy)
        yield Decided(routed)
        roster = {spec.name: spec for spec in await self.experts.roster()}
        run = Run(request, routed.decision, roster, combine or "weighted", self.clock)
        async with aclosing(self._answer(run)) as events:
            async for event in events:
                yield event

    async def ask_one(self, expert: str, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """The same from one expert that the caller named; the gate is not asked. Raises UnknownModel."""
        roster = {spec.name: spec for spec in await self.experts.roster()}
        if expert not in roster:
            raise UnknownModel(f"no expert {expert!r}; there are: {', '.join(sorted(roster))}", "model")
        _refuse_unreadable(roster[expert], request)
        yield Decided(None)
        run = Run(request, None, {expert: roster[expert]}, "best", self.clock, chosen={expert: 1.0})
        async with aclosing(self._answer(run)) as events:
            async for event in events:
                yield event

    async def _answer(self, run: "Run") -> AsyncGenerator[Event, None]:
        if run.leader.output == "text":
            await self._gather(run, run.evidence_wanted(), "evidence")
            writing = self._write(run, run.request)
        else:
            await self._gather(run, run.perceivers(), "answer")
            question = run.spoken_question()
            writing = self._answer_spoken(run, question) if question else _once(run.said())
        async with aclosing(writing) as pieces:
            async for piece in pieces:
                yield Spoken(run.speak(piece))
        yield Finished(run.reply())

    async def _gather(self, run: "Run", names: Sequence[str], role: PartRole) -> None:
        """Ask perception experts side by side; when all fail, the next best of the same kinds, one after the other."""
        await asyncio.gather(*(self._listen(run, name, role) for name in names))
        if role != "answer":
            return
        for name in run.stand_ins(names):
            if run.outputs():
                return
            await self._listen(run, name, role)
        run.raise_if_silent()

    async def _listen(self, run: "Run", name: str, role: PartRole) -> None:
        """One perception expert's whole output, or its failure, into `run.parts`."""
        async for _ in self._ask(run, name, role, run.request):
            pass

    async def _write(self, run: "Run", request: ChatRequest) -> AsyncGenerator[str, None]:
        """Stream the best text expert; before its first word another may step in, and last the evidence itself."""
        asides = [asyncio.create_task(self._listen(run, name, "aside")) for name in run.asides()]
        try:
            for name in run.writers():
                asked = run.written_request(request, run.roster[name])
                spoken = False
                async with aclosing(self._ask(run, name, "answer", asked)) as pieces:
                    async for piece in pieces:
                        spoken = True
                        yield piece
                if spoken or run.parts[name].status == "ok":
                    break
            else:
                if not run.outputs():
                    run.raise_if_silent()
                yield run.said()
            if asides:
                await asyncio.wait(asides, timeout=ASIDE_SECONDS)
        finally:
            for task in asides:
                task.cancel()
            await asyncio.gather(*asides, return_exceptions=True)

    async def _answer_spoken(self, run: "Run", question: str) -> AsyncGenerator[str, None]:
        """A recording that asks something is answered: the words heard go to the gate as if they had been typed."""
        writer = await self._writer_for(run, question)
        if writer is None:
            yield run.said()
            return
        yield f"“{question}”\n\n"
        run.hand_over()
        async with aclosing(self._ask(run, writer, "answer", run.request.asking(question))) as pieces:
            async for piece in pieces:
                yield piece

    async def _writer_for(self, run: Run, question: str) -> str | None:
        """Whom the gate would have write the answer; None where it would not, or cannot say."""
        policy = (run.decision.policy if run.decision else Policy()).model_copy(update={"explore": False, "top_k": 1})
        try:
            routed = await self.router.decide(run.request.asking(question), policy)
        except MultimoeError as error:
            logger.warning("a spoken question goes unanswered", extra={"error": str(error)})
            return None
        name = routed.decision.chosen[0].expert
        return name if name in run.roster and run.roster[name].output == "text" else None

    async def _ask(self, run: "Run", name: str, role: PartRole, request: ChatRequest) -> AsyncGenerator[str, None]:
        """Stream one expert and keep what it did as a `Part`. A failure is kept too, not raised."""
        started = self.clock()
        piece = Heard()
        try:
            async with aclosing(self.experts.ask(name, request)) as deltas:
                async for delta in _within(deltas, run.roster[name].timeout_s):
                    piece.hear(delta)
                    if delta.text:
                        yield delta.text
            run.keep(name, role, piece, self.clock() - started)
        except TimeoutError:
            late = ExpertTimeout(f"expert {name!r} did not answer within {run.roster[name].timeout_s:g} s")
            run.keep(name, role, piece, self.clock() - started, late)
        except BadInput:
            if run.decision is None or len(run.decision.considered) == 1:
                raise
            run.keep(name, role, piece, self.clock() - started, ExpertFailed(f"{name!r} cannot read this input"))
        except MultimoeError as error:
            logger.warning("expert failed", extra={"expert": name, "error": str(error), "request_id": request.id})
            run.keep(name, role, piece, self.clock() - started, error)


async def _within(deltas: AsyncGenerator[Delta, None], seconds: float) -> AsyncGenerator[Delta, None]:
    """The same, or TimeoutError once `seconds` have passed; only the expert's own time counts as waiting."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                delta = await anext(deltas)
        except StopAsyncIteration:
            return
        yield delta


async def _once(text: str) -> AsyncGenerator[str, None]:
    yield text


def _refuse_unreadable(spec: ExpertSpec, request: ChatRequest) -> None:
    if not spec.inputs & request.modalities:
        sent = ", ".join(sorted(request.modalities)) or "nothing"
        reads = ", ".join(sorted(spec.inputs))
        raise BadInput(
            f"expert {spec.name!r} reads {reads}, and the question has {sent}; "
            "send what it reads or let `multimoe` choose",
            "model",
            "no_expert_for_modality",
        )
