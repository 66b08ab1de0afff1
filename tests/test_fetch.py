"""Addresses in requests: none is fetched unless its host is allowed, and then only from where it may be."""

import ast
import asyncio
import base64
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from api_world import CATALOG, World, audio_part, image_part, png, said, wav
from drills import urls
from hosts import NOBODY, OUTSIDE, Answer, Host, Names, Network, reply, spec, to, up

from gateway.reading import fetch
from gateway.reading.addresses import is_public
from gateway.reading.fetch import Fetcher, Wanted
from multimoe.config import MediaSpec, parse
from multimoe.errors import BadConfig, BadMedia

ROOT = Path(__file__).parents[1]
CHAT = "/v1/chat/completions"
PNG = base64.b64decode(png())
GOOD = {"good.test": [[OUTSIDE]], "*": [["127.0.0.2"]]}


@pytest.mark.parametrize("drill", urls.DRILLS, ids=lambda drill: drill.__name__)
async def test_a_canary_sees_nothing_and_sees_the_controls(drill):
    rows = await asyncio.to_thread(lambda: list(drill("quick")))  # it has event loops of its own
    assert [row for row in rows if not row.met] == []
    assert rows


# --- addresses ---


@pytest.mark.parametrize("address", urls.NOT_PUBLIC)
def test_what_no_host_on_the_internet_has_is_not_public(address):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
        *("128.0.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255", "198.17.255.255", "198.20.0.0"),
        *("223.255.255.255", "2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001::1", "2400:cb00::1"),
        *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
    ],
)
def test_what_hosts_on_the_internet_have_is_public(address):
    assert is_public(ip_address(address))


# --- settings ---


@pytest.mark.parametrize(
    "media",
    [
        {"domains": ["127.0.0.1"]},
        {"domains": ["2130706433"]},
        {"domains": ["0x7f000001"]},
        {"domains": ["[::1]"]},
        {"domains": ["https://example.org"]},
        {"domains": ["example.org:443"]},
        {"domains": ["example.org/"]},
        {"domains": ["*.*.org"]},
        {"domains": ["*example.org"]},
        {"domains": ["*."]},
        {"domains": [""]},
        {"domains": ["EXAMPLE.org"]},
        {"networks": ["10.1.2.3/16"]},
        {"networks": ["intranet"]},
        {"ports": [0]},
        {"redirects": -1},
        {"fetch_seconds": 0},
        {"domain": ["example.org"]},
    ],
)
def test_a_setting_that_could_mean_something_else_is_refused(media):
    with pytest.raises(BadConfig, match=r"media\."):
        parse({**CATALOG, "media": media})


@pytest.mark.parametrize(
    ("domain", "host", "allowed"),
    [
        ("example.org", "example.org", True),
        ("example.org", "EXAMPLE.ORG", True),
        ("example.org", "a.example.org", False),
        ("example.org", "badexample.org", False),
        ("example.org", "example.org.evil.test", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "badexample.org", False),
        ("*", "anything.test", True),
        ("*", "127.0.0.1", False),
        ("*", "example.org.", False),
        ("xn--bcher-kva.example", "bücher.example", True),
    ],
)
def test_a_domain_covers_what_it_says(domain, host, allowed):
    fetcher = Fetcher(MediaSpec(domains=(domain,)))
    with contextlib.nullcontext() if allowed else pytest.raises(fetch.NotAllowed):
        assert fetcher.check(f"https://{host}/a.png?b=c").path == "/a.png"


# --- through the API ---


Meet = Callable[..., contextlib.AbstractAsyncContextManager[tuple[Host, httpx.AsyncClient, Names, Network]]]


@pytest.fixture
def meet(tmp_path: Path) -> Meet:
    """A host at good.test, a gateway that may fetch from there, and a client of the gateway."""

    @contextlib.asynccontextmanager
    async def meeting(
        answers: dict[str, Answer], tls: Any = None, trust: ssl.SSLContext = NOBODY, **changes: Any
    ) -> AsyncIterator[Any]:
        names, network = Names(GOOD), Network()
        async with up(Host(answers), OUTSIDE, tls=tls) as host:
            media = spec([host.port], domains=["good.test", "also-good.test"], **changes)
            world = World(tmp_path, Fetcher(media, names, trust, network))
            try:
                async with world.client() as client:
                    yield host, client, names, network
            finally:
                world.log.close()

    return meeting


def picture(host: Host, path: str = "/cat.png", scheme: str = "http") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"{scheme}://good.test:{host.port}{path}"}}


async def refusal(client: httpx.AsyncClient, *parts: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    response = await client.post(CHAT, json=said([{"type": "text", "text": "look"}, *parts]))
    return response.status_code, response.json()["error"]


def certified(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for these names, and a client's that trusts who signed it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


async def test_a_picture_on_an_allowed_host_is_fetched_over_tls_and_answered(meet):
    server, trust = certified("good.test")
    asked_for: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    async with meet({"/cat.png": reply(PNG)}, server, trust, https_only=True) as (host, client, names, network):
        response = await client.post(CHAT, json=said([picture(host, scheme="https")]))
        assert response.status_code == 200, response.text
        assert "12x8" in response.json()["choices"][0]["message"]["content"]
        assert (host.paths, host.connections) == (["/cat.png"], 1)
        assert (names.asked, network.tried) == (["good.test"], [OUTSIDE])  # by the address, under its name:
        assert asked_for == ["good.test"]


@pytest.mark.parametrize("wrong", ["for another name", "signed by a stranger"])
async def test_a_certificate_that_is_not_the_hosts_is_refused(meet, wrong):
    server, trust = certified("evil.test" if wrong == "for another name" else "good.test")
    if wrong == "signed by a stranger":
        _, trust = certified("good.test")
    async with meet({"/cat.png": reply(PNG)}, server, trust) as (host, client, *_):
        status, error = await refusal(client, picture(host, scheme="https"))
        assert (status, error["code"], error["param"]) == (422, "invalid_image_url", "messages[0].content[1]")
        assert host.paths == []


async def test_https_is_never_left_for_http(meet):
    server, trust = certified("good.test")
    async with up(Host({"/cat.png": reply(PNG)}), OUTSIDE) as plain:
        down = {"/down": to(f"http://good.test:{plain.port}/cat.png")}
        async with meet(down, server, trust) as (host, *_):
            fetcher = Fetcher(spec([host.port, plain.port]), Names(GOOD), trust)
            with pytest.raises(BadMedia):
                await fetcher.fetch([Wanted(f"https://good.test:{host.port}/down", "image", 2**20, "p")], 2**20)
            assert (host.paths, plain.connections) == (["/down"], 0)
            await fetcher.fetch([Wanted(f"http://good.test:{plain.port}/cat.png", "image", 2**20, "p")], 2**20)


async def test_several_are_fetched_and_stay_in_their_places(meet):
    answers = {"/cat.png": to("/a/b/cat.png"), "/a/b/cat.png": reply(PNG), "/sound.wav": reply(wav(1.5))}
    async with meet(answers) as (host, client, *_):
        sound = {"type": "audio_url", "audio_url": {"url": f"http://good.test:{host.port}/sound.wav"}}
        for parts, expected in (([picture(host), image_part(png(3, 4))], "12x8"), ([sound], "1.5 seconds")):
            response = await client.post(CHAT, json=said(parts))
            assert response.status_code == 200, response.text
            assert expected in response.json()["choices"][0]["message"]["content"]
        planned = await client.post("/v1/route", json=said([picture(host)]))
        assert planned.status_code == 200
    assert host.paths == ["/cat.png", "/a/b/cat.png", "/sound.wav", "/cat.png", "/a/b/cat.png"]


async def test_nothing_of_ours_is_sent_along_and_no_proxy_is_asked(meet, monkeypatch):
    async with up(Host({"*": reply(PNG)}), OUTSIDE) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://{OUTSIDE}:{proxy.port}")
        twice = {"/cat.png": reply(PNG, 302, {"location": "/b.png", "set-cookie": "a=b"}), "/b.png": reply(PNG)}
        async with meet(twice) as (host, client, *_):
            response = await client.post(CHAT, json=said([picture(host)]), headers={"cookie": "mine=1"})
            assert response.status_code == 200, response.text
        assert proxy.connections == 0
    heads = [head.lower().split("\r\n") for head in host.heads]
    assert [{line.split(":")[0] for line in head[1:] if line} for head in heads] == [
        {"host", "accept", "accept-encoding", "user-agent", "connection"}
    ] * 2
    assert all("accept-encoding: identity" in head for head in heads)


async def test_what_is_fetched_goes_by_its_bytes_and_keeps_the_limits(meet):
    answers = {
        "/page": reply(b"<html>", headers={"content-type": "image/png"}),
        "/half": reply(PNG[: len(PNG) // 2]),
        "/long": reply(b"x", length=10**10),
        "/gone": reply(PNG, 404),
        "/busy": reply(b"", 503),
    }
    async with meet(answers) as (host, client, *_):
        told = {path: await refusal(client, picture(host, path)) for path in answers}
        busy = await client.post(CHAT, json=said([picture(host, "/busy")]))
    assert {path: (status, error["code"]) for path, (status, error) in told.items()} == {
        "/page": (415, "unsupported_media"),
        "/half": (422, "invalid_image"),
        "/long": (413, "request_too_large"),
        "/gone": (422, "invalid_image_url"),
        "/busy": (503, "media_unavailable"),
    }
    assert {error["param"] for _, error in told.values()} == {"messages[0].content[1]"}
    assert int(busy.headers["retry-after"]) > 0


async def test_where_it_may_not_go_is_a_400_and_what_is_behind_the_door_one_422(meet):
    async with meet({}) as (host, client, names, network):
        status, error = await refusal(client, {"type": "image_url", "image_url": {"url": "http://evil.test/a.png"}})
        assert (status, error["code"], error["param"]) == (400, "url_not_allowed", "messages[0].content[1]")
        assert "nothing is fetched from 'evil.test' here" in error["message"]
        assert (names.asked, network.tried) == ([], [])
        closed = socket.create_server((OUTSIDE, 0))
        closed_port = closed.getsockname()[1]
        closed.close()
        fetcher = Fetcher(spec([host.port, closed_port]), Names({**GOOD, "void.test": []}), NOBODY, network)
        answers = set()
        for url in (  # absent, private, nobody there, no such name
            f"http://good.test:{host.port}/gone",
            f"http://inside.test:{host.port}/",
            f"http://good.test:{closed_port}/",
            f"http://void.test:{host.port}/",
        ):
            with pytest.raises(BadMedia) as caught:
                await fetcher.fetch([Wanted(url, "image", 2**20, "here")], 2**20)
            answers.add((caught.value.message, caught.value.code, caught.value.param))
        assert len(answers) == 1


async def test_nothing_is_fetched_for_a_request_that_is_refused_anyway(meet):
    async with meet({"*": reply(PNG)}) as (host, client, names, _):
        status, error = await refusal(client, picture(host), audio_part(b"", "midi"))
        assert (status, error["param"]) == (415, "messages[0].content[2].format")
        status, error = await refusal(client, picture(host), {"type": "image_url", "image_url": {"url": "file:///a"}})
        assert (status, error["code"]) == (400, "url_not_allowed")
        status, _ = await refusal(client, *[picture(host, f"/{i}") for i in range(9)])
        assert status == 400
        assert (host.connections, names.asked) == (0, [])


async def test_the_log_says_why_without_what_signs_an_address(meet, caplog):
    async with meet({}) as (host, client, *_):
        with caplog.at_level(logging.INFO, "gateway.reading.fetch"):
            await refusal(client, picture(host, "/cat.png?signature=s3cret"))
    (record,) = [record for record in caplog.records if record.name == "gateway.reading.fetch"]
    assert (record.host, record.why) == ("good.test", "status 404")
    assert "s3cret" not in str(vars(record))


async def test_by_default_nothing_is_fetched(tmp_path):
    world = World(tmp_path)
    async with up(Host({"*": reply(PNG)}), OUTSIDE) as host, world.client() as client:
        for url in (f"http://{OUTSIDE}:{host.port}/cat.png", f"https://localhost:{host.port}/", "https://example.org/"):
            status, error = await refusal(client, {"type": "image_url", "image_url": {"url": url}})
            assert (status, error["code"]) == (400, "url_not_allowed")
        assert host.connections == 0
    world.log.close()


# --- names and connections ---


async def test_the_next_address_is_tried_when_nobody_is_at_the_first():
    async with up(Host({"*": reply(PNG)}), OUTSIDE) as host:
        network = Network()
        names = Names({"*": [["127.0.0.3", OUTSIDE]]})
        fetcher = Fetcher(spec([host.port], networks=["127.0.0.0/8"]), names, NOBODY, network)
        assert await fetcher.fetch([Wanted(f"http://a.test:{host.port}/", "image", 2**20, "p")], 2**20) == [PNG]
        assert network.tried == ["127.0.0.3", OUTSIDE]


async def test_one_failure_ends_the_rest_at_once():
    async with urls.town({"/slow": urls.dripping(urls.OK + b"\r\n"), "/gone": reply(status=404)}) as here:
        files = [Wanted(here.at(path), "image", 2**20, path) for path in ("/slow", "/gone", "/slow")]
        began = time.monotonic()
        with pytest.raises(BadMedia) as caught:
            await here.fetcher().fetch(files, 2**20)
        assert caught.value.param == "/gone"
        assert time.monotonic() - began < 5
        assert await urls.settled(here.outside) == 0


async def test_the_machines_own_names_are_asked_in_other_threads_and_give_plain_addresses(monkeypatch):
    names, threads = fetch.Names(), []
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: threads.append(threading.get_ident()) or real(*a, **k))
    assert OUTSIDE in await names("localhost", 80)
    assert threads
    assert threading.get_ident() not in threads
    with pytest.raises(OSError):  # noqa: PT011  # of any kind
        await names("no-such-name.invalid", 80)


# --- there is one fetcher ---

CLIENTS = {
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "requests",
    "urllib3",
    "aiohttp",
    "urllib.request",
    "http.client",
}
MAY_SPEAK = {
    "gateway/reading/fetch.py",  # the fetcher
    *("gateway/client.py", "gateway/demo/product.py"),  # clients of the gateway itself
    "gateway/deployment/metrics.py",  # Ray's own series
    *("experts/openai_api.py", "experts/llamacpp.py"),  # addresses of the catalog
    *("multimoe/download.py", "multimoe/hub.py"),  # weights
}


def speakers(root: Path) -> set[str]:
    """Modules that import an HTTP client."""
    found = set()
    for package in ("multimoe", "experts", "gateway"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                if any(name == client or name.startswith(f"{client}.") for name in names for client in CLIENTS):
                    found.add(path.relative_to(root).as_posix())
    return found


def test_nothing_else_speaks_http_to_an_address_of_a_request(tmp_path):
    assert speakers(ROOT) <= MAY_SPEAK
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "sneaky.py").write_text("def f(url):\n    import urllib.request\n")
    assert speakers(tmp_path) == {"gateway/sneaky.py"}
