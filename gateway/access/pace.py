"""How often somebody may do something: so many a minute, as many at once. In memory, so each gateway counts its own."""

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_KNOWN = 10_000  # of those last seen; who is forgotten begins anew


class Pace:
    """Token buckets by name. Not for several threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, and when that was

    def wait(self, who: str, per_minute: float) -> float:
        """Seconds until `who` may; 0 when that is now, which counts."""
        now = self.now()
        left, then = self.buckets.pop(who, (per_minute, now))
        left = min(per_minute, left + (now - then) * per_minute / 60)
        waits = max(0.0, (1 - left) * 60 / per_minute)
        self.buckets[who] = (left if waits else left - 1, now)
        if len(self.buckets) > MOST_KNOWN:
            self.buckets.popitem(last=False)
        return waits
