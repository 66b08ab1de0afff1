"""Work that is good to do and can be left out: it takes at most its share of the time."""

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Done = TypeVar("Done")


class Share(Generic[Done]):
    """Of one event loop. After work that took t seconds there is none for t (1 / `share` - 1); `share` in (0, 1]."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.share = share
        self.clock = clock
        self._again = float("-inf")

    async def of(self, work: Callable[[], Awaitable[Done]]) -> Done | None:
        """What `work` gives; None, and nothing done, where it is not its turn. Raises what `work` raises."""
        began = self.clock()
        if began < self._again:
            return None
        self._again = float("inf")  # one at a time
        try:
            return await work()
        finally:
            now = self.clock()
            self._again = now + (now - began) * (1 / self.share - 1)
