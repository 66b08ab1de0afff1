"""The store's own threads: one that hangs holds up nobody but those who ask for it, and those only for a moment.

A thread that waits for a database which does not answer cannot be ended. So there are few of them, whoever waits is
told in time, and when all hang the next is told at once. It knows nothing of the store but that it blocks.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from multimoe.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
QUEUE = 32  # that may wait for a thread
SECONDS = 1.8  # after which whoever asked is told; a little longer than the store waits for a lock
COUNTING_SECONDS = 20.0  # what counting everything in a large store may take
LATE = "the store does not answer in time; try again in a few seconds"


class Bulkhead:
    """Awaitable calls of functions that block."""

    def __init__(self, seconds: float = SECONDS, threads: int = THREADS) -> None:
        self._seconds = seconds
        self._room = threads + QUEUE
        self._pool = ThreadPoolExecutor(threads, "store")
        self._busy = 0
        self._counting = threading.Lock()

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.within(self._seconds, work, *args, **kwargs)

    async def within(self, seconds: float, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises. Raises Unavailable when it takes longer: what had not begun then never does,
        what had may still come to its end.
        """
        if self._busy >= self._room:
            raise Unavailable(LATE, code="store_unavailable")
        with self._counting:
            self._busy += 1
        running = self._pool.submit(work, *args, **kwargs)
        running.add_done_callback(self._left)
        wrapped = asyncio.wrap_future(running)
        try:
            async with asyncio.timeout(seconds):
                return await wrapped
        except TimeoutError as error:
            raise Unavailable(LATE, code="store_unavailable") from error

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _left(self, _: object) -> None:
        with self._counting:
            self._busy -= 1
