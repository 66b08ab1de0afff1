"""Several experts write one answer together, each token drawn from the mixture of what they would say next.

One that fails leaves its weight to the others, who go on.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import numpy as np

from multimoe.asking import Asker
from multimoe.blend.tokens import Words, mix_tokens, pick
from multimoe.config import ExpertSpec
from multimoe.errors import MultimoeError
from multimoe.expert import FinishReason, NextToken
from multimoe.messages import ChatRequest
from multimoe.outputs import Usage
from multimoe.run import Heard, Run
from multimoe.way import Way

Listed = NextToken | MultimoeError


@dataclass
class Member:
    """One who writes along: with what weight, what it is asked, and what it has read and taken so far."""

    spec: ExpertSpec
    weight: float
    request: ChatRequest
    seconds: float = 0.0
    read: int = 0

    async def next_tokens(self, run: Run, asker: Asker, written: Sequence[int]) -> Listed:
        began = asker.clock()
        listed = await asker.next_tokens(run, self.spec, self.request, tuple(written), run.spec.top_tokens)
        self.seconds += asker.clock() - began
        if isinstance(listed, NextToken):
            self.read = listed.prompt_tokens
        return listed

    def keep(self, run: Run, written: int, finish: FinishReason, error: MultimoeError | None = None) -> None:
        usage = Usage(prompt_tokens=self.read, completion_tokens=written)
        run.keep(self.spec.name, "answer", Heard(usage=usage, finish=finish), self.seconds, error)


async def write_together(run: Run, request: ChatRequest, asker: Asker) -> AsyncGenerator[str, None]:
    """The answer's text as it grows. Where they cannot write so, it yields nothing and turns the run to "best".

    Raises what the last of them did, where all fail and some words are out.
    """
    failing = {name: why for name in run.cast.team() if (why := asker.breakers.why_not(name))}
    for name, why in failing.items():
        run.pass_over(name, why)
    specs = [run.roster[name] for name in run.cast.team() if name not in failing]
    if not specs:
        run.way = Way("best", "those who could write together keep failing")
        return
    team = [Member(spec, run.cast.weights[spec.name], run.written_request(request, spec)) for spec in specs]
    words, generator = Words(request.stop), np.random.default_rng(request.seed)
    written: list[int] = []
    whole: list[str] = []
    finish: FinishReason = "length"
    while team and not words.stopped and len(written) < request.max_tokens:
        answers = await asyncio.gather(*(one.next_tokens(run, asker, written) for one in team))
        if not written and (why := _unable(answers)):
            run.way = Way("best", why)
            return
        listed = _of_those_left(run, team, answers, len(written))
        if not listed:
            if not run.whole:
                raise _first_failure(answers)
            run.way = Way("best", f"nobody could go on: {_first_failure(answers)}")
            return
        token = pick(mix_tokens(listed), request.temperature, request.top_p, generator)
        if token.ends:
            finish = "stop"
            break
        written.append(token.id)
        if said := words.add(token.piece):
            whole.append(said)
            if not run.whole:
                yield said
    if said := words.rest():
        whole.append(said)
        if not run.whole:
            yield said
    if run.whole and whole:
        yield "".join(whole)
    for one in team:
        one.keep(run, len(written), "stop" if words.stopped else finish)


def _first_failure(answers: Sequence[Listed]) -> MultimoeError:
    return next(answer for answer in answers if isinstance(answer, MultimoeError))


def _unable(answers: Sequence[Listed]) -> str:
    """Why these cannot write together; "" where they can."""
    listed = [answer for answer in answers if isinstance(answer, NextToken)]
    if not listed:
        return f"nobody could say what comes next: {answers[0]}"
    if len({answer.vocabulary for answer in listed}) > 1:
        return "their tokenizers differ, though the catalog gives them one name"
    return ""


def _of_those_left(
    run: Run, team: list[Member], answers: Sequence[Listed], written: int
) -> list[tuple[float, NextToken]]:
    """What each says, with its weight; who failed leaves the team, which is kept as its part."""
    listed = []
    for one, answer in zip(tuple(team), answers, strict=True):
        if isinstance(answer, NextToken):
            listed.append((one.weight, answer))
        else:
            team.remove(one)
            one.keep(run, written, "stop", answer)
    return listed
