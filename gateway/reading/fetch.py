"""The one place where an address in a request is fetched: only from hosts that the catalog allows.

Every hop of a redirect goes through the same door: the name is resolved once, all its addresses are checked, and one of
those is connected to. What goes wrong behind the door is told to the log alone, so that nobody learns by asking what
there is. It knows nothing of what a picture is.
"""

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from typing import Any

import httpcore2
import httpx2

from gateway.reading.addresses import Address, is_public, plain
from gateway.reading.decoding import Kind
from multimoe.config import HOST, MediaSpec
from multimoe.errors import BadInput, BadMedia, TooLarge, Unavailable

logger = logging.getLogger(__name__)

AT_ONCE = 4  # of one request's files
DNS_SECONDS = 5.0
CONNECT_SECONDS = 3.0  # for each address, TLS by itself
ADDRESSES = 2  # of a host that are tried
HEAD_BYTES = 2**16  # of headers, and of what else a server says before a file
LONGEST_URL = 8192  # signed ones are long
REDIRECTS = (301, 302, 303, 307, 308)
RETRYABLE = (408, 425, 429)
PORTS = {"https": 443, "http": 80}
NAME = re.compile(HOST)
HEADERS: dict[bytes | str, bytes | str] = {
    "accept": "*/*",
    "accept-encoding": "identity",
    "user-agent": "multimoe",
    "connection": "close",
}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True)
class Wanted:
    """A file of at most `limit` bytes; `param` is its path in the request."""

    url: str
    kind: Kind
    limit: int
    param: str


class NotAllowed(Exception):
    """An address that is not gone to. Whether a client learns why depends on whose address it is."""


class Fetcher:
    """As it is by default it fetches nothing.

    `resolve`, `tls` and `network` are how names, trust and connections are had; left out, the machine's own.
    """

    def __init__(
        self,
        spec: MediaSpec = MediaSpec(),  # noqa: B008  # frozen
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self.spec = spec
        self._resolve = resolve or Names()
        self._network = network or httpcore2.AnyIOBackend()
        self._given_tls = tls

    async def fetch(self, wanted: Sequence[Wanted], most: int) -> list[bytes]:
        """The files, in order; at most `most` bytes in all. One that cannot be had ends the rest.

        Raises BadInput "url_not_allowed" before anything is fetched, BadMedia for what cannot be had, TooLarge, and
        Unavailable for what may be had later.
        """
        urls = [self._asked_for(file) for file in wanted]
        largest = max((file.limit for file in wanted), default=0)
        budget, places = Budget(most), asyncio.Semaphore(AT_ONCE)
        async with self._pool(largest + HEAD_BYTES) as pool:
            tasks = [
                asyncio.create_task(self._file(pool, url, file, budget, places))
                for url, file in zip(urls, wanted, strict=True)
            ]
            try:
                async with asyncio.timeout(self.spec.fetch_seconds):
                    return await asyncio.gather(*tasks)
            except TimeoutError as error:
                late = next((file for file, task in zip(wanted, tasks, strict=True) if task.cancelled()), wanted[0])
                raise _later(late, "it took too long") from error
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def may_connect(self, address: Address) -> bool:
        return is_public(address) or any(plain(address) in network for network in self.spec.networks)

    def check(self, url: str) -> httpx2.URL:
        """The URL as it will be gone to. Raises NotAllowed. The parser that reads it here is the one that connects."""
        scheme = url[:64].split(":", 1)[0].lower()
        if scheme not in PORTS or not self.spec.domains:
            raise NotAllowed(f"{scheme!r} addresses are not fetched here")
        if scheme == "http" and self.spec.https_only:
            raise NotAllowed("only https addresses are fetched here")
        try:
            parsed = httpx2.URL(url) if len(url) <= LONGEST_URL and "\\" not in url else None
        except (httpx2.InvalidURL, ValueError):
            parsed = None
        if parsed is None or not NAME.fullmatch(parsed.raw_host.decode()):
            raise NotAllowed("the address is not one of a host by its name")
        if parsed.userinfo:
            raise NotAllowed("addresses with a user or password are not fetched here")
        if not any(_covers(domain, parsed.raw_host.decode()) for domain in self.spec.domains):
            raise NotAllowed(f"nothing is fetched from {parsed.raw_host.decode()[:100]!r} here")
        if _port(parsed) not in self.spec.ports:
            raise NotAllowed(f"nothing is fetched from port {_port(parsed)} here")
        return parsed

    def _asked_for(self, file: Wanted) -> httpx2.URL:
        try:
            return self.check(file.url)
        except NotAllowed as error:
            message = f"{error}; send the file itself as data:{file.kind}/...;base64,..."
            raise BadInput(message, file.param, "url_not_allowed") from error

    async def _file(
        self,
        pool: httpcore2.AsyncConnectionPool,
        url: httpx2.URL,
        file: Wanted,
        budget: "Budget",
        places: asyncio.Semaphore,
    ) -> bytes:
        async with places:
            try:
                return await self._followed(pool, url, file, budget)
            except httpcore2.TimeoutException as error:
                raise _later(file, type(error).__name__) from error
            except (NotAllowed, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
                raise _refused(file, str(error) or type(error).__name__) from error

    async def _followed(
        self, pool: httpcore2.AsyncConnectionPool, url: httpx2.URL, file: Wanted, budget: "Budget"
    ) -> bytes:
        for _ in range(self.spec.redirects + 1):
            place = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
            timeouts = {"timeout": {"connect": CONNECT_SECONDS}}  # the whole has a time of its own
            async with pool.stream("GET", place, headers=HEADERS, extensions=timeouts) as response:
                headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
                if response.status not in REDIRECTS:
                    return await _body(response, headers, file, budget)
            url = self._next(url, headers.get(b"location", ""))
        raise NotAllowed(f"more than {self.spec.redirects} redirects")

    def _next(self, url: httpx2.URL, location: str) -> httpx2.URL:
        try:
            target = str(url.join(location))
        except (httpx2.InvalidURL, ValueError) as error:
            raise NotAllowed("a redirect to no address") from error
        if "\\" in location or (url.scheme == "https" and not target.startswith("https:")):
            raise NotAllowed("a redirect that is not plain, or away from https")
        return self.check(target)

    @asynccontextmanager
    async def _pool(self, most: int) -> AsyncIterator[httpcore2.AsyncConnectionPool]:
        """Of one request alone; nothing is kept open. It takes neither proxies nor cookies from anywhere."""
        async with httpcore2.AsyncConnectionPool(
            ssl_context=self._tls,
            max_connections=AT_ONCE,
            max_keepalive_connections=0,
            network_backend=Door(self._resolve, self.may_connect, self._network, most),
        ) as pool:
            yield pool

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or httpx2.create_ssl_context()


class Door(httpcore2.AsyncNetworkBackend):
    """Every connection passes here, by name: resolved once, all addresses checked, one of them connected to.

    No more than `most` bytes are read from one.
    """

    def __init__(
        self,
        resolve: Resolve,
        may_connect: Callable[[Address], bool],
        network: httpcore2.AsyncNetworkBackend,
        most: int,
    ) -> None:
        self._resolve = resolve
        self._may_connect = may_connect
        self._network = network
        self._most = most

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        *others, last = await self._checked(host, port)
        for address in others:
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return await self._connected(address, port, timeout)
        return await self._connected(last, port, timeout)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise NotAllowed("a socket of this machine")

    async def _connected(self, address: Address, port: int, timeout: float | None) -> httpcore2.AsyncNetworkStream:
        return Metered(await self._network.connect_tcp(str(address), port, timeout), self._most)

    async def _checked(self, host: str, port: int) -> list[Address]:
        """At most ADDRESSES. One bad address among many means somebody is playing with the name."""
        try:
            async with asyncio.timeout(DNS_SECONDS):
                addresses = [ip_address(found) for found in await self._resolve(host, port)]
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("its name took too long to resolve") from error
        except (OSError, ValueError) as error:
            raise NotAllowed(f"{host!r} does not resolve") from error
        bad = [address for address in addresses if not self._may_connect(address)]
        if bad or not addresses:
            raise NotAllowed(f"{host!r} is at {bad[0] if bad else 'no address'}, which is not gone to")
        return addresses[:ADDRESSES]


class Metered(httpcore2.AsyncNetworkStream):
    """A stream that breaks after `most` bytes, whatever they are: there is no end to what can come before a file."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream, most: int) -> None:
        self._stream = stream
        self._left = most

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._left:
            raise httpcore2.ReadError("more was sent than is read")
        data = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return Metered(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._left)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Names:
    """The machine's resolver, in threads of its own: a name that hangs holds up nothing but other names."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(16, "names")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        find = asyncio.get_running_loop().run_in_executor
        found = await find(self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Budget:
    """What all files of a request may have together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._spent = 0

    def spend(self, size: int, file: Wanted) -> None:
        """Raises TooLarge."""
        self._spent += size
        if self._spent > self._most:
            raise TooLarge(f"the files are over {self._most:,} bytes together; send fewer or smaller ones", file.param)


async def _body(response: httpcore2.Response, headers: dict[bytes, str], file: Wanted, budget: Budget) -> bytes:
    status, coding = response.status, headers.get(b"content-encoding", "identity").strip().lower()
    if status >= 500 or status in RETRYABLE:
        raise _later(file, f"status {status}")
    if status != 200:
        raise NotAllowed(f"status {status}")
    if coding != "identity":  # never asked for, and a way to send little that becomes much
        raise NotAllowed("a compressed body")
    announced = headers.get(b"content-length", "")
    if announced.isdecimal() and int(announced) > file.limit:
        raise _too_large(file)
    pieces, size = [], 0
    async for piece in response.aiter_stream():
        size += len(piece)
        if size > file.limit:
            raise _too_large(file)
        budget.spend(len(piece), file)
        pieces.append(piece)
    return b"".join(pieces)


def _covers(domain: str, host: str) -> bool:
    return domain in ("*", host) or (domain.startswith("*.") and host.endswith(domain[1:]))


def _port(url: httpx2.URL) -> int:
    return PORTS[url.scheme] if url.port is None else url.port


def _too_large(file: Wanted) -> TooLarge:
    return TooLarge(f"the file is over {file.limit:,} bytes; send a smaller or shorter one", file.param)


def _refused(file: Wanted, why: str) -> BadMedia:
    logger.info("address not fetched", extra={"host": _host(file), "why": why, "param": file.param})
    message = f"the address cannot be fetched; send the file itself as data:{file.kind}/...;base64,..."
    return BadMedia(message, file.param, f"invalid_{file.kind}_url")


def _later(file: Wanted, why: str) -> Unavailable:
    logger.info("address not fetched in time", extra={"host": _host(file), "why": why, "param": file.param})
    return Unavailable("the address does not answer as it should; try again", file.param, "media_unavailable")


def _host(file: Wanted) -> str:
    """For the log; the rest of an address may be a secret that signs it."""
    return httpx2.URL(file.url).host
