"""Failover and hedging: the next best answers in place of who failed and, within a budget, of who is slow.

The second is what J. Dean and L. A. Barroso, "The Tail at Scale", CACM 56 (2013), call a hedged request.
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from multimoe.asking import Asker
from multimoe.run import Run
from multimoe.voices import Voice, Words, first_begun


class Ask(Protocol):
    def __call__(self, names: Sequence[str], others: bool, resort: bool) -> Words:
        """What these experts say when they are asked together: words, or "" where they find something else.

        `others` says whether somebody could still answer after them; `resort`, that nobody else did.
        """


@dataclass(frozen=True)
class Turn:
    names: Sequence[str]
    voice: Voice
    began: float


async def first_to_come(run: Run, asker: Asker, groups: Sequence[Sequence[str]], ask: Ask) -> Words:
    """The words of the first group that speaks or comes through; who is passed over has a turn when all others had.

    The next is asked once one has failed, or is slow and the budget has a hedge for it; who is not heard then is
    stopped. Raises what broke off an answer of which some words are out.
    """
    everybody = [name for group in groups for name in group]
    for resort in (False, True):
        left = [[name] for name in run.passed_over(everybody)] if resort else [run.unasked(group) for group in groups]
        async with aclosing(_relay(run, asker, [names for names in left if names], ask, resort)) as words:
            async for word in words:
                yield word
        if _came(run, everybody):
            return


async def _relay(run: Run, asker: Asker, groups: Sequence[Sequence[str]], ask: Ask, resort: bool) -> Words:
    left, turns = deque(groups), list[Turn]()
    asker.hedges.earn()
    try:
        while left or turns:
            if left:
                names = left.popleft()
                turns.append(Turn(names, Voice(ask(names, bool(left), resort), names[0]), run.clock()))
            turn = await _next_to_begin(run, asker, turns, hedge=bool(left))
            if turn is None:
                continue
            if turn.voice.spoke or _came(run, turn.names):
                await _stop(run, asker, [other for other in turns if other is not turn])
            async with aclosing(turn.voice.words()) as words:
                async for word in words:
                    yield word
            if _came(run, turn.names):
                return
            if turn.voice.spoke:
                raise run.failure(turn.names[0])
            turns.remove(turn)
    finally:
        await asyncio.gather(*(turn.voice.stop() for turn in turns))


async def _next_to_begin(run: Run, asker: Asker, turns: Sequence[Turn], hedge: bool) -> Turn | None:
    """Who speaks, comes through or fails first; None where the last who was asked is slow and the next is to be."""
    names = turns[-1].names
    voices = [turn.voice for turn in turns]
    voice = await first_begun(voices, asker.slow_after(run, names) if hedge else math.inf)
    if voice is None:
        if asker.may_hedge(run, names):
            return None
        voice = await first_begun(voices)
    return next(turn for turn in turns if turn.voice is voice)


async def _stop(run: Run, asker: Asker, turns: Sequence[Turn]) -> None:
    """Nobody hears these; what one of them has found in the same instant is no part of the answer."""
    for turn in turns:
        await turn.voice.stop()
        asker.give_up(run, turn.names, "answer", turn.began)
        if came := [name for name in turn.names if run.came(name)]:
            run.recast("aside", *came)


def _came(run: Run, names: Sequence[str]) -> bool:
    return any(run.came(name) for name in names)
