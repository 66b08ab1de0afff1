"""One request, from question to blended answer. The story reads top-down; it knows no Ray and no HTTP.

What it needs from outside, a gate to decide and experts to ask, comes as two small protocols, so that the same story
runs on a cluster, in one process and in tests.
"""

import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Protocol

from multimoe.asking import Asker, Experts
from multimoe.breaker import Notice, unnoticed
from multimoe.config import BlendSpec, Combine, ExpertSpec, FaultSpec
from multimoe.decision import Policy
from multimoe.errors import BadInput, MultimoeError, UnknownModel
from multimoe.failover import first_to_come
from multimoe.messages import ChatRequest
from multimoe.reply import Decided, Event, Finished, Part, Reply, Routed, Spoken
from multimoe.run import Run
from multimoe.writing import Writing

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


class Router(Protocol):
    async def decide(self, request: ChatRequest, policy: Policy) -> Routed: ...

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        """(n, d), each of length 1."""


class Mixture:
    """Answers requests: decide, ask, blend. Between requests it remembers only which experts keep failing.

    `notice` is told what becomes of an expert: "ejected", "restored", "passed_over", "retried".
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        clock: Callable[[], float] = time.perf_counter,
        faults: FaultSpec | None = None,
        notice: Notice = unnoticed,
    ) -> None:
        self.router = router
        self.experts = experts
        self.clock = clock
        self.asker = Asker(experts, clock, faults, notice)
        self.writing = Writing(self.asker, router.embed_texts)

    async def answer(
        self,
        request: ChatRequest,
        policy: Policy,
        blend: BlendSpec | None = None,
        seconds: float = math.inf,
        whole: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Decided, then the answer's text in pieces, then Finished. Raises MultimoeError.

        A chosen expert that fails is replaced by the next best of its kind, who is also asked beside one that is slow,
        and the reply says `degraded`. Once a word of it was given out nobody can continue what it broke off; with
        `whole` none is before all are there. The time
        left of `seconds` is shared out so that a stuck expert leaves some to the next. Who exceeds it is for the caller
        to end.
        """
        began = self.clock()
        routed = await self.router.decide(request, policy)
        yield Decided(routed)
        roster = {spec.name: spec for spec in await self.experts.roster()}
        spec = blend or BlendSpec()
        run = Run(request, routed.decision, roster, spec, self.clock, began, seconds=seconds, whole=whole)
        async with aclosing(self._answer(run)) as events:
            async for event in events:
                yield event

    async def ask_one(
        self, expert: str, request: ChatRequest, seconds: float = math.inf, whole: bool = False
    ) -> AsyncGenerator[Event, None]:
        """The same from one expert that the caller named; the gate is not asked. Raises UnknownModel."""
        began = self.clock()
        roster = {spec.name: spec for spec in await self.experts.roster()}
        if expert not in roster:
            raise UnknownModel(f"no expert {expert!r}; there are: {', '.join(sorted(roster))}", "model")
        _refuse_unreadable(roster[expert], request)
        yield Decided(None)
        alone = BlendSpec(combine="best")
        mine, chosen = {expert: roster[expert]}, {expert: 1.0}
        run = Run(request, None, mine, alone, self.clock, began, chosen=chosen, seconds=seconds, whole=whole)
        async with aclosing(self._answer(run)) as events:
            async for event in events:
                yield event

    async def _answer(self, run: Run) -> AsyncGenerator[Event, None]:
        if run.cast.leader.output == "text":
            words = self.writing.write(run, run.request)
        else:
            await self._perceive(run)
            question = run.spoken_question()
            words = self._answer_spoken(run, question) if question else _once(run.said())
        async with aclosing(words) as pieces:
            async for piece in pieces:
                yield Spoken(run.speak(piece))
        yield Finished(run.reply())

    async def _perceive(self, run: Run) -> None:
        """Ask perception experts side by side; where none comes through, the next best, one after the other."""
        chosen = run.cast.perceivers()
        others = [[name] for name in run.cast.stand_ins(chosen) if name not in chosen]
        async with aclosing(first_to_come(run, self.asker, [chosen, *others], partial(self._look, run))) as silence:
            async for _ in silence:
                pass
        run.raise_if_silent()

    async def _look(self, run: Run, names: Sequence[str], others: bool, resort: bool) -> AsyncGenerator[str, None]:
        await self.asker.gather(run, names, "answer", others, resort)
        yield ""

    async def _answer_spoken(self, run: Run, question: str) -> AsyncGenerator[str, None]:
        """A recording that asks something is answered: the words heard go to the gate as if they had been typed."""
        writers = await self._writers_for(run, question)
        if not writers:
            yield run.said()
            return
        yield f"“{question}”\n\n"
        run.recast("evidence")
        answer = self.writing.first_of(run, writers, run.request.asking(question), from_evidence=False)
        async with aclosing(answer) as pieces:
            async for piece in pieces:
                yield piece
        if doubt := run.caveat():
            yield f"\n\n{doubt}"

    async def _writers_for(self, run: Run, question: str) -> list[str]:
        """Whom the gate would have write the answer, the best first; nobody where it would not, or cannot say."""
        decision = run.decision
        same = {"gate": decision.gate_version} if decision else {}  # one version, end to end, whatever serves by now
        policy = (decision.policy if decision else Policy()).model_copy(update={"explore": False, "top_k": 1, **same})
        try:
            routed = await self.router.decide(run.request.asking(question), policy)
        except MultimoeError as error:
            logger.warning("a spoken question goes unanswered", extra={"error": str(error)})
            return []
        best = routed.decision.chosen[0].expert
        able = dict.fromkeys([best, *(considered.expert for considered in routed.decision.considered)])
        writers = [name for name in able if name in run.roster and run.roster[name].output == "text"]
        return writers if best in writers else []


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
