"""Bodies on their way in, before their request waits for its turn: each within its time, few enough for the memory.

Who sends slowly keeps nobody else's place: reading takes none of the places under way, and where all places for reading
or all memory is taken, those who have been at it longest have to go. Nobody has more than a share of the memory, and a
little of it is for small bodies alone. It knows ASGI.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from multimoe.errors import MultimoeError, Unavailable

MOST_READING = 256
A_WHILE = 1.0  # seconds; who has been sending for less is not sent away for somebody else
MEMORY = 10  # bodies of full size, of requests that are read, wait or are under way
SHARE = 1 / 2  # of the memory, for each caller
SMALL_BYTES = 256 * 2**10  # a body of at most that many
RESERVE = 1 / 20  # of the memory, for small bodies


class TooSlow(MultimoeError):
    code = "request_timeout"


@dataclass
class Body:
    """What has been read of `who`, and is kept until the request is over."""

    who: str
    data: bytes = b""
    held: int = 0
    gone: bool = False  # sent away for somebody else

    def replay(self, receive: Receive) -> Receive:
        """The whole body at once, then whatever else the client says."""
        told = False

        async def replayed() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            data, self.data = self.data, b""
            return {"type": "http.request", "body": data, "more_body": False}

        return replayed


@dataclass
class Reading:
    began: float
    allowed: asyncio.Timeout
    body: Body


class Intake:
    """Of one event loop. `seconds` for one body, which has at most `body_bytes`."""

    def __init__(self, seconds: float, body_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.most_bytes = MEMORY * body_bytes
        self.clock = clock
        self.held = 0
        self._shares: Counter[str] = Counter()  # of what is held, by caller
        self._reading: OrderedDict[int, Reading] = OrderedDict()  # the longest at it stands first
        self._next = 0

    @asynccontextmanager
    async def body(self, receive: Receive, announced: int, who: str = "") -> AsyncGenerator[Body, None]:
        """What `who` sends, known to be `announced` bytes long or else 0; it counts as held until the block is left.

        Raises TooSlow, ClientDisconnect, and Unavailable where there is no room.
        """
        body = Body(who)
        self._make_room(body, announced)
        self._make_place()
        try:
            await self._read(body, receive)
            yield body
        finally:
            self._let_go(body)

    async def _read(self, body: Body, receive: Receive) -> None:
        chunks, me = [], self._next
        self._next += 1
        try:
            async with asyncio.timeout(self.seconds) as allowed:
                self._reading[me] = Reading(self.clock(), allowed, body)
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunk = message.get("body", b"")
                    self._hold(body, len(chunk))
                    chunks.append(chunk)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise TooSlow(f"the body was not there after {self.seconds:g} s, or too slow; send it faster") from error
        finally:
            self._reading.pop(me, None)
        body.data = chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _hold(self, body: Body, size: int) -> None:
        if body.gone:
            raise TimeoutError
        self._make_room(body, size)
        self.held += size
        body.held += size
        self._shares[body.who] += size

    def _let_go(self, body: Body) -> None:
        self.held -= body.held
        self._shares[body.who] -= body.held
        if self._shares[body.who] <= 0:
            del self._shares[body.who]
        body.held = 0

    def _make_room(self, body: Body, size: int) -> None:
        """For so many bytes more of it. Whoever has to go for it has been at it for a while."""
        small = body.held + size <= SMALL_BYTES
        over_share = self._shares[body.who] + size - SHARE * self.most_bytes
        over = self.held + size - (1.0 if small else 1 - RESERVE) * self.most_bytes
        if over <= 0 and over_share <= 0:
            return
        longest = []
        for me, other in self._reading.items():
            if other.body is body or self._at_it(other) < A_WHILE:
                continue
            mine = other.body.who == body.who
            if over > 0 or (over_share > 0 and mine):
                over -= other.body.held
                over_share -= other.body.held if mine else 0
                longest.append(me)
        if over > 0 or over_share > 0:
            raise _full()  # and nobody is sent away for nothing
        for me in longest:
            self._send_away(me)

    def _make_place(self) -> None:
        if len(self._reading) < MOST_READING:
            return
        longest, reading = next(iter(self._reading.items()))
        if self._at_it(reading) < A_WHILE:
            raise _full()
        self._send_away(longest)

    def _at_it(self, reading: Reading) -> float:
        return self.clock() - reading.began

    def _send_away(self, me: int) -> None:
        reading = self._reading.pop(me)
        reading.body.gone = True
        self._let_go(reading.body)
        if not reading.allowed.expired():
            reading.allowed.reschedule(asyncio.get_running_loop().time())


def _full() -> Unavailable:
    return Unavailable("too much is being sent at once; try again in a few seconds")
