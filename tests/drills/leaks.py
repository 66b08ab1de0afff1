"""T24, T25, and T5, T6 again: strangers' words on the whole product, and what is secret in all that it leaves behind.

Ray's own logs, files and metrics are looked through as well, and its proxy stands in front of the gateway. The store is
PostgreSQL where it is installed, so that its address holds a password.
"""

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import postgres
import psutil
from api_world import said

from drills import arena
from drills.row import Row, Scale
from drills.surface import CHAT, bodies_against, lines_against
from multimoe.config import parse
from multimoe.feedback import FeedbackLog

HOSTILE = (
    "a\r\nb",
    '{"level":"error","event":"forged"}',
    "\n" + json.dumps({"event": "forged"}) + "\n",
    "\x1b[2J\x1b[31mred",
    "\u2028\u2029\u0085\u202e",
    "x" * 100_000,
    "%n%s%d%(name)s {} {0.__class__}",
    "${jndi:ldap://h/x}",
)
MARKER = "marker-of-a-prompt"
PATHS = ("/v1/models", "/v1/experts", "/v1/gate", "/v1/routing", "/v1/feedback", "/metrics", "/docs", "/openapi.json",
         "/v1/limits", "/version", "/ui/", "/v1/nothing")  # fmt: skip


def behind_the_proxy(scale: Scale) -> Iterator[Row]:
    """What `surface` tries on uvicorn, by way of Ray Serve's own proxy."""
    with arena.place() as home:
        tree = arena.catalog(home, replicas=1, gateways=1, names=("parrot",))
        tree["server"]["keys"] = "required"
        key = _key(tree)
        with arena.product(tree, key) as found:
            paths = [path for path in PATHS if path != "/ui/"]
            chats = (CHAT,) if scale == "quick" else (CHAT, "/v1/route", "/v1/embeddings", "/v1/feedback")

            def memory() -> int:
                return found.memory("ServeReplica:gateway:") + found.memory("ProxyActor")

            yield from bodies_against(found.url, chats, key, scale, "Serve", memory)
            yield from lines_against(found.url, paths if scale == "long" else paths[:2], key, "Serve")


def left_behind(scale: Scale) -> Iterator[Row]:
    with arena.place() as home, ExitStack() as open_things:
        tree = arena.catalog(home, replicas=1, gateways=1, names=("parrot",))
        upstream, password = f"upstream-{secrets.token_hex(12)}", secrets.token_hex(12)
        tree["server"]["keys"] = "required"
        tree["store"] = {"keep_text": False}
        if postgres._program("initdb"):
            url = open_things.enter_context(postgres.running()).fresh()
            tree["store"]["url"] = url.replace("multimoe@", f"multimoe:{password}@")
        tree["experts"].append(_hosted(open_things.enter_context(_tattler())))
        key = _key(tree)
        with arena.product(tree, key, TATTLER_KEY=upstream) as found, httpx.Client(timeout=60) as client:
            client.headers["authorization"] = f"Bearer {key}"
            asked, heard = _asked(client, found)
            yield _lines(found, asked)
            heard += _looked_at(client, found)
            files = _files(found)
            hidden = {
                "a key": key.split("-", 2)[2], "a hosted model's key": upstream, "Ray's token": arena.TOKEN,
                "the store's password": password,
            }  # fmt: skip
            kept = files | _rows(tree["store"].get("url"))
            texts = kept | dict(enumerate(heard))
            hits = {name: where for name, secret in hidden.items() if (where := holding(secret, texts))}
            hits |= {"a question": where} if (where := holding(MARKER, kept)) else {}
            megabytes = sum(map(len, texts.values())) / 2**20
            yield Row(
                "T25",
                "secrets in logs, files, answers, metrics, the store, and Ray's session folder",
                f"{len(hidden) + 1} in {len(files)} files, {len(texts) - len(files)} texts, {megabytes:.0f} MiB",
                f"{sum(map(len, hits.values()))} found"
                + "".join(f"; {name} in {where[:3]}" for name, where in hits.items()),
                "0",
                not hits and len(files) > 50,
            )
            texts["planted"] = quote(key).encode()
            seen = len(holding(hidden["a key"], texts)) - len(hits.get("a key", ()))
            yield Row("T25", "a key planted in a log", "1", f"{seen} found", "1", seen == 1, control=True)


def holding(secret: str, texts: dict[Any, bytes]) -> list[Any]:
    """Which of them have it in them, as it is or as JSON or a URL would write it."""
    forms = {secret.encode(), quote(secret).encode(), json.dumps(secret)[1:-1].encode()}
    return [name for name, text in texts.items() if any(form in text for form in forms)]


def _asked(client: httpx.Client, found: arena.Product) -> tuple[int, list[bytes]]:
    """How many requests were sent, and every refusal."""
    asked, refused = 0, []
    for text in HOSTILE:
        short = text[:50]
        for body in (said(text[:5000]), said("hi", model=text[:1000]), said("hi", user=text[:100])):
            client.post(found.url + CHAT, json=body, headers={"x-request-id": quote(short)})
        client.get(f"{found.url}/v1/models/{quote(text[:500])}")
        part = {"file": (short, b"RIFF", "audio/wav")}
        client.post(f"{found.url}/v1/audio/transcriptions", files=part, data={"model": short})
        asked += 5
    for mode in ("ok", "crash", "errs", "bytes", "kind"):
        found.mood("parrot", mode=mode)
        for body in (said(MARKER), said(MARKER, stream=True), said(MARKER, model="multimoe/tattler")):
            reply = client.post(found.url + CHAT, json=body)
            asked += 1
            refused += [] if reply.is_success else [reply.content]
    found.mood("parrot")
    for body in (said(MARKER, temperature="hot"), {"messages": MARKER}):
        refused.append(client.post(found.url + CHAT, json=body).content.replace(MARKER.encode(), b""))
        asked += 1
    return asked, refused


def _lines(found: arena.Product, asked: int) -> Row:
    """Every line of the gateways' logs is one event, and no stranger wrote one."""
    arena.until(lambda: len(_events(found)) >= asked, 20, "every request is in the log")
    events = _events(found)
    requests = sum(one.get("event") == "request" and one.get("route") not in PATHS for one in events)
    forged = sum(one.get("event") == "forged" for one in events)
    broken = sum("broken" in one for one in events)
    return Row(
        "T24",
        "hostile words in questions, names, addresses, headers and file names",
        f"{asked} requests",
        f"{requests} lines for them, {forged} forged, {broken} that are no JSON",
        "a line each, 0, 0",
        requests == asked and forged == broken == 0,
    )


def _events(found: arena.Product) -> list[dict[str, Any]]:
    lines = [line for file in found.home.rglob("*.jsonl*") for line in file.read_text("utf-8").split("\n") if line]
    return [_event(line) for line in lines if "gateway" in line]


def _event(line: str) -> dict[str, Any]:
    with suppress(ValueError):
        return dict(json.loads(line))
    return {"broken": line}


def _looked_at(client: httpx.Client, found: arena.Product) -> list[bytes]:
    """What the API, the page and the ports of Ray's metrics say."""
    heard = []
    for path in PATHS:
        reply = client.get(found.url + path)
        heard += [reply.content, str(dict(reply.headers)).encode()]
    for process in psutil.Process(found.process.pid).children(recursive=True):
        for place in _listening(process):
            with suppress(httpx.HTTPError):
                heard.append(httpx.get(f"http://127.0.0.1:{place}/metrics", timeout=2).content)
    return heard


def _listening(process: psutil.Process) -> list[int]:
    with suppress(psutil.Error):
        return [c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return []


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _files(found: arena.Product) -> dict[str, bytes]:
    """Of the product's folder and of Ray's; without those that are there to hold a secret."""
    started = psutil.Process(found.process.pid).children(recursive=True)
    (session,) = {a.partition("=")[2] for child in started for a in _words(child) if a.startswith("--temp-dir=")}
    meant = ("catalog.yaml", "ray-token-", "parrot")  # the last of them is the drill's own
    read: dict[str, bytes] = {}
    for file in (file for folder in (found.home, Path(session)) for file in folder.rglob("*")):
        with suppress(OSError):  # sockets, and what is gone meanwhile
            if file.is_file() and not file.is_symlink() and not file.name.startswith(meant):
                read[str(file)] = file.read_bytes()
    return read


def _rows(url: str | None) -> dict[str, bytes]:
    """Every row of a PostgreSQL store, as text."""
    if url is None:
        return {}
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as store:
        names = [name for (name,) in store.execute("select tablename from pg_tables where schemaname = 'public'")]
        return {f"table {name}": str(store.execute(f"select * from {name}").fetchall()).encode() for name in names}  # type: ignore[arg-type, call-overload]  # noqa: S608  # its own names


def _key(tree: dict[str, Any]) -> str:
    with FeedbackLog.open(parse(tree).store_url) as log:
        return log.create_key("me", ["chat", "rate", "admin"])[1]


def _hosted(url: str) -> dict[str, Any]:
    return {
        "name": "tattler",
        "backend": "experts.openai_api:OpenAI",
        "inputs": ["text"],
        "output": "text",
        "card": {"description": "A hosted model whose errors repeat the key."},
        "options": {"base_url": url, "model": "m", "api_key_env": "TATTLER_KEY"},
        "serve": {"num_replicas": 1},
    }


@contextmanager
def _tattler() -> Iterator[str]:
    """A server that refuses everything and repeats what it was sent, key and question."""

    class Tattler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = self.rfile.read(int(self.headers["content-length"])).decode()
            told = f"not with {self.headers['authorization']}: {question}"
            body = json.dumps({"error": {"message": told, "code": "x"}}).encode()
            self.send_response(500)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Tattler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


DRILLS = (behind_the_proxy, left_behind)
