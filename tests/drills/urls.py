"""Addresses in requests: what must not be reached is not, however it is written, named, resolved or redirected to.

A canary listens where nobody may go; what counts is that it sees no connection, not what an error says. Each control
is a fetcher with one check taken out, which the canary must see.
"""

import asyncio
import gzip
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from unittest.mock import patch

import httpcore2
import httpx2
from hosts import INSIDE, NEVER, NOBODY, OUTSIDE, Answer, Host, Names, Network, Unchecked, dripping, reply, spec, to, up

from drills.row import Row, Scale
from gateway.reading import fetch
from gateway.reading.addresses import plain
from gateway.reading.decoding import Decoders
from gateway.reading.fetch import AT_ONCE, Door, Fetcher, Wanted
from gateway.reading.schemas import ChatBody
from gateway.reading.wire import chat_request
from multimoe.config import Limits, MediaSpec
from multimoe.errors import MultimoeError

CAP = 2**20
PICTURE = b"\x89PNG\r\n\x1a\n" + b"p" * 1000  # nobody decodes it here

NOT_PUBLIC = (
    # this host, private, shared, link-local, protocols, documentation, benchmarks, multicast, reserved
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.1.2.3", "169.254.1.1", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    # metadata of clouds
    *("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"),
    # IPv4 inside IPv6: mapped, compatible, translated, NAT64 (well-known, local), 6to4, Teredo
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1"),
    *("::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::127.0.0.1"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "2001::1"),
    # the rest of IPv6 that no host on the internet has
    *("::", "::1", "100::1", "100:0:0:1::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "3fff::1"),
    *("5f00::1", "4000::1", "fc00::1", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff0e::1"),
)

SPELLINGS = (  # of addresses of this machine, P the canary's port; each would be found by the machine's own resolver
    *("http://127.0.0.1:P/", "http://127.0.0.2:P/", "http://2130706433:P/", "http://0x7f000001:P/", "http://127.1:P/"),
    *("http://0177.0.0.1:P/", "http://0x7f.0.0.1:P/", "http://017700000001:P/", "http://0:P/", "http://0.0.0.0:P/"),
    *("http://①②⑦.0.0.1:P/", "http://127。0。0。1:P/", "http://[::1]:P/", "http://[::1%25lo]:P/", "http://[::]:P/"),
    *(
        "http://[::ffff:127.0.0.1]:P/",
        "http://[::ffff:7f00:1]:P/",
        "http://[0:0:0:0:0:0:0:1]:P/",
        "http://[::127.0.0.1]:P/",
    ),
    *(
        "http://localhost:P/",
        "http://LOCALHOST:P/",
        "http://localhost.:P/",
        "http://%6cocalhost:P/",
        "http://loc%61lhost:P/",
    ),
    *("http://a@127.0.0.1:P/", "http://good.test@127.0.0.1:P/", "http://good.test:80@127.0.0.1:P/"),
    *("http://127.0.0.1:P\\@good.test/", "http://good.test\\@127.0.0.1:P/", "http://good.test%2f@127.0.0.1:P/"),
    *("http://good.test%40127.0.0.1:P/", "http://good.test%23@127.0.0.1:P/", "http://good.test%00@127.0.0.1:P/"),
    *("http:\\\\127.0.0.1:P\\", "http:/\\127.0.0.1:P/", "http:127.0.0.1:P/", "http:///127.0.0.1:P/", "//127.0.0.1:P/"),
    *(
        " http://127.0.0.1:P/",
        "http://\t127.0.0.1:P/",
        "http://127.0.0.1 :P/",
        "http://127.0.0.1:P/\r\nHost: good.test",
    ),
    *(
        "http://127.0.0.1.:P/",
        "http://.127.0.0.1:P/",
        "http://127.0.0.1:0P/",
        "http://127.0.0.1:P:80/",
        "HTTP://127.0.0.1:P/",
    ),
)

SCHEMES = (
    *("file:///etc/passwd", "file://localhost/etc/passwd", "ftp://good.test/a.png", "gopher://good.test/_x"),
    *(
        "unix:/var/run/docker.sock",
        "http+unix://%2Frun%2Fd.sock/",
        "dict://good.test:6379/info",
        "jar:http://good.test/",
    ),
    *(
        "javascript:alert(1)",
        "blob:https://good.test/1",
        "ws://good.test/",
        "wss://good.test/",
        "about:blank",
        "good.test",
    ),
    *("http://good.test/", "https://good.test:22/", "https://good.test:25/", "https://good.test:6379/"),
    *("https://good.test:8265/", "https://good.test:10001/", "https://good.test:8000/", "https://good.test:0/"),
    *("https://evil.test/", "https://good.test.evil.test/", "https://evilgood.test/", "https://good.test@evil.test/"),
    *("https://.good.test/", "https://good.test./", "https://a..good.test/", "https:///good.test/", "https:good.test"),
)


@dataclass
class Town:
    """A host that may be reached, a canary that may not, on one port; their names, and what the fetcher did."""

    outside: Host
    inside: Host
    names: Names
    network: Network = field(default_factory=Network)

    def fetcher(self, kind: type[Fetcher] = Fetcher, **changes: Any) -> Fetcher:
        return kind(spec([self.outside.port], **changes), self.names, NOBODY, self.network)

    def at(self, path: str, host: str = "good.test") -> str:
        return f"http://{host}:{self.outside.port}{path}"


@asynccontextmanager
async def town(answers: Mapping[str, Answer] | None = None, names: Names | None = None) -> AsyncIterator[Town]:
    found = names or Names({"good.test": [[OUTSIDE]], "inside.test": [[INSIDE]]})
    everything = {"*": reply(PICTURE)}
    outside, inside = Host({**everything, **(answers or {})}), Host(everything)
    async with up(outside, OUTSIDE), up(inside, INSIDE, outside.port):
        yield Town(outside, inside, found)


async def outcome(fetcher: Fetcher, url: str, limit: int = CAP) -> str:
    """What a client would be told, or "fetched"."""
    try:
        await fetcher.fetch([Wanted(url, "image", limit, "messages[0].content[0]")], 25 * 2**20)
    except MultimoeError as error:
        return f"{error.code}: {error.message}"
    return "fetched"


# --- T9: addresses ---


def addresses(scale: Scale) -> Iterator[Row]:
    yield from asyncio.run(_addresses())
    yield from asyncio.run(_spellings())
    yield from asyncio.run(_mutated(300 if scale == "quick" else 20_000))


async def _addresses() -> list[Row]:
    rows = []
    for kind in (Fetcher, Unchecked):
        names = Names({f"n{i}.test": [[address]] for i, address in enumerate(NOT_PUBLIC)})
        network = Network()
        async with anywhere() as canary:
            fetcher = kind(spec([canary.port], networks=[]), names, NOBODY, network)
            told = [await outcome(fetcher, f"http://n{i}.test:{canary.port}/") for i in range(len(NOT_PUBLIC))]
        control = kind is Unchecked
        rows.append(
            Row(
                "T9",
                "no check of addresses" if control else "names at addresses that are not public",
                f"{len(NOT_PUBLIC)} addresses",
                f"{len(network.tried)} connections, {canary.connections} reached the canary, {len(set(told))} texts",
                "seen by the canary" if control else "0 connections, 0 hits, one text",
                canary.connections >= 5 and len(network.tried) == len(NOT_PUBLIC)
                if control
                else not network.tried and not canary.connections and len(set(told)) == 1 and "fetched" not in told,
                control,
            )
        )
    return rows


@asynccontextmanager
async def anywhere() -> AsyncIterator[Host]:
    """A canary on every address of this machine, of both families where it has both."""
    canary = Host({"*": reply(PICTURE)})
    async with up(canary, "0.0.0.0") as canary:
        port = canary.port
        if not socket.has_ipv6:
            yield canary
            return
        try:
            async with up(canary, "::", port):
                yield canary
        except OSError:
            yield canary


class Trusting(Unchecked):
    """A control: it goes where it is sent, as its parser reads it."""

    def check(self, url: str) -> httpx2.URL:
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise fetch.NotAllowed("no URL") from error
        if parsed.scheme != "http" or not parsed.raw_host:
            raise fetch.NotAllowed("no URL")
        return parsed


async def _spellings() -> list[Row]:
    rows = []
    for kind in (Fetcher, Trusting):
        network, control = Network(), kind is Trusting
        async with anywhere() as canary:
            # good.test is not of this world: what is left for the machine's resolver are the spellings themselves
            fetcher = kind(spec([canary.port], networks=[]), MachineNames(), NOBODY, network)
            told = [await outcome(fetcher, url.replace("P", str(canary.port))) for url in SPELLINGS]
        rows.append(
            Row(
                "T9",
                "a fetcher that goes where it is sent" if control else "this machine, spelt otherwise",
                f"{len(SPELLINGS)} spellings",
                f"{len(network.tried)} connections begun, {canary.connections} reached the canary",
                "seen by the canary" if control else "0 connections, 0 hits",
                canary.connections >= 10
                if control
                else not network.tried and not canary.connections and "fetched" not in told,
                control,
            )
        )
    return rows


class MachineNames:
    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if host.endswith(".test"):
            raise OSError("no such name")
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def _mutated(count: int) -> list[Row]:
    """Whatever the characters, what is connected to is what the allowed name resolves to."""
    chance, network = random.Random(9), Network()
    async with anywhere() as canary:
        names = Counting()
        fetcher = Fetcher(spec([canary.port], domains=["good.test"], networks=[]), names, NOBODY, network)
        for _ in range(count):
            await outcome(fetcher, mutated(chance, canary.port))
    strangers = names.asked - {"good.test"}
    return [
        Row(
            "T9",
            "URLs put together at random, one name allowed",
            f"{count:,} URLs",
            f"{len(strangers)} other names resolved, {len(network.tried)} connections, {canary.connections} hits",
            "0, 0, 0",
            not strangers and not network.tried and not canary.connections and "good.test" in names.asked,
        )
    ]


class Counting:
    """Every name is at this machine, which is not public."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.add(host)
        return ["127.0.0.1"]


PIECES = (
    *("http://", "https://", "http:", "//", "/", "\\", "@", "#", "?", ":", "%2f", "%40", "%23", "%00", "%0d%0a", "\t"),
    *(
        "good.test",
        "good.test",
        "evil.test",
        "127.0.0.1",
        "localhost",
        "[::1]",
        "0",
        ".",
        "..",
        "a",
        "é",
        "。",
        "①",
        "P",
        ":P",
    ),
)


def mutated(chance: random.Random, port: int) -> str:
    url = chance.choice(("http://", "http://good.test", "http://good.test:P", "")) + "".join(
        chance.choices(PIECES, k=chance.randint(1, 8))
    )
    return url.replace("P", str(port))


# --- T10: schemes, ports, redirects ---


def redirects(scale: Scale) -> Iterator[Row]:
    yield asyncio.run(_schemes())
    yield from asyncio.run(_redirects())


async def _schemes() -> Row:
    network, names = Network(), Names({"*": [[OUTSIDE]]})
    allowed = MediaSpec.model_validate({"domains": ["good.test"], "networks": [f"{OUTSIDE}/32"]})
    fetcher = Fetcher(allowed, names, NOBODY, network)
    told = [await outcome(fetcher, url) for url in SCHEMES]
    refused = sum(said.startswith("url_not_allowed") for said in told)
    return Row(
        "T10",
        "other schemes, ports and hosts than are allowed",
        f"{len(SCHEMES)} URLs",
        f"{refused} refused, {len(names.asked)} names resolved, {len(network.tried)} connections",
        "all, 0, 0",
        refused == len(SCHEMES) and not names.asked and not network.tried,
    )


def zoo(port: int) -> dict[str, Answer]:
    """Redirects that must not be followed to their end."""
    inside, here = f"http://inside.test:{port}/", f"http://good.test:{port}"
    bad = {f"/{status}": to(inside, status) for status in (301, 302, 303, 307, 308)}
    targets = (
        *(f"http://{INSIDE}:{port}/", f"//{INSIDE}:{port}/", f"//inside.test:{port}/", f"http://127.2:{port}/"),
        *(
            f"http://[::ffff:{INSIDE}]:{port}/",
            f"http://good.test:{port}@inside.test:{port}/",
            f"\\\\inside.test:{port}\\",
        ),
        *(f"http://inside.test:{port}\\@good.test:{port}/", f"/\\inside.test:{port}/", f" {inside}", f"{here}:22/"),
        *("http://good.test:1/", "file:///etc/passwd", "ftp://good.test/", "gopher://inside.test/", "data:image/png,x"),
        *("", "http://", "http://[", "x" * 70_000, f"{inside}\x7f"),
    )
    bad |= {f"/odd{i}": to(target) for i, target in enumerate(targets)}
    bad |= {f"/odd-status{status}": to(inside, status) for status in (300, 304, 305, 306)}
    bad["/refresh"] = reply(PICTURE, 404, {"refresh": f"0; url={inside}"})
    bad["/loop"] = to("/loop")
    bad["/a"], bad["/b"] = to(f"{here}/b"), to(f"{here}/a")
    bad |= {f"/six{i}": to(f"/six{i + 1}") for i in range(6)}
    bad["/then-inside"] = to("/then-inside2")
    bad["/then-inside2"] = to(inside)
    return bad


GOOD = {  # these are followed
    "/relative": to("there/picture.png"),
    "/rooted": to("/picture.png?a=b#c", 307),
    "/3": to("/3b", 301),
    "/3b": to("/3c", 308),
    "/3c": to("/picture.png", 303),
}
STARTS = ("/relative", "/rooted", "/3")


async def _redirects() -> list[Row]:
    rows = []
    for kind in (Fetcher, Unchecked):
        control = kind is Unchecked
        async with town(GOOD) as here:
            bad = zoo(here.outside.port)
            here.outside.answers = {**here.outside.answers, **bad}
            fetcher = here.fetcher(kind)
            told = [
                await outcome(fetcher, here.at(path)) for path in bad if not path.startswith("/six") or path == "/six0"
            ]
            good = [await outcome(fetcher, here.at(path)) for path in STARTS]
            hops = sum(path.startswith("/six") for path in here.outside.paths)
        fine = "fetched" not in told and good == ["fetched"] * len(STARTS) and hops == 4 and len(set(told)) == 1
        rows.append(
            Row(
                "T10",
                "redirects, no check of addresses" if control else "redirects to what may not be reached, loops",
                f"{len(told)} redirects, and {len(STARTS)} to follow",
                f"canary: {here.inside.connections} hits; {good.count('fetched')} followed, {hops - 1} hops at most",
                "seen by the canary" if control else "0 hits, 3 followed, 3 hops at most",
                here.inside.connections >= 5 if control else fine and not here.inside.connections,
                control,
            )
        )
    return rows


# --- T11: names ---


def names(scale: Scale) -> Iterator[Row]:
    yield from asyncio.run(_rebinding())
    yield asyncio.run(_mixed())
    yield asyncio.run(_slow_names(0.3 if scale == "quick" else fetch.DNS_SECONDS))
    yield asyncio.run(_many())


class Twice(Door):
    """A control: it checks what a name resolves to, then lets the name be resolved again."""

    async def connect_tcp(self, host: str, port: int, *rest: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        await self._checked(host, port)
        again = await self._resolve(host, port)
        return await self._network.connect_tcp(again[0], port)


async def _rebinding() -> list[Row]:
    rows = []
    for door in (Door, Twice):
        control = door is Twice
        answers = [[OUTSIDE], [INSIDE]]
        async with town({"/again": to("/picture.png")}, Names({"*": answers})) as here:
            with patch("gateway.reading.fetch.Door", door):
                first = await outcome(here.fetcher(), here.at("/", "once.test"))
                again = await outcome(here.fetcher(), here.at("/again", "again.test"))
        once = here.names.asked.count("once.test")
        rows.append(
            Row(
                "T11",
                "a name resolved twice"
                if control
                else "a name that changes to a private address, at once and mid-redirect",
                "2 names",
                f"canary: {here.inside.connections} hits; resolved {once} time(s) a connection",
                "seen by the canary" if control else "0 hits, once",
                here.inside.connections >= 1
                if control
                else not here.inside.connections and once == 1 and first == "fetched" and again != "fetched",
                control,
            )
        )
    return rows


async def _mixed() -> Row:
    bad = [address for address in NOT_PUBLIC if OUTSIDE not in (address, str(plain(ip_address(address))))]
    given = {f"a{i}.test": [[OUTSIDE, address]] for i, address in enumerate(bad)}
    given |= {f"b{i}.test": [[address, OUTSIDE, OUTSIDE]] for i, address in enumerate(bad)}
    given["none.test"] = [[]]
    async with town(names=Names(given)) as here:
        told = [await outcome(here.fetcher(), here.at("/", name)) for name in given]
    return Row(
        "T11",
        "one bad address among good ones",
        f"{len(given)} names",
        f"{told.count('fetched')} fetched, {len(here.network.tried)} connections",
        "0, 0",
        "fetched" not in told and not here.network.tried,
    )


async def _slow_names(limit: float) -> Row:
    async with town(names=Names({"*": [[OUTSIDE]]}, delay=NEVER)) as here:
        began = time.monotonic()
        with patch("gateway.reading.fetch.DNS_SECONDS", limit):
            told = await asyncio.gather(*(outcome(here.fetcher(), here.at("/", f"n{i}.test")) for i in range(20)))
        seconds = time.monotonic() - began
    later = sum(said.startswith("media_unavailable") for said in told)
    return Row(
        "T11",
        f"names that take {NEVER:.0f} s to resolve",
        "20 at once",
        f"{seconds:.1f} s, {later} told to try again, {here.outside.connections} connections",
        f"about {limit:g} s, all, 0",
        seconds < limit + 2 and later == 20 and not here.outside.connections,
    )


def ask(urls: Sequence[Sequence[str]]) -> ChatBody:
    """A message for each sequence, with its pictures."""
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}} for url in m]} for m in urls
    ]
    return ChatBody.model_validate({"messages": messages})


async def _many() -> Row:
    async with town(names=Names({"*": [[OUTSIDE]]})) as here:
        many = [[here.at("/", f"n{i}.test") for i in range(500)], *[[here.at("/", "a.test")] * 10] * 10]
        told = []
        for sent in ([many[0]], many[1:]):
            try:
                limits = Limits()
                await chat_request(ask(sent), "chatcmpl-1", limits, Decoders(limits), here.fetcher())
            except MultimoeError as error:
                told.append(error.code)
    return Row(
        "T11",
        "500 names in one message, ten pictures in each of ten",
        "2 requests",
        f"{len(told)} refused, {len(here.names.asked)} names resolved, {here.outside.connections} connections",
        "2, 0, 0",
        told == ["invalid_value"] * 2 and not here.names.asked and not here.outside.connections,
    )


# --- T12: bodies ---

OK = b"HTTP/1.1 200 OK\r\n"
TOO_MUCH: dict[str, Answer] = {
    "/endless": dripping(OK + b"\r\n", b"x" * 2**16, 0),
    "/endless-chunks": dripping(OK + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 2**16 + b"\r\n", 0),
    "/announced": reply(b"x", length=10**15),
    "/larger": reply(b"x" * (CAP + 1)),
    "/endless-headers": dripping(OK, b"x-a: " + b"b" * 1000 + b"\r\n", 0),
    "/endless-header": dripping(OK + b"x-a: ", b"b" * 2**16, 0),
    "/endless-status": dripping(b"HTTP/1.1 200 ", b"b" * 2**16, 0),
    "/endless-informational": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0),
    "/gzip-bomb": reply(gzip.compress(b"x" * 2**24), headers={"content-encoding": "gzip"}),
    "/gzip-twice": reply(gzip.compress(gzip.compress(b"x" * 2**24)), headers={"content-encoding": "gzip, gzip"}),
    "/brotli": reply(b"x", headers={"content-encoding": "br"}),
}
BROKEN: dict[str, Answer] = {
    "/short": reply(b"x" * 10, length=1000),
    "/negative": reply(b"x" * 10, headers={"content-length": "-1"}),
    "/two-lengths": reply(b"x" * 10, headers={"Content-Length": "5"}),
    "/words": reply(b"x", headers={"content-length": "many"}),
    "/no-http": reply(),
    "/404": reply(b"x", 404),
    "/204": reply(b"", 204),
    "/206": reply(b"x", 206),
    "/401": reply(b"x", 401, {"www-authenticate": "Basic"}),
    "/switch": reply(b"", 101, {"upgrade": "websocket", "connection": "upgrade"}),
}
SLOW: dict[str, Answer] = {
    "/1-byte-a-second": dripping(OK + b"content-length: 1000\r\n\r\n", b"x", 1.0),
    "/1-header-byte-a-second": dripping(OK, b"x", 1.0),
    "/nothing": dripping(b"", b"", 1.0),
    "/body-never": dripping(OK + b"content-length: 1000\r\n\r\n", b"", 1.0),
    "/500": reply(b"x", 500),
    "/503": reply(b"x", 503),
    "/429": reply(b"x", 429),
}


def bodies(scale: Scale) -> Iterator[Row]:
    yield asyncio.run(_capped())
    yield asyncio.run(_uncapped())
    yield asyncio.run(_broken())
    yield asyncio.run(_slow(0.5 if scale == "quick" else MediaSpec().fetch_seconds))
    yield asyncio.run(_at_once())


async def settled(host: Host) -> int:
    """Connections of `host` that are still open a little later."""
    for _ in range(100):
        if not host.open:
            break
        await asyncio.sleep(0.02)
    return host.open


async def _capped() -> Row:
    worst, told = 0, []
    async with town(TOO_MUCH) as here:
        for path in TOO_MUCH:
            here.network.read = 0
            told.append(await outcome(here.fetcher(fetch_seconds=5.0), here.at(path)))
            worst = max(worst, here.network.read)
        still = await settled(here.outside)
    return Row(
        "T12",
        "bodies and headers without end, lying lengths, compressed ones",
        f"{len(TOO_MUCH)} answers, at most {CAP:,} bytes wanted",
        f"{worst:,} bytes read at worst, {told.count('fetched')} taken, {still} sockets left",
        f"at most {CAP + 2**16:,}, 0, 0",
        worst <= CAP + 2**16 and "fetched" not in told and not still,
    )


async def _uncapped() -> Row:
    async with town(TOO_MUCH) as here:
        await outcome(here.fetcher(fetch_seconds=5.0), here.at("/endless"), limit=16 * CAP)
    read = here.network.read
    return Row(
        "T12",
        "the same, sixteen times as much wanted",
        "1 answer",
        f"{read:,} bytes read",
        f"over {CAP + 2**16:,}",
        read > CAP + 2**16,
        True,
    )


async def _broken() -> Row:
    async with town(BROKEN) as here:
        here.outside.answers = {**here.outside.answers, "/no-http": dripping(b"+OK redis\r\n\r\n")}
        told = [await outcome(here.fetcher(fetch_seconds=5.0), here.at(path)) for path in BROKEN]
        still = await settled(here.outside)
    return Row(
        "T12",
        "answers that are broken or none",
        f"{len(BROKEN)} answers",
        f"{told.count('fetched')} taken, {len(set(told))} texts, {still} sockets left",
        "0, 1 (nobody learns which), 0",
        set(told) == {told[0]} and told[0].startswith("invalid_image_url") and not still,
    )


async def _slow(limit: float) -> Row:
    async with town(SLOW) as here:
        began = time.monotonic()
        asked = [outcome(here.fetcher(fetch_seconds=limit), here.at(path)) for path in SLOW]
        told = await asyncio.gather(*asked)
        seconds = time.monotonic() - began
        still = await settled(here.outside)
    later = sum(said.startswith("media_unavailable") for said in told)
    return Row(
        "T12",
        "a byte a second, a header byte a second, nothing; busy servers",
        f"{len(SLOW)} answers",
        f"{seconds:.1f} s, {later} told to try again, {still} sockets left",
        f"about {limit:g} s, all, 0",
        seconds < limit + 2 and later == len(SLOW) and not still,
    )


async def _at_once() -> Row:
    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        await reply(b"x" * 1000)(writer)

    async with town({"*": late}) as here:
        files = [Wanted(here.at(f"/{i}"), "image", CAP, f"messages[0].content[{i}]") for i in range(8)]
        whole = [len(file) for file in await here.fetcher().fetch(files, CAP)]
        most = here.outside.most_open
        before = here.outside.connections
        try:
            await here.fetcher().fetch(files, 2500)
            told = "fetched"
        except MultimoeError as error:
            told = error.code
        begun = here.outside.connections - before
        still = await settled(here.outside)
    return Row(
        "T12",
        "eight files in one request; then more than they may have together",
        "2 requests",
        f"{most} at a time, {sum(whole):,} bytes; then {told}, {begun} begun, {still} sockets left",
        f"at most {AT_ONCE}, 8,000; then request_too_large, fewer than 8, 0",
        most == AT_ONCE and whole == [1000] * 8 and told == "request_too_large" and begun < 8 and not still,
    )


DRILLS = (addresses, redirects, names, bodies)
