"""Counts what keys ask for, together with the other gateways: who comes while the store is busy shares the next look.

While the store is away each gateway counts by itself, from what it knew last and against the whole limit: so many times
a key's requests may get through as there are gateways, and no more. What was used meanwhile is handed in later.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gateway.access.quota import Allowance, Spent, Standing, admit, heartbeat, settle, stand
from multimoe.errors import MultimoeError
from multimoe.feedback.counters import Counters, Windows

logger = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds that requests wait for the store; on a busy machine it is slow and yet the only one that knows
AWAY = 2.0  # seconds after a failure before the store is asked again
SURE = 1.0  # seconds for which a refusal is repeated without asking: nobody's count falls, but limits are changed
BEAT = 10.0  # seconds between words that what is under way still is


@dataclass(frozen=True)
class Entry:
    """One line of a batch: somebody asks (`asks`), looks, or is done and hands in what was `spent`."""

    who: str
    allowed: Allowance
    asks: bool = False
    spent: Spent = field(default_factory=Spent)
    told: asyncio.Future[Standing] | None = None


@dataclass(frozen=True)
class Refusal:
    until: float
    allowed: Allowance
    standing: Standing


class Meter:
    """Of one event loop; every gateway has its own, under a name of its own."""

    def __init__(
        self,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = secrets.token_hex(4)
        self._counters = counters
        self._clock = clock
        self._now = now
        self._under_way: Counter[str] = Counter()
        self._allowed: dict[str, Allowance] = {}  # of those who have something under way
        self._waiting: list[Entry] = []
        self._writer: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._again = float("-inf")  # when the store is asked next, after a failure
        self._known: Windows = {}
        self._owed: list[Entry] = []
        self._refused: dict[str, Refusal] = {}

    async def admit(self, who: str, allowed: Allowance) -> Standing:
        """How `who` stands; unless refused, the request counts, and is under way until `settle`."""
        if (held := self._refused.get(who)) and self._clock() < held.until and held.allowed == allowed:
            return held.standing
        told: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self._put(Entry(who, allowed, asks=True, told=told))
        try:
            standing = await told
        except asyncio.CancelledError:  # whoever hangs up has nothing under way
            if told.done() and not told.cancelled() and not told.result().refused:
                self.settle(who, allowed, Spent())
            raise
        if standing.refused and standing.refused != "concurrent_requests":
            self._refused[who] = Refusal(self._clock() + min(SURE, standing.wait), allowed, standing)
        else:
            self._refused.pop(who, None)
        return standing

    def settle(self, who: str, allowed: Allowance, spent: Spent) -> None:
        """One request of `who` is over. It is counted soon; nobody waits for it."""
        self._under_way[who] -= 1
        if self._under_way[who] <= 0:
            del self._under_way[who]
            self._allowed.pop(who, None)
        if spent.tokens or spent.cost or "concurrent_requests" in allowed:
            self._put(Entry(who, allowed, spent=spent))

    async def standing(self, who: str, allowed: Allowance) -> Standing:
        """How `who` stands; nothing is counted."""
        told: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self._put(Entry(who, allowed, told=told))
        return await told

    def close(self) -> None:
        for task in (self._writer, self._beating):
            if task is not None:
                task.cancel()
        self._counters.close()

    def _put(self, entry: Entry) -> None:
        self._waiting.append(entry)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting, []
            try:
                standings = await self._count(together)
            except Exception as error:  # a bug here must not leave everybody waiting
                logger.exception("requests could not be counted")
                for entry in together:
                    if entry.told is not None and not entry.told.done():
                        entry.told.set_exception(error)
                continue
            for entry, standing in zip(together, standings, strict=True):
                self._tell(entry, standing)

    def _tell(self, entry: Entry, standing: Standing) -> None:
        if entry.told is None or entry.told.done():  # whoever has hung up meanwhile has nothing under way
            return
        if entry.asks and not standing.refused:
            self._under_way[entry.who] += 1
            self._allowed[entry.who] = entry.allowed
            if self._beating is None or self._beating.done():
                self._beating = asyncio.create_task(self._beat())
        entry.told.set_result(standing)

    async def _count(self, together: Sequence[Entry]) -> list[Standing]:
        """In the store; where that is away, by what is known here."""
        entries, under_way = [*self._owed, *together], Counter(self._under_way)

        def change(windows: Windows, now: float) -> tuple[list[Standing], Windows]:
            return [_enter(entry, windows, now, self.name, under_way) for entry in entries], dict(windows)

        if self._clock() >= self._again:
            whose = {entry.who for entry in entries}
            try:
                async with asyncio.timeout(PATIENCE):
                    standings, windows = await asyncio.to_thread(self._counters.update, whose, change)
            except (MultimoeError, TimeoutError) as error:
                self._again = self._clock() + AWAY
                logger.warning("what keys use is counted here alone", extra={"error": str(error)})
            else:
                self._know(whose, windows)
                standings, self._owed = standings[len(self._owed) :], []
                return standings
        under_way = Counter(self._under_way)
        standings = [_enter(entry, self._known, self._now(), self.name, under_way) for entry in together]
        self._owe(together)
        return standings

    def _know(self, whose: set[str], windows: Windows) -> None:
        self._known = {name: window for name, window in self._known.items() if name[0] not in whose} | windows

    def _owe(self, together: Sequence[Entry]) -> None:
        """What was spent while the store is away, a line for each key."""
        owed = {entry.who: entry for entry in self._owed}
        for entry in together:
            if entry.spent.tokens or entry.spent.cost:
                before = owed[entry.who].spent if entry.who in owed else Spent()
                spent = Spent(before.tokens + entry.spent.tokens, before.cost + entry.spent.cost)
                owed[entry.who] = replace(entry, spent=spent)
        self._owed = list(owed.values())

    async def _beat(self) -> None:
        while self._under_way:
            await asyncio.sleep(BEAT)
            for who, allowed in list(self._allowed.items()):
                if "concurrent_requests" in allowed:
                    self._put(Entry(who, allowed))


def _enter(entry: Entry, windows: Windows, now: float, gateway: str, under_way: Counter[str]) -> Standing:
    if not entry.asks:
        settle(windows, now, entry.who, entry.spent)
        heartbeat(windows, now, entry.who, gateway, under_way[entry.who])
        return stand(windows, now, entry.who, entry.allowed)
    standing = admit(windows, now, entry.who, entry.allowed, gateway, under_way[entry.who])
    under_way[entry.who] += not standing.refused
    return standing
