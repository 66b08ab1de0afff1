"""Strange hosts for tests of fetching: servers that answer as told, a canary nobody may reach, names that lie.

All on this machine: 127.0.0.1 stands for the internet (tests allow it as a network), 127.0.0.2 for what is private.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import httpcore2

from gateway.reading.addresses import plain
from gateway.reading.fetch import Fetcher
from multimoe.config import MediaSpec

OUTSIDE, INSIDE = "127.0.0.1", "127.0.0.2"
NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts no certificate; reading the machine's takes long
NEVER = 30.0  # seconds; longer than any deadline here

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def reply(
    body: bytes = b"", status: int = 200, headers: Mapping[str, str] | None = None, length: int | None = None
) -> Answer:
    """`length` is what the header claims, where that is not the truth."""
    said = {"content-length": str(len(body) if length is None else length), **(headers or {})}
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in said.items()) + "\r\n"

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode("latin-1") + body)

    return answer


def to(location: str, status: int = 302) -> Answer:
    return reply(status=status, headers={"location": location})


def dripping(start: bytes, drop: bytes = b"x", every: float = 0.05) -> Answer:
    """`start` at once, then `drop` for ever."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            await writer.drain()
            writer.write(drop)
            await asyncio.sleep(every)

    return answer


@dataclass
class Host:
    """Answers GET by path, and counts: every connection that was opened, every path asked for, the most at one time."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    connections: int = 0
    open: int = 0
    most_open: int = 0
    paths: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    port: int = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ")[1]
            self.paths.append(path)
            self.heads.append(head)
            await unless_gone(reader, self.answers.get(path, self.answers.get("*", reply(status=404)))(writer))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def unless_gone(reader: asyncio.StreamReader, answering: Awaitable[None]) -> None:
    """As far as the other side listens."""
    tasks = asyncio.ensure_future(answering), asyncio.ensure_future(reader.read())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def up(host: Host, address: str, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    """`host` listening at `address`; what it is still saying is cut at the end."""
    talks: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(host.talk(reader, writer))
        talks.add(task)
        task.add_done_callback(talks.discard)
        task.add_done_callback(lambda _: writer.close())  # one that is cancelled before it begins closes nothing

    server = await asyncio.start_server(begin, address, port, ssl=tls)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await asyncio.sleep(0.01)  # until what was closed is


@dataclass
class Names:
    """A resolver whose every answer is given: the next of a list of answers each time, the last one for ever."""

    answers: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    delay: float = 0.0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        await asyncio.sleep(self.delay)
        answers = self.answers.get(host, self.answers.get("*", ()))
        if not answers:
            raise OSError("no such name")
        return answers[min(self.asked.count(host), len(answers)) - 1]


class Network(httpcore2.AnyIOBackend):
    """The real network of this machine alone, with a record of every address connected to and every byte read."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.read = 0

    async def connect_tcp(self, host: str, port: int, *rest: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        self.tried.append(host)
        address = plain(ip_address(host))
        if not (address.is_loopback or address.is_unspecified):
            raise httpcore2.ConnectError("tests go nowhere else")
        return Counted(await super().connect_tcp(host, port, *rest, **options), self)


class Counted(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream, network: Network) -> None:
        self.stream, self.network = stream, network

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self.stream.read(max_bytes, timeout)
        self.network.read += len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def start_tls(self, *given: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        return Counted(await self.stream.start_tls(*given, **options), self.network)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class Unchecked(Fetcher):
    """The control: as ours, with no look at where a name leads. It must be caught."""

    def may_connect(self, address: Any) -> bool:
        return True


def spec(ports: Iterable[int], **changes: Any) -> MediaSpec:
    """Every host name, on what stands for the internet here."""
    told = {"domains": ["*"], "networks": [f"{OUTSIDE}/32"], "https_only": False, "ports": list(ports)}
    return MediaSpec.model_validate({**told, **changes})
