"""How text experts write an answer: the best in its own words, one by vote, a new one from all, together, or each.

The run says which way and who is to be asked, and keeps what came of each.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

from multimoe.asking import Asker
from multimoe.blend import say
from multimoe.blend.texts import to_fuse, vote
from multimoe.errors import MultimoeError
from multimoe.failover import first_to_come
from multimoe.messages import ChatRequest
from multimoe.run import Candidate, Run
from multimoe.together import write_together
from multimoe.voices import Voice, Words, by_first_word
from multimoe.way import Way, vote_or_fuse

ASIDE_SECONDS = 0.2  # how long a finished answer waits for experts that ran beside it; one still asleep is skipped

Embed = Callable[[list[str]], Awaitable[list[list[float]]]]  # texts -> vectors of length 1


class Writing:
    """Writes answers from text experts, in the way that was asked for or, where that cannot be, the nearest to it."""

    def __init__(self, asker: Asker, embed: Embed) -> None:
        self.asker = asker
        self.embed = embed

    async def write(self, run: Run, request: ChatRequest) -> Words:
        """The answer in pieces, then how weak its evidence is. Raises what the last expert did, where all fail."""
        await self.asker.gather(run, run.cast.evidence_for(run.first_writers()), "evidence")
        names = [] if run.way.combine == "all" else run.unasked(run.cast.perceivers())
        aside = asyncio.create_task(self.asker.gather(run, names, "aside"))
        try:
            async with aclosing(await self._words(run, request)) as pieces:
                async for piece in pieces:
                    yield piece
            if run.words and (doubt := run.caveat()):
                yield f"\n\n{doubt}"
            await asyncio.wait([aside], timeout=ASIDE_SECONDS)
        finally:
            aside.cancel()
            await asyncio.gather(aside, return_exceptions=True)

    async def _words(self, run: Run, request: ChatRequest) -> Words:
        match run.way.combine:
            case "vote" | "fuse" | "auto":
                return await self._weighed(run, request)
            case "tokens":
                return self._together(run, request)
            case "all":
                return self._all(run, request)
        return self._best(run, request)

    async def _best(self, run: Run, request: ChatRequest) -> Words:
        """The best text expert's words; before its first another may step in, and last the evidence itself."""
        spoken = False
        async with aclosing(self.first_of(run, run.cast.writers(), request)) as pieces:
            async for piece in pieces:
                spoken = True
                yield piece
        if not spoken and not any(run.came(name) for name in run.cast.writers()):
            run.raise_if_silent()
            yield run.said()

    async def first_of(self, run: Run, names: Sequence[str], request: ChatRequest, from_evidence: bool = True) -> Words:
        """The words of the first of these that answers; those that keep failing are asked last.

        `from_evidence` has what they cannot read told to them in words. Raises what broke off an answer of which some
        words are out.
        """
        ask = partial(self._written, run, request, from_evidence)
        async with aclosing(first_to_come(run, self.asker, [[name] for name in names], ask)) as pieces:
            async for piece in pieces:
                yield piece

    async def _written(
        self, run: Run, request: ChatRequest, from_evidence: bool, names: Sequence[str], others: bool, resort: bool
    ) -> Words:
        (name,) = names
        if from_evidence:
            await self.asker.gather(run, run.unasked(run.cast.evidence_for(names)), "evidence")
            request = run.written_request(request, run.roster[name])
        wait = run.share(others or bool(run.outputs()))
        async with aclosing(self.asker.ask(run, name, "answer", request, wait, resort)) as pieces:
            async for piece in pieces:
                yield piece

    async def _weighed(self, run: Run, request: ChatRequest) -> Words:
        """All candidates, side by side; then the one that the others agree with most, or what is fused from them."""
        names = run.cast.candidates()
        await self.asker.side_by_side(run, "aside", {n: ([n], self._listen(run, n, request)) for n in names})
        candidates = run.texts()
        if len(candidates) < 2:
            run.way = Way("best", "fewer than two text experts answered")
            return _once(run.give(candidates[0])) if candidates else self._best(run, request)
        if run.way.combine == "fuse":
            return self._fused(run, request, candidates)
        elected = await self._elected(run, candidates)
        if run.way.combine == "auto" and run.agreement is not None:
            run.way = vote_or_fuse(run.spec, run.agreement)
            if run.way.combine == "fuse":
                return self._fused(run, request, candidates)
        return _once(run.give(elected))

    async def _elected(self, run: Run, candidates: Sequence[Candidate]) -> Candidate:
        """By vote; the weightiest where they cannot be compared."""
        try:
            vectors = await self.embed([candidate.text for candidate in candidates])
        except MultimoeError as error:
            run.way = Way("best", f"the texts could not be compared: {error}")
            return candidates[0]
        voted = vote([candidate.weight for candidate in candidates], vectors)
        run.agreement = voted.agreement
        return candidates[voted.winner]

    async def _fused(self, run: Run, request: ChatRequest, candidates: Sequence[Candidate]) -> Words:
        """What the fuser writes from the candidates; the weightiest of them where it writes nothing."""
        fuser = run.fuser(candidates)
        asked = to_fuse(run.written_request(request, fuser), [(c.weight, c.text) for c in candidates], fuser.inputs)
        run.recast("evidence", *(candidate.expert for candidate in candidates))
        spoken = False
        async with aclosing(self.asker.ask(run, fuser.name, "answer", asked, run.share(others=True))) as pieces:
            async for piece in pieces:
                spoken = True
                yield piece
        if spoken and not run.came(fuser.name):
            raise run.failure(fuser.name)
        if not spoken:
            run.way = Way("best", f"{fuser.name} wrote nothing from the candidates")
            run.recast("aside", *(candidate.expert for candidate in candidates))
            yield run.give(candidates[0])

    async def _together(self, run: Run, request: ChatRequest) -> Words:
        async with aclosing(write_together(run, request, self.asker)) as pieces:
            async for piece in pieces:
                yield piece
        if run.way.combine == "best":  # they could not, and nothing is written yet
            async with aclosing(self._best(run, request)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _all(self, run: Run, request: ChatRequest) -> Words:
        """Everybody's, under their names: first who speaks first, each then to its end."""
        said = [f"{name}: {say(part.output)}" for name, part in run.parts.items() if part.output is not None]
        for place, block in enumerate(said):
            yield "\n\n" * (place > 0) + block
        voices = [Voice(self._everything(run, name, request), name) for name in run.unasked(run.cast.by_weight())]
        try:
            async for voice in by_first_word(voices):
                opening = "\n\n" * bool(run.words) + f"{voice.name}: "
                async for piece in voice.words():
                    yield opening + piece
                    opening = ""
        finally:
            await asyncio.gather(*(voice.stop() for voice in voices))
        if not run.words:
            async with aclosing(self._best(run, request)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _everything(self, run: Run, name: str, request: ChatRequest) -> Words:
        """A text expert's words, or whatever else an expert found, in words."""
        wait = run.share(others=True)
        if run.roster[name].output == "text":
            asked = run.written_request(request, run.roster[name])
            async for piece in self.asker.ask(run, name, "answer", asked, wait):
                yield piece
            return
        await self.asker.listen(run, name, "answer", run.request, wait)
        if (found := run.parts[name].output) is not None:
            yield say(found)

    async def _listen(self, run: Run, name: str, request: ChatRequest) -> None:
        asked = run.written_request(request, run.roster[name])
        await self.asker.listen(run, name, "aside", asked, run.share(others=True))


async def _once(text: str) -> Words:
    yield text
