"""How much a gateway takes on: so many requests under way, a short queue of others, and a quick no to the rest.

How many under way is learned. A kind of request takes so long where hardly anything else is going on; while answers
take more than `stretch` times as long, fewer are let in, and more while they do not and somebody waits. So a gateway
finds its own limit, whatever stands behind it, and follows when experts are added or slow down (as TCP Vegas and
Netflix's concurrency limits do).

The queue is as long as what can be begun in time, at the pace at which those under way come to their end. `patience`
is `wait_seconds` for a burst, and a tenth of it once the queue has not been empty for that long, so that a standing
queue does not make everybody late (as CoDel and Facebook's "Fail at Scale" do). Who would wait longer is refused at
once. Those who wait take turns, key by key, and where there is no room for somebody who has less waiting than another,
the other's newest makes room. It knows no HTTP.
"""

import asyncio
import math
import random
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from multimoe.errors import Unavailable

FIRST, LEAST, MOST = 8.0, 4.0, 256.0  # under way: to begin with, and at least and at most
CALM = 2  # under way when one began whose time says how long it takes
CROWDED = 0.75  # share of the limit under way when one began whose time says whether the limit is right
MOST_WAITING = 256
MOST_KINDS = 256  # of those last seen
LATELY = 16  # requests that say what is asked for now
LEARNING = 0.1  # share by which the newest of many moves an estimate
LONGEST_RETRY = 20.0  # seconds


@dataclass(eq=False)
class Waiting:
    who: str
    turn: asyncio.Future[None]

    @property
    def called(self) -> bool:
        return self.turn.done() and not self.turn.cancelled() and self.turn.exception() is None


@dataclass
class Turn:
    """One request under way. `kind` is set once it is known, `late` where the experts had no room or time for it."""

    began: float
    calm: bool
    crowded: bool
    kind: str = ""
    late: bool = False
    counts: bool = True  # False where it ended early, which says nothing of how long it takes
    paused: float = 0.0  # seconds in which nobody but the client kept it


class Overloaded(Unavailable):
    """`retry_after` in whole seconds, by chance, so that not all come back at once."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type["Overloaded"], tuple[str, int]]:
        return Overloaded, (self.message, self.retry_after)


@dataclass
class Kinds:
    """How long each kind of request takes where hardly anything else is going on."""

    seconds: OrderedDict[str, float] = field(default_factory=OrderedDict)
    lately: deque[float] = field(default_factory=lambda: deque(maxlen=LATELY))  # of those that ended

    def learn(self, kind: str, seconds: float) -> None:
        before = self.seconds.pop(kind, seconds)
        self.seconds[kind] = before + LEARNING * (seconds - before)
        if len(self.seconds) > MOST_KINDS:
            self.seconds.popitem(last=False)

    def asked(self, kind: str) -> None:
        if kind in self.seconds:
            self.lately.append(self.seconds[kind])

    def usual(self) -> float:
        """Of what was asked for lately; infinite where nobody knows."""
        return statistics.median(self.lately) if self.lately else math.inf

    def stretch(self, kind: str, seconds: float) -> float | None:
        """How many times that; None for a kind never seen."""
        usual = self.seconds.get(kind)
        return None if usual is None else seconds / max(usual, 1e-3)


class Pace:
    """How often one comes to its end while others wait. Times in seconds, by the clock of whoever asks."""

    def __init__(self) -> None:
        self.before = math.inf  # from one ending to the next when others last waited
        self.lasts = False  # whether it is that crowd still, or who comes back to try again
        self._since: float | None = None  # others wait, or the last ending that is forgotten
        self._endings: deque[float] = deque()

    def start(self, now: float) -> None:
        """Others wait from now on."""
        self._since = now

    def ended(self, now: float, lately: float) -> None:
        """One came to its end; of those before, not more than `lately` count."""
        if self._since is not None:
            self._endings.append(now)
            if len(self._endings) > max(LEAST, lately):
                self._since = self._endings.popleft()

    def stop(self, now: float) -> None:
        """Nobody waits any longer."""
        if self._since is None:
            return
        seconds = self._measured(now)
        self.before, self.lasts = seconds or self.before, seconds is not None  # if it was over too soon, it is another
        self._since = None
        self._endings.clear()

    def seconds(self, now: float) -> float | None:
        """From one ending to the next; None where nobody knows."""
        measured = self._measured(now)
        return self.before if measured is None and self.lasts else measured

    def _measured(self, now: float) -> float | None:
        if self._since is None or len(self._endings) < LEAST:
            return None
        return (now - self._since) / len(self._endings)


class Admission:
    """Of one event loop."""

    def __init__(
        self,
        stretch: float,
        wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self.stretch = stretch
        self.wait_seconds = wait_seconds
        self.clock = clock
        self.chance = chance or random.Random()  # noqa: S311  # spreads retries, guards nothing
        self.limit = FIRST
        self.under_way = 0
        self.waiting = 0
        self.kinds = Kinds()
        self._queues: OrderedDict[str, deque[Waiting]] = OrderedDict()  # whose turn is next stands first
        self._empty = self.clock()  # when the queue was last empty
        self._stretches: list[float] = []  # of this round
        self._full = False  # whether somebody waited, or nearly, in this round
        self._pace = Pace()
        self._quiet = self.clock()  # when the last one under way came to its end
        self._refused = 0.0  # for each one that came to its end, lately

    @property
    def patience(self) -> float:
        """Seconds that somebody who comes now may wait."""
        standing = self.waiting > 0 and self.clock() - self._empty > self.wait_seconds
        return self.wait_seconds / 10 if standing else self.wait_seconds

    def check(self, who: str) -> None:
        """Raises Overloaded where `who` would be refused now; before its body is read."""
        if not self._has_room() and self._gives_way_to(who) is None:
            self._full = True
            raise self._overloaded()

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncGenerator[Turn, None]:
        """Waits for the turn of `who`. Raises Overloaded at once, or later where others were slower than usual."""
        await self._wait(who)
        turn = Turn(self.clock(), self.under_way <= CALM, self.under_way >= CROWDED * self.limit)
        try:
            yield turn
        except BaseException:
            turn.counts = False
            raise
        finally:
            self._end(turn)

    async def _wait(self, who: str) -> None:
        if not self.waiting and self.under_way < int(self.limit):
            self._enter()
            return
        self._full = True
        if not self._has_room():
            if (other := self._gives_way_to(who)) is None:
                raise self._overloaded()
            self._drop(other)
        if not self.waiting:
            self._empty = self.clock()
            self._pace.start(self._empty)
        mine = Waiting(who, asyncio.get_running_loop().create_future())
        self._queues.setdefault(who, deque()).append(mine)
        self.waiting += 1
        await self._called(mine)

    def _enter(self) -> None:
        if not self.under_way and self.clock() - self._quiet > 2 * self.wait_seconds:
            self._pace.lasts = False
        self.under_way += 1
        self._empty = self.clock()

    async def _called(self, mine: Waiting) -> None:
        try:
            async with asyncio.timeout(2 * self.wait_seconds):
                await mine.turn
        except TimeoutError:
            self._give_up(mine)
            raise self._overloaded() from None
        except asyncio.CancelledError:
            self._give_up(mine)
            raise

    def _give_up(self, mine: Waiting) -> None:
        if mine.called:  # at the same moment
            self.under_way -= 1
            self._call()
        else:
            self._forget(mine)

    def _call(self) -> None:
        """Gives free places to those who wait, one from each in turn."""
        while self.waiting and self.under_way < int(self.limit):
            who, queue = self._queues.popitem(last=False)
            mine = queue.popleft()
            if queue:
                self._queues[who] = queue  # behind the others
            self.waiting -= 1
            if not mine.turn.done():
                self.under_way += 1
                mine.turn.set_result(None)
        self._see_if_empty()

    def _see_if_empty(self) -> None:
        if not self.waiting:
            self._empty = self.clock()
            self._pace.stop(self._empty)

    def _end(self, turn: Turn) -> None:
        self._quiet = now = self.clock()
        self.under_way -= 1
        self._refused *= 1 - LEARNING
        self._pace.ended(now, self.limit)
        if turn.counts:
            self._learn(turn, max(0.0, now - turn.began - turn.paused))
        self._call()

    def _learn(self, turn: Turn, seconds: float) -> None:
        if turn.late:
            self._stretches.append(2 * self.stretch)
        else:
            # at its least the limit may be wrong about how long things take: then it learns that anew
            if turn.calm or self.limit <= LEAST:
                self.kinds.learn(turn.kind, seconds)
            self.kinds.asked(turn.kind)
            stretch = self.kinds.stretch(turn.kind, seconds)
            if stretch is not None and (turn.crowded or stretch > self.stretch):
                self._stretches.append(stretch)
        if len(self._stretches) >= max(LEAST, self.limit):
            self._adapt(sum(self._stretches) / len(self._stretches))
            self._stretches, self._full = [], self.waiting > 0

    def _adapt(self, stretch: float) -> None:
        if stretch > self.stretch:
            self.limit = max(LEAST, self.limit * max(0.5, self.stretch / stretch))
        elif self._full:
            self.limit = min(MOST, self.limit + max(1.0, self.limit / 10))

    def _has_room(self) -> bool:
        """Whether whoever comes now will have their turn in time, as far as that is known.

        While nobody knows the pace, half as many may wait as are under way; or more, where the last crowd was so quick,
        or each is even if it takes `stretch` times as long as alone: of `limit` under way one ends every
        `seconds / limit` (Little's law).
        """
        if not self.waiting:
            return True  # one may always wait: a place that falls free has to find somebody
        if self.waiting >= min(MOST_WAITING, 4 * self.limit):
            return False
        pace = self._pace.seconds(self.clock())
        if pace is None:
            if self.waiting < self.limit / 2:
                return True
            pace = min(self._pace.before, self.stretch * self.kinds.usual() / self.limit)
        return (self.waiting + 1) * pace <= self.patience

    def _gives_way_to(self, who: str) -> str | None:
        """Who has more waiting than `who` would have."""
        mine = len(self._queues.get(who, ()))
        most = max(self._queues, key=lambda other: len(self._queues[other]), default=None)
        return most if most is not None and len(self._queues[most]) > mine + 1 else None

    def _drop(self, who: str) -> None:
        mine = self._queues[who][-1]
        self._forget(mine)
        if not mine.turn.done():
            mine.turn.set_exception(self._overloaded())

    def _forget(self, mine: Waiting) -> None:
        queue = self._queues.get(mine.who)
        if queue is None or mine not in queue:
            return
        queue.remove(mine)
        self.waiting -= 1
        if not queue:
            del self._queues[mine.who]
        self._see_if_empty()

    def _overloaded(self) -> Overloaded:
        """The longer the more are refused for each that is served."""
        self._refused += LEARNING
        spread = min(LONGEST_RETRY, 2 + 2 * self._refused)
        later = math.ceil(self.chance.uniform(1, spread))
        return Overloaded(f"more is asked than can be answered in time; try again in {later} s", later)
