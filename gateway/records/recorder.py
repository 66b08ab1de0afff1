"""Answers on their way into the store: those that come while the disk is busy share the next commit.

A commit takes the disk's time, whatever is in it. One for each answer, one after the other, would hold a gateway to as
many answers a second as the disk can flush. And no answer waits for a store that is away: it goes out as one that
cannot be rated, and what it would have left there is kept here, as far as there is room, until the store is back.
"""

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from multimoe.errors import Unavailable
from multimoe.feedback import FeedbackLog, Interaction

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0  # that an answer waits for its record at most
AGAIN_SECONDS = 0.5  # until the next try at a store that is away
TOGETHER = 100  # records in one commit
ROOM_BYTES = 32 * 2**20  # of records that wait
FAREWELL_SECONDS = 2.0  # for those that still wait when the gateway stops
AWAY = "the store does not take records just now"


@dataclass(frozen=True, eq=False)
class Waiting:
    interaction: Interaction
    kept: asyncio.Future[None]
    size: int

    def tell(self, error: Exception | None = None) -> None:
        """Whoever has hung up, or was told before, is told nothing."""
        if self.kept.done():
            return
        if error is None:
            self.kept.set_result(None)
        else:
            self.kept.set_exception(error)
            self.kept.exception()  # nobody may be waiting any more


class Recorder:
    """Of one event loop. Its thread is its own: one that hangs in the store holds up nothing else."""

    def __init__(self, log: FeedbackLog, patience_s: float = PATIENCE_SECONDS, room: int = ROOM_BYTES) -> None:
        self._log = log
        self._patience_s = patience_s
        self._room = room
        self._waiting: deque[Waiting] = deque()
        self._size = 0
        self._away = False
        self._writer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "recorder")

    @property
    def away(self) -> bool:
        """Whether the store last did not take what it was given."""
        return self._away

    async def record(self, interaction: Interaction) -> None:
        """Returns when it is on disk; it also gets there when nobody waits any more.

        Raises Unavailable when that takes too long, and at once while the store is away: it gets there later, unless
        this process ends before or there is no room.
        """
        waiting = Waiting(interaction, asyncio.get_running_loop().create_future(), _size(interaction))
        if self._size + waiting.size > self._room:
            raise Unavailable(f"{AWAY}, and no more can wait", code="store_unavailable")
        self._waiting.append(waiting)
        self._size += waiting.size
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        if self._away:
            raise Unavailable(AWAY, code="store_unavailable")
        try:
            async with asyncio.timeout(self._patience_s):
                await asyncio.shield(waiting.kept)
        except TimeoutError as error:
            self._away = True
            raise Unavailable(AWAY, code="store_unavailable") from error

    async def close(self) -> None:
        """Lets those that wait get to the disk, if it takes them soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                while self._writer is not None and not self._writer.done():
                    await asyncio.wait([self._writer])
        if self._waiting:
            logger.error("answers were not recorded: the store is away", extra={"count": len(self._waiting)})
        if self._writer is not None:
            self._writer.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _write(self) -> None:
        while self._waiting:
            together = list(islice(self._waiting, TOGETHER))
            try:
                await self._commit(together)
            except Unavailable as error:
                self._away = True
                for one in together:
                    one.tell(error)
                await asyncio.sleep(AGAIN_SECONDS)
            except Exception:  # one of them cannot be kept: it must not take the others along
                await self._alone(together[0])
            else:
                self._away = False

    async def _alone(self, one: Waiting) -> None:
        try:
            await self._commit([one])
        except Unavailable:  # it stays first
            return
        except Exception as error:
            one.tell(error)
            self._gone([one])

    async def _commit(self, together: list[Waiting]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._log.record, *(one.interaction for one in together))
        for one in together:
            one.tell()
        self._gone(together)

    def _gone(self, together: list[Waiting]) -> None:
        for one in together:
            self._waiting.remove(one)
            self._size -= one.size


def _size(interaction: Interaction) -> int:
    """About how much memory it takes."""
    texts = (interaction.question, interaction.answer, *(outcome.text for outcome in interaction.outcomes))
    return 4096 + len(interaction.embedding or b"") + sum(len(text) for text in texts if text)
