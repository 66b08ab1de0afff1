"""T5, T6, T13, T14, T16: what comes to the API's door that no client would send. Nothing gets past it, nothing breaks.

Bodies that are hardly JSON, requests that are hardly HTTP, addresses and keys that are nearly right, on a whole gateway
behind real sockets. After each the gateway has to be alive, and its answer must tell nothing of its inside.
"""

import json
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from api_world import World, said, served
from starlette.routing import BaseRoute

from drills.row import Row, Scale
from gateway.access import guard
from multimoe.feedback import Scope as Right

CHAT = "/v1/chat/completions"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
OPEN = ("/health", "/ready")
INSIDE = re.compile(rb"Traceback|0x[0-9a-f]{6,}|/home/|/usr/|/tmp/|/root/|\.py\b|sqlite|sqlalchemy", re.I)
FILL = {"{id:path}": "x", "{name:path}": "x", "{version}": "1", "{id}": "x", "{name}": "x", "{completion_id}": "x"}
SHORT, LONG = 2.0, 10.0  # seconds for an answer or an end


@dataclass(frozen=True)
class Said:
    """What came back: 0 where the line was just closed, None where neither came in time."""

    status: int | None
    raw: bytes
    answers: int
    seconds: float

    @property
    def tells(self) -> str:
        """Something of the inside, in an answer that should have none of it."""
        found = INSIDE.search(self.raw)
        return found[0].decode() if found else ""


@contextmanager
def gateway(*rights: Right, **changes: object) -> Iterator[tuple[World, str, str]]:
    """A gateway with keys asked for, its root address and one key."""
    with tempfile.TemporaryDirectory() as home:
        world = World(Path(home) / "home", **changes)
        _, key = world.log.create_key("caller", rights or ("chat", "rate"))
        patience, guard.WRONG_PER_MINUTE = guard.WRONG_PER_MINUTE, 10**9  # else wrong keys only try the brake
        try:
            with served(world) as url:
                yield world, url.removesuffix("/v1"), key
        finally:
            guard.WRONG_PER_MINUTE = patience
            world.log.close()


# --- bodies ---


def horrors(scale: Scale = "quick") -> dict[str, bytes]:
    """Bodies by name, all to be refused with a 4xx."""
    much = 1_000_000 if scale == "long" else 100_000
    deep = {str(n): b'{"messages":' + b"[" * n + b"]" * n + b"}" for n in (65, 120, 10_000, 250_000)}
    question = json.dumps(said("hi")).encode()
    return {
        **{f"{n} deep": body for n, body in deep.items()},
        **{f"{n} deep, never closed": b"[" * int(n) for n in deep},
        "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "a million keys and no question": b"{" + b",".join(b'"k%d":1' % i for i in range(much)) + b"}",
        "NaN": question.replace(b'"hi"', b"NaN"),
        "NaN as a number": b'{"temperature":NaN,' + question[1:],
        "Infinity": b'{"temperature":-Infinity,' + question[1:],
        "1e309": b'{"temperature":1e309,' + question[1:],
        "-1e309": b'{"temperature":-1e309,' + question[1:],
        "a number of 100,000 digits": b'{"seed":' + b"9" * 100_000 + b"," + question[1:],
        "a fraction of 100,000 digits": b'{"temperature":9.' + b"9" * 100_000 + b"," + question[1:],
        "a lone surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        "a surrogate as bytes": b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        "NUL in a text": b'{"messages":[{"role":"user","content":"a\\u0000b"}]}',
        "NUL in the body": question + b"\0",
        "UTF-16": question.decode().encode("utf-16"),
        "UTF-32": question.decode().encode("utf-32"),
        "a byte order mark": b"\xef\xbb\xbf" + question,
        "not UTF-8": question.replace(b"hi", b"\xff\xfe"),
        "overlong UTF-8": question.replace(b"hi", b"\xc0\xaf"),
        "100,000 messages": json.dumps({"messages": said("hi")["messages"] * 100_000}).encode(),
        "100,000 parts": json.dumps(said([{"type": "text", "text": "a"}] * 100_000)).encode(),
        "parts of no kind": json.dumps(said([{"type": "text", "text": "a"}, 7, None, ["x"], {}])).encode(),
        "content of no kind": json.dumps(said(7)).encode(),  # type: ignore[arg-type]  # on purpose
        "a list": b"[]",
        "a word": b'"hello"',
        "null": b"null",
        "nothing": b"",
        "two bodies": question + question,
        "a comment": question + b"// hi",
        "single quotes": b"{'messages': []}",
        "a trailing comma": question[:-1] + b",}",
        "control characters": question.replace(b"hi", b"a\x01b"),
        "a role of nobody": question.replace(b"user", b"__proto__"),
        "n of a million": b'{"n":1000000,' + question[1:],
        "max_tokens of a billion": b'{"max_tokens":1000000000,' + question[1:],
        "a stop of a megabyte's list": b'{"stop":[' + b",".join([b'"a"'] * 100_000) + b"]," + question[1:],
    }


def harmless() -> dict[str, bytes]:
    """Odd, but texts: each is answered, and comes back letter by letter from the expert that echoes."""
    special = "<|im_start|>system\n<|image_pad|><|endoftext|></s>[INST]<bos><unk>"
    return {
        "special tokens": json.dumps(said(special)).encode(),
        "a key twice": b'{"model":"nobody","model":"multimoe/parrot","messages":[{"role":"user","content":"hi"}]}',
        "right to left": json.dumps(said("\u202eabc\u2066")).encode(),
        "an emoji as surrogates": b'{"messages":[{"role":"user","content":"\\ud83d\\ude00"}]}',
        "a template": json.dumps(said("{{7*7}} ${7*7} %s {0.__class__}")).encode(),
        "unknown fields": json.dumps(
            said("hi", chat_template="{{7*7}}", guided_regex="(a+)+$", logit_bias={})
        ).encode(),
    }


def bad_bodies(scale: Scale) -> Iterator[Row]:
    paths = (CHAT,) if scale == "quick" else (CHAT, "/v1/route", "/v1/embeddings", "/v1/feedback")
    with gateway() as (_, root, key):
        yield from bodies_against(root, paths, key, scale, "uvicorn", lambda: psutil.Process().memory_info().rss)


def bodies_against(
    root: str, paths: Sequence[str], key: str, scale: Scale, server: str, memory: Callable[[], int]
) -> Iterator[Row]:
    """T5 on whatever serves the API at `root`, with an expert `parrot` that echoes; `memory` in bytes."""
    wrong, slowest, tried = [], 0.0, 0
    with httpx.Client(base_url=root, timeout=30) as client:
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        before = memory()
        for path in paths:
            for name, body in horrors(scale).items():
                began = time.perf_counter()
                reply = client.post(path, content=body, headers=headers)
                slowest, tried = max(slowest, time.perf_counter() - began), tried + 1
                if not 400 <= reply.status_code < 500 or INSIDE.search(reply.content):
                    wrong.append(f"{path} {name}: {reply.status_code}")
                if client.get("/health").status_code != 200:
                    wrong.append(f"{path} {name}: dead afterwards")
        grown = (memory() - before) / 2**20
        yield Row("T5", f"bodies that are hardly JSON, {server}", f"{tried} to {len(paths)} routes",
                  _figure(wrong) + f"; slowest {slowest:.1f} s, memory {grown:+.0f} MiB", "4xx each, alive after each",
                  not wrong)  # fmt: skip
        odd = []
        for name, body in harmless().items():
            reply = client.post(CHAT, content=body, headers=headers)
            asked = json.loads(body)["messages"][0]["content"]
            if reply.status_code != 200 or reply.json()["choices"][0]["message"]["content"].split() != asked.split():
                odd.append(f"{name}: {reply.status_code}")
        yield Row("T5", f"odd texts are texts, {server}", f"{len(harmless())}", _figure(odd), "200, said back", not odd)


# --- lines ---


def speak(root: str, request: bytes, patience: float = SHORT, more: float = 0.0) -> Said:
    """`request` as it is, and what comes back until the line ends, or for `more` seconds after a whole answer."""
    address = urlsplit(root)
    began, raw, closed = time.monotonic(), b"", False
    with socket.create_connection((address.hostname or "", address.port or 80), timeout=patience) as line:
        with suppress(OSError):  # it hung up while we spoke, and may have said why
            line.sendall(request)
        deadline = began + patience
        while time.monotonic() < deadline and not closed:
            line.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                piece = line.recv(65_536)
            except TimeoutError:
                break
            except OSError:
                closed = True
                break
            closed, raw = not piece, raw + piece
            if more >= 0 and _whole(raw, request[:5] == b"HEAD "):
                deadline, more = time.monotonic() + more, -1.0
    statuses = re.findall(rb"HTTP/1\.[01] (\d{3})", raw)
    status = int(statuses[0]) if statuses else 0 if closed else None
    return Said(status, raw, len(statuses), time.monotonic() - began)


def _whole(raw: bytes, headers_alone: bool) -> bool:
    head, found, body = raw.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(found) and (headers_alone or length is None or len(body) >= int(length[1]))


AROUND = (
    (b"", b""), (b"/", b""), (b"", b"/"), (b"", b"%00"), (b"", b"%20"), (b"", b";/health"), (b"", b"?/health"),
    (b"", b"#/health"), (b"", b"\\..\\health"), (b"/.", b""), (b"/health/..", b""), (b"/health/%2e%2e", b""),
    (b"http://127.0.0.1", b""), (b"http://evil.example", b""), (b"//health@evil", b""), (b"@evil", b""),
)  # fmt: skip


def strange_lines(paths: Sequence[str]) -> Iterator[bytes]:
    """Request lines for each method and path that are not quite right, without a key."""
    for method in METHODS:
        for path in paths:
            plain = path.encode()
            for before, after in AROUND:
                target = before + plain + after
                yield b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n" % (method.encode(), target)


def broken_lines() -> dict[str, bytes]:
    """Requests that are hardly HTTP, none of them with a key."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    get = b"GET /v1/models HTTP/1.1\r\n"
    inner = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n"
    form = b"Content-Type: multipart/form-data; boundary=b\r\n"
    parts = b"".join(b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % i for i in range(10_000))
    audio = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\n" + form
    hosts = (b"a/b@c", b"127.0.0.1/health?", b"127.0.0.1#/health", b"evil.example", b"[::1", b"\xff", b"a b", b"",
             b"127.0.0.1:99999999")  # fmt: skip
    return {
        "no HTTP at all": b"hello\r\n\r\n",
        "TLS": bytes.fromhex("1603010200010001fc0303") + b"\0" * 200,
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/9.9": b"GET /v1/models HTTP/9.9\r\nHost: a\r\n\r\n",
        "HTTP/0.9": b"GET /v1/models\r\n\r\n",
        "no method": b" /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
        "a method of 10 kB": b"A" * 10_000 + b" /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
        "an address of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "NUL in the line": b"GET /v1/mo\0dels HTTP/1.1\r\nHost: a\r\n\r\n",
        "a bare CR": b"GET /v1/models HTTP/1.1\rHost: a\r\r",
        "an early space": b" GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
        "length and chunks": head + chunked + b"Content-Length: 6\r\n\r\n0\r\n\r\n" + inner,
        "chunks and length": head + b"Content-Length: 6\r\n" + chunked + b"\r\n0\r\n\r\n" + inner,
        "chunks twice": head + chunked + chunked + b"\r\n0\r\n\r\n",
        "chunks in disguise": head + b"Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\nabcd" + inner,
        "chunks after a space": head + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + inner,
        "two lengths": head + b"Content-Length: 4\r\nContent-Length: 40\r\n\r\nabcd" + inner,
        "length -1": head + b"Content-Length: -1\r\n\r\n" + inner,
        "length abc": head + b"Content-Length: abc\r\n\r\n" + inner,
        "length 2^63": head + b"Content-Length: 9223372036854775808\r\n\r\n{}",
        "length +4": head + b"Content-Length: +4\r\n\r\nabcd" + inner,
        "length of 100 digits": head + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n{}",
        "a chunk of -1": head + chunked + b"\r\n-1\r\nabc\r\n0\r\n\r\n" + inner,
        "a chunk of zz": head + chunked + b"\r\nzz\r\nabc\r\n0\r\n\r\n" + inner,
        "a chunk of 2^64": head + chunked + b"\r\nffffffffffffffffff\r\nabc",
        "a chunk that lies": head + chunked + b"\r\n3\r\nabcdef\r\n0\r\n\r\n" + inner,
        "a chunk's extension of 100 kB": head + chunked + b"\r\n3;" + b"x" * 100_000 + b"\r\nabc\r\n0\r\n\r\n",
        "a header of 100 kB": get + b"Host: 127.0.0.1\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
        "1,000 headers": get + b"Host: 127.0.0.1\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(1000)) + b"\r\n",
        "a header without a colon": get + b"Host: 127.0.0.1\r\nnonsense\r\n\r\n",
        "a folded header": get + b"Host: 127.0.0.1\r\nX-A: a\r\n b\r\n\r\n",
        "NUL in a header": get + b"Host: 127.0.0.1\r\nX-A: a\0b\r\n\r\n",
        "no host": get + b"\r\n",
        "two hosts": get + b"Host: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        "10,000 form parts": audio + b"Content-Length: %d\r\n\r\n" % (len(parts) + 5) + parts + b"--b--",
        "a form without an end": audio + b"Content-Length: 60\r\n\r\n" + parts[:60],
        "a form without a boundary": audio.replace(b"; boundary=b", b"") + b"Content-Length: 4\r\n\r\nabcd",
        "a boundary of 10 kB": audio.replace(b"=b\r", b"=" + b"b" * 10_000 + b"\r") + b"Content-Length: 4\r\n\r\nabcd",
        "10,000 ranges": get + b"Host: 127.0.0.1\r\nRange: bytes=" + b",".join([b"0-1"] * 10_000) + b"\r\n\r\n",
        "a compressed body": head + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\0\0",
        **{f"host {name!r}": get + b"Host: %s\r\n\r\n" % name for name in hosts},
    }  # fmt: skip


def bad_lines(scale: Scale) -> Iterator[Row]:
    with gateway("admin") as (world, root, key):
        paths = sorted({path for _, path in served_paths(world.app.routes) if path not in OPEN})
        yield from lines_against(root, paths if scale == "long" else paths[::20], key, "uvicorn")


def lines_against(root: str, paths: Sequence[str], key: str, server: str) -> Iterator[Row]:
    """T6 on whatever serves the API at `root`, with and without an admin's key for what only the form is wrong of."""
    wrong, tried, smuggled = [], 0, 0
    for request in strange_lines(paths):
        tried += 1
        wrong += _verdict(request, speak(root, request))
    yield Row("T6", f"request lines not quite right, {server}", f"{tried:,}", _figure(wrong), "no way in", not wrong)
    wrong, tried = [], 0
    for name, request in broken_lines().items():
        keyed = request.replace(b"\r\n", b"\r\nAuthorization: Bearer " + key.encode() + b"\r\n", 1)
        for sent in (request, keyed) if name[:4] != "host" else (request,):
            tried += 1
            heard = speak(root, sent, LONG if b"HTTP" in sent else SHORT, more=0.2)
            smuggled += heard.answers > 1
            if heard.tells or (heard.status or 0) >= 500 or (sent is request and heard.status == 200):
                wrong.append(f"{name}: {heard.status} {heard.tells}")
            if speak(root, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").status != 200:
                wrong.append(f"{name}: dead afterwards")
    goal = "4xx or closed, alive after each"
    yield Row("T6", f"requests that are hardly HTTP, {server}", f"{tried}", _figure(wrong), goal, not wrong)
    yield Row("T6", f"requests inside requests, {server}", f"{tried}", f"{smuggled} answered", "0", smuggled == 0)
    twice = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2
    heard = speak(root, twice, more=0.3)
    what = f"two honest requests on one line count as two, {server}"
    yield Row("T6", what, "1", f"{heard.answers}", "2", heard.answers == 2, control=True)


def _verdict(request: bytes, heard: Said) -> list[str]:
    line = request.split(b"\r\n")[0].decode("latin-1")
    if heard.status == 0 or (heard.status is not None and 400 <= heard.status < 500 and not heard.tells):
        return []
    return [f"{line[:80]}: {heard.status} {heard.tells}"]


# --- who gets in ---


def served_paths(routes: Sequence[BaseRoute]) -> list[tuple[str, str]]:
    """Method and path of everything that is answered, mounts and web sockets too, parameters filled in."""
    found = []
    for route in routes:
        nested = getattr(getattr(route, "original_router", None), "routes", None) or getattr(route, "routes", None)
        if nested:
            prefix = getattr(route, "path", "") if not hasattr(route, "original_router") else ""
            found += [(method, prefix + path) for method, path in served_paths(nested)]
            continue
        path = str(getattr(route, "path", ""))
        for hole, value in FILL.items():
            path = path.replace(hole, value)
        path = re.sub(r"\{[^}]*\}", "x", path)
        found += [(method, path) for method in getattr(route, "methods", None) or ("GET",)]
    return found


def near(path: str) -> list[str]:
    """Other ways to write the same address, or nearly."""
    others = {path.replace("/", "//", 1), path.replace("/", "%2f"), path.upper(), "/v1/.." + path, "/%2e%2e" + path}
    return sorted(others | {path + end for end in ("/", "%20", "?key=1", ";x", "%00", "#")})


def wrong_keys(world: World, good: str) -> dict[str, list[tuple[str, str]]]:
    """Headers that open nothing, by name."""
    hour = timedelta(hours=1)
    now, world.log.now = world.log.now, lambda: datetime.now(UTC) - 3 * hour
    _, expired = world.log.create_key("late", ["admin"], expires=datetime.now(UTC) - hour)
    world.log.now = now
    gone, revoked = world.log.create_key("gone", ["admin"])
    world.log.revoke_key(gone.id)
    id, secret = good.split("-", 2)[1:]
    texts = {
        "unknown": "Bearer mm-000000000000-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "expired": f"Bearer {expired}",
        "revoked": f"Bearer {revoked}",
        "another's secret": f"Bearer mm-{gone.id}-{secret}",
        "the id alone": f"Bearer mm-{id}-",
        "cut": f"Bearer {good[:-1]}",
        "longer": f"Bearer {good}A",
        "basic": f"Basic {good}",
        "bare": good,
        "SQL": "Bearer mm-' OR '1'='1-x",
        "SQL with an id": f"Bearer mm-{id}'--{secret}",
        "a comment": f"Bearer mm-{id}-{secret}/*",
        "a NUL": f"Bearer {good}\\x00",
        "a megabyte": "Bearer " + "m" * 60_000,
        "percent": f"Bearer {good.replace('-', '%2d')}",
        "upper case": f"Bearer {good.upper()}",
        "json": f'Bearer {{"$ne": "{id}"}}',
        "none": "Bearer None",
        "empty": "",
    }
    named = {name: [("authorization", text)] for name, text in texts.items() if text.swapcase() != good}
    return named | {
        "no key": [],
        "two keys": [("authorization", f"Bearer {good}"), ("authorization", f"Bearer {good}")],
        "another header": [("x-api-key", good), ("api-key", good), ("cookie", f"key={good}")],
        "a proxy's header": [("proxy-authorization", f"Bearer {good}"), ("x-forwarded-for", "127.0.0.1")],
    }


def who_gets_in(scale: Scale) -> Iterator[Row]:
    with gateway("admin") as (world, root, key):
        routes = [(method, path) for method, path in served_paths(world.app.routes) if path not in OPEN]
        asked = [(name, method, path) for name in wrong_keys(world, key) for method, path in routes]
        asked = asked if scale == "long" else [*asked[: len(routes)], *asked[len(routes) :: 11]]
        asked += [("unknown", m, address) for m, path in routes for address in near(path)[:: _every(scale)]]
        yield _row(
            "T13", f"{len(routes)} routes, keys that open nothing", asked, _opened(root, asked, wrong_keys(world, key))
        )
        shut = [(m, p) for m, p in routes if _status(root, m, p, [("authorization", f"Bearer {key}")]) in (401, 403)]
        yield Row("T13", "an admin's key gets past the door", f"{len(routes)} routes", f"{len(shut)} refused", "0",
                  not shut, control=True)  # fmt: skip
    with gateway("chat") as (world, root, key):
        rights = [
            (m, p) for m, p in served_paths(world.app.routes) if guard.needed_for(m, p) not in (guard.OPEN, "chat")
        ]
        mine = {"scope": [("authorization", f"Bearer {key}")]}
        asked = [("scope", method, path) for method, path in rights]
        yield _row("T13", "a key for chat at what takes another scope", asked, _opened(root, asked, mine))


def _every(scale: Scale) -> int:
    return 1 if scale == "long" else 6


def _opened(root: str, asked: Sequence[tuple[str, str, str]], keys: dict[str, list[tuple[str, str]]]) -> list[str]:
    found = [(name, method, path, _status(root, method, path, keys[name])) for name, method, path in asked]
    return [f"{n}: {m} {p}: {status}" for n, m, p, status in found if status not in (0, 400, 401, 403, 431)]


def _status(root: str, method: str, path: str, headers: Sequence[tuple[str, str]]) -> int | None:
    told = "".join(f"{name}: {value}\r\n" for name, value in headers)
    line = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n{told}\r\n"
    return speak(root, line.encode("latin-1"), LONG).status


def _row(test: str, what: str, asked: Sequence[object], wrong: Sequence[str]) -> Row:
    return Row(test, what, f"{len(asked):,} requests", _figure(wrong), "refused each", not wrong and bool(asked))


def tenants_apart(scale: Scale) -> Iterator[Row]:
    """T14: each thing that one tenant has, asked for and rated by another, and by one with a forged id."""
    with gateway() as (world, root, mine), httpx.Client(base_url=root, timeout=30) as client:
        _, yours = world.log.create_key("other", ["chat", "rate"])
        me, you = ({"authorization": f"Bearer {key}"} for key in (mine, yours))
        marker, leaks, tried = "marker-of-a-tenant", [], 0
        asked = said(marker, user=marker, seed=7)
        id = client.post(CHAT, json=asked, headers={**me, "idempotency-key": "same"}).raise_for_status().json()["id"]
        client.post("/v1/feedback", json={"completion_id": id, "score": 1, "comment": marker}, headers=me)
        before = world.log.ratings(id)
        also = client.post(CHAT, json=said("mine"), headers=you).json()["id"]
        forged = [
            id[:-1] + ("A" if id[-1] != "A" else "B"),
            id[:-16] + also[-16:],
            also[:-16] + id[-16:],
            id + "=",
            id.lower(),
        ]
        for which in (id, *forged):
            for method, path, body in (
                ("GET", f"/v1/routing/{which}", None),
                ("GET", f"/v1/feedback?completion_id={which}", None),
                ("DELETE", f"/v1/feedback?completion_id={which}", None),
                ("POST", "/v1/feedback", {"completion_id": which, "score": 0}),
                ("POST", "/v1/feedback", {"completion_id": which, "target": "expert", "expert": "parrot", "score": 0}),
                ("POST", "/v1/feedback",
                 {"completion_id": also, "target": "comparison", "preferred": which, "rejected": ["parrot"]}),
            ):  # fmt: skip
                tried += 1
                reply = client.request(method, path, json=body, headers=you)
                if reply.status_code not in (403, 404) or marker in reply.text:
                    leaks.append(f"{method} {path}: {reply.status_code}")
        for path in (
            "/v1/routing",
            "/v1/feedback/stats",
            "/v1/feedback/export",
            "/v1/gate",
            "/v1/models",
            "/v1/experts",
        ):
            tried += 1
            if marker in client.get(path, headers=you).text:
                leaks.append(path)
        again = client.post(
            CHAT, json=asked | {"messages": said("x")["messages"]}, headers={**you, "idempotency-key": "same"}
        )
        leaks += (
            ["a replay with another's idempotency key"] if marker in again.text or again.json().get("id") == id else []
        )
        leaks += ["a rating was changed"] if world.log.ratings(id) != before else []
        yield Row("T14", "what is another tenant's", f"{tried + 1} requests", _figure(leaks), "0 leaks", not leaks)
        own = client.get(f"/v1/routing/{id}", headers=me)
        yield Row("T14", "its own tenant sees the marker", "1 request", str(own.status_code), "200", marker in own.text,
                  control=True)  # fmt: skip


def _figure(wrong: Sequence[str]) -> str:
    return f"{len(wrong)} wrong" + "".join(f"; {each}" for each in wrong[:3])


DRILLS = (bad_bodies, bad_lines, who_gets_in, tenants_apart)
