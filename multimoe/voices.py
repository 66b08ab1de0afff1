"""Several experts speak at once and are heard one after the other: who waits for his turn loses no word."""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

Words = AsyncGenerator[str, None]


class Voice:
    """One expert that is heard while another still speaks: its pieces wait for their turn.

    It has `begun` once it `spoke`, or has ended.
    """

    def __init__(self, pieces: Words, name: str) -> None:
        self.name = name
        self.begun = asyncio.Event()
        self.spoke = False
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
                    self.spoke = self.spoke or bool(piece)
                    self.begun.set()
        finally:
            self._waiting.put_nowait(None)
            self.begun.set()


async def first_begun(voices: Sequence[Voice], seconds: float = math.inf) -> Voice | None:
    """The first that begins; of several that have, the first in order. None where none does in so many seconds."""
    begun = [asyncio.create_task(voice.begun.wait()) for voice in voices]
    try:
        most = None if math.isinf(seconds) else seconds
        await asyncio.wait(begun, timeout=most, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in begun:
            task.cancel()
    return next((voice for voice in voices if voice.begun.is_set()), None)


async def by_first_word(voices: Sequence[Voice]) -> AsyncGenerator[Voice, None]:
    """Each once, as soon as it has begun; of several that have, the first in order."""
    left = list(voices)
    while left:
        if voice := await first_begun(left):
            left.remove(voice)
            yield voice
