"""Asking one expert: its words as they come, and whatever becomes of it kept in the run's books. A failure is no end.

How several are asked, and what is made of it, is `mixture`'s and `writing`'s.
"""

import asyncio
import logging
import math
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from multimoe.breaker import Attempt, Breakers, Notice, RetryBudget, unnoticed
from multimoe.config import ExpertSpec, FaultSpec
from multimoe.errors import BadInput, ExpertTimeout, LoopDetected, MultimoeError, NoReplica, ReplicaLost, Unavailable
from multimoe.expert import Delta, NextToken
from multimoe.inspection import inspected, inspected_tokens
from multimoe.messages import ChatRequest, TextPart
from multimoe.reply import PartRole
from multimoe.run import Heard, Run

logger = logging.getLogger(__name__)

REPEATED = 12  # letters from which on a message is taken to repeat the question; half of them where it has no more
MOST_READ = 200  # characters of a text in which they are looked for
BETWEEN = r"(?:\\[nrt]|[\W_])*"  # two of them: however the message may quote
TRIED_OUT = 3  # times as long as it should take: who is slow and comes nevertheless is learned to be slow
FOUND_SECONDS = 0.05  # until what is overdue has been noted, before another is asked beside it
LOOK_SECONDS = 0.5  # between two looks whether an expert that nobody can stand in for is up again
HARMLESS = (LoopDetected, Unavailable)  # the question's way here, or too many questions: not the expert's fault


class Experts(Protocol):
    async def roster(self) -> tuple[ExpertSpec, ...]: ...

    def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]: ...

    async def next_tokens(self, expert: str, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        """As `TokenExpert` has it. Raises MultimoeError."""


class Asker:
    """Asks experts within their time and writes down in a `Run` what each of them did.

    It remembers from one request to the next who keeps failing, and passes them over.
    """

    def __init__(
        self,
        experts: Experts,
        clock: Callable[[], float],
        faults: FaultSpec | None = None,
        notice: Notice = unnoticed,
    ) -> None:
        self.experts = experts
        self.clock = clock
        self.notice = notice
        faults = faults or FaultSpec()
        self.breakers = Breakers(faults, clock, notice)
        self.retries = RetryBudget(faults.retries)
        self.hedges = RetryBudget(faults.hedges)
        self._trials: set[asyncio.Task[None]] = set()

    async def ask(
        self, run: Run, name: str, role: PartRole, request: ChatRequest, wait: float = math.inf, resort: bool = False
    ) -> AsyncGenerator[str, None]:
        """Stream one expert and keep what it did as a `Part`. A failure is kept too, not raised.

        It has `wait` seconds to its first word. Who keeps failing, or is not up, is passed over, unless it is the last
        `resort`: then it is waited for. Whether it is well again is tried with a copy of the question meanwhile.
        Where the run wants a whole answer nothing is given out before it is there.
        """
        spec, started = run.roster[name], self.clock()
        if not resort:
            if run.others() and self.breakers.due(name):
                self._in_background(self._try_out(spec, request, len(run.roster)))
            if why := self.breakers.why_not(name, run.others()):
                self.notice(name, "passed_over")
                run.pass_over(name, why)
                return
        wait = min(wait, spec.timeout_s, run.left())
        self.retries.earn()
        with self.breakers.attempt(spec, len(run.roster), resort) as attempt:
            again = False
            while True:
                piece = Heard()
                try:
                    async with aclosing(self._words(run, spec, piece, request, wait, attempt)) as words:
                        async for word in words:
                            if not run.whole:
                                yield word
                    if run.whole and (said := "".join(piece.text)):
                        if role == "answer":
                            run.first_heard(started + piece.first)
                        yield said
                    run.keep(name, role, piece, self.clock() - started)
                    return
                except TimeoutError:
                    error: MultimoeError = self._late(spec, self.clock() - started)
                except MultimoeError as raised:
                    error = raised
                if resort and isinstance(error, NoReplica) and self.clock() - started + LOOK_SECONDS < wait:
                    await asyncio.sleep(LOOK_SECONDS)
                    continue
                given = "".join(piece.text) and not run.whole
                if again or given or not isinstance(error, ReplicaLost) or not self.retries.take():
                    break
                again = True
                self.notice(name, "retried")
            if isinstance(error, BadInput) and not run.others():
                raise error
            self._judge(attempt, spec, request, error, self.clock() - started, wait)
            if not isinstance(error, BadInput | ExpertTimeout):
                _tell(name, error, request)
            if isinstance(error, NoReplica) and not resort:
                run.pass_over(name, error.message)
            else:
                run.keep(name, role, piece, self.clock() - started, error)

    async def _words(
        self, run: Run, spec: ExpertSpec, piece: Heard, request: ChatRequest, wait: float, attempt: Attempt
    ) -> AsyncGenerator[str, None]:
        """One try. Raises TimeoutError and MultimoeError."""
        began, most = self.clock(), min(spec.timeout_s, run.left())
        asked = replace(request, seconds=most)
        patience = self.breakers.patience(spec, request)
        overdue = asyncio.get_running_loop().call_later(patience, attempt.overdue)
        try:
            deltas = inspected(self.experts.ask(spec.name, asked), spec, request)
            async with aclosing(_within(deltas, min(wait, most), most)) as heard:
                async for delta in heard:
                    if math.isnan(piece.first):
                        piece.first = self.clock() - began
                        run.begun.add(spec.name)
                        overdue.cancel()
                    piece.hear(delta)
                    if delta.text:
                        yield delta.text
            attempt.succeeded(None if math.isnan(piece.first) else piece.first)
        finally:
            overdue.cancel()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._trials.add(task)
        task.add_done_callback(self._trials.discard)

    async def _try_out(self, spec: ExpertSpec, request: ChatRequest, pool: int) -> None:
        """One question at a time, whose answer nobody waits for, up to its first word: does it come, and soon?"""
        with self.breakers.attempt(spec, pool) as attempt:
            if not attempt.trial:
                return
            began, patience = self.clock(), self.breakers.patience(spec, request)
            most = min(spec.timeout_s, TRIED_OUT * patience)
            overdue = asyncio.get_running_loop().call_later(patience, attempt.overdue)
            try:
                deltas = inspected(self.experts.ask(spec.name, replace(request, seconds=most)), spec, request)
                async with asyncio.timeout(most), aclosing(deltas):
                    async for delta in deltas:
                        if delta.text or delta.output:
                            break
                attempt.succeeded(self.clock() - began)
            except TimeoutError:
                self._judge(attempt, spec, request, self._late(spec, most), most, most)
            except MultimoeError as error:
                self._judge(attempt, spec, request, error, self.clock() - began, most)
            finally:
                overdue.cancel()

    async def listen(
        self,
        run: Run,
        name: str,
        role: PartRole,
        request: ChatRequest,
        wait: float = math.inf,
        resort: bool = False,
    ) -> None:
        """One expert's whole output, or its failure, into `run.parts`."""
        async for _ in self.ask(run, name, role, request, wait, resort):
            pass

    async def gather(
        self, run: Run, names: Sequence[str], role: PartRole, others: bool = True, resort: bool = False
    ) -> None:
        """Perception experts side by side; where the run has them wait in a row, only until one is sure.

        `others` says whether somebody else could still answer after them.
        """
        rows = {row[0]: row for row in run.in_turn(names)}
        await self.side_by_side(
            run, role, {first: (row, self._in_turn(run, row, role, others, resort)) for first, row in rows.items()}
        )

    async def side_by_side(
        self, run: Run, role: PartRole, works: Mapping[str, tuple[Sequence[str], Coroutine[Any, Any, None]]]
    ) -> None:
        """All at once. When one has come through, others that should have begun long ago are not waited for."""
        began = self.clock()
        tasks = {asyncio.create_task(work): names for names, work in works.values()}
        pending = set(tasks)

        def patience(task: asyncio.Task[None]) -> float:
            return math.inf if run.begun.intersection(tasks[task]) else self._patience(run, tasks[task])

        try:
            while pending:
                came = any(run.came(name) for names, _ in works.values() for name in names)
                waiting = max(map(patience, pending)) - (self.clock() - began) if came else math.inf
                if waiting <= 0:
                    break
                most = None if math.isinf(waiting) else waiting
                done, pending = await asyncio.wait(pending, timeout=most, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in pending:
            self.give_up(run, tasks[task], role, began)

    def give_up(self, run: Run, names: Sequence[str], role: PartRole, began: float) -> None:
        """Nobody waits any longer for these, who were asked at `began`."""
        for name in run.unasked(names):
            error = ExpertTimeout(f"expert {name!r} was not waited for when others had answered")
            run.keep(name, role, Heard(), self.clock() - began, error)

    def slow_after(self, run: Run, names: Sequence[str]) -> float:
        """Seconds after which these, asked together, have been found slow where none has said a word."""
        return max(self._patience(run, row) for row in run.in_turn(names)) + FOUND_SECONDS

    def may_hedge(self, run: Run, names: Sequence[str]) -> bool:
        """Whether the next is to be asked beside these, who are slow: not once they have begun, nor too often."""
        if run.begun.intersection(names) or not self.hedges.take():
            return False
        for name in names:
            self.notice(name, "hedged")
        return True

    def _patience(self, run: Run, names: Sequence[str]) -> float:
        """Seconds after which these, asked one after the other, are slow."""
        return sum(self.breakers.patience(run.roster[name], run.request) for name in names)

    async def _in_turn(self, run: Run, row: Sequence[str], role: PartRole, others: bool, resort: bool) -> None:
        for place, name in enumerate(row):
            if place and (why := run.sure(row[:place])):
                run.spare(name, why)
            else:
                more = others or place + 1 < len(row)
                await self.listen(run, name, role, run.request, run.share(more), resort)

    async def next_tokens(
        self, run: Run, spec: ExpertSpec, request: ChatRequest, written: tuple[int, ...], top: int
    ) -> NextToken | MultimoeError:
        """What one expert would write next, or why it cannot say; nothing is kept."""
        started, most = self.clock(), min(spec.timeout_s, run.share(others=True))
        most = min(most, self.breakers.patience(spec, request))
        self.retries.earn()
        with self.breakers.attempt(spec, len(run.roster)) as attempt:
            for again in (False, True):
                try:
                    async with asyncio.timeout(most):
                        listed = await self.experts.next_tokens(spec.name, request, written, top)
                    listed = inspected_tokens(listed, spec, top)
                    attempt.succeeded()
                    return listed
                except TimeoutError:
                    error: MultimoeError = self._late(spec, self.clock() - started)
                except MultimoeError as raised:
                    error = raised
                if again or not isinstance(error, ReplicaLost) or not self.retries.take():
                    break
                self.notice(spec.name, "retried")
            self._judge(attempt, spec, request, error, self.clock() - started, most)
        _tell(spec.name, error, request)
        return error

    def _judge(
        self,
        attempt: Attempt,
        spec: ExpertSpec,
        request: ChatRequest,
        error: MultimoeError,
        seconds: float,
        most: float,
    ) -> None:
        """What a failure after `seconds` says of an expert that had `most`: nothing, where it usually takes longer."""
        if isinstance(error, BadInput):
            attempt.succeeded()
        elif isinstance(error, ExpertTimeout):
            hurried = most < min(spec.timeout_s, self.breakers.patience(spec, request)) * 0.99
            if not (hurried and seconds >= most * 0.99):
                attempt.failed("did not answer in time")
        elif not isinstance(error, HARMLESS):
            attempt.failed("failed")  # how, is for those who asked: it may repeat their question

    def _late(self, spec: ExpertSpec, seconds: float) -> ExpertTimeout:
        return ExpertTimeout(f"expert {spec.name!r} did not answer within {seconds:.3g} s")


def _tell(name: str, error: MultimoeError, request: ChatRequest) -> None:
    logger.warning(
        "expert failed", extra={"expert": name, "error": unquoted(error.message, request), "request_id": request.id}
    )


def unquoted(message: str, request: ChatRequest) -> str:
    """What an expert says of its failure, up to where it repeats what it was asked: a log is no place for that."""
    texts = [part.text for said in request.messages for part in said.parts if isinstance(part, TextPart)]
    begins = [[char for char in text[:MOST_READ] if char.isalnum()][:REPEATED] for text in texts]
    found = [re.search(BETWEEN.join(begin), message) for begin in begins if len(begin) >= REPEATED // 2]
    at = min((one.start() for one in found if one), default=None)
    return message if at is None else f"{message[:at]}… (the question)"


async def _within(deltas: AsyncGenerator[Delta, None], first: float, most: float) -> AsyncGenerator[Delta, None]:
    """The same, or TimeoutError: `first` seconds to the first of them, `most` for all; and closed in any case."""
    now = asyncio.get_running_loop().time()
    deadline = now + first
    async with aclosing(deltas):
        while True:
            try:
                async with asyncio.timeout_at(deadline if deadline < math.inf else None):
                    delta = await anext(deltas)
            except StopAsyncIteration:
                return
            deadline = now + most
            yield delta
