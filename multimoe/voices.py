"""Several experts speak at once and are heard one after the other: who waits for his turn loses no word."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

Words = AsyncGenerator[str, None]


class Voice:
    """One expert that is heard while another still speaks: its pieces wait for their turn."""

    def __init__(self, pieces: Words, name: str) -> None:
        self.name = name
        self.begun = asyncio.Event()
        self._waiting: asyncio.Queue[str | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._listen(pieces))

    async def words(self) -> Words:
        while (piece := await self._waiting.get()) is not None:
            yield piece
        await self._task  # raises what ended it

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self, pieces: Words) -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self._waiting.put_nowait(piece)
                    self.begun.set()
        finally:
            self._waiting.put_nowait(None)
            self.begun.set()


async def by_first_word(voices: Sequence[Voice]) -> AsyncGenerator[Voice, None]:
    """Each once, as soon as it has begun; of several that have, the first in order."""
    left = list(voices)
    while left:
        begun = [asyncio.create_task(voice.begun.wait()) for voice in left]
        try:
            await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in begun:
                task.cancel()
        voice = next(voice for voice in left if voice.begun.is_set())
        left.remove(voice)
        yield voice
