"""The log: one line of JSON an event whatever is asked, the facts of each request, and nothing secret anywhere."""

import errno
import io
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from api_world import World, said
from drills import leaks
from drills.surface import served_paths

from gateway import logs
from gateway.logs import File, Lines, plain, secrets_in
from multimoe.checkpoint import Manifest
from multimoe.errors import Unavailable
from multimoe.feedback import FeedbackLog
from multimoe.quality import Learned

CHAT = "/v1/chat/completions"
HOSTILE = (*leaks.HOSTILE, "x" * 1_000_000, "\ud800", "\0")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the product's loggers write while a test runs."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines())
    loggers = [logging.getLogger(name) for name in logs.OURS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield stream
    for logger, level in zip(loggers, before, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def events(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().split("\n")[:-1]]


def one_line(message: str, *args: Any, **extra: Any) -> str:
    record = logging.getLogger("gateway").makeRecord("gateway", 20, "f", 1, message, args, None, extra=extra)
    return Lines().format(record)


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_is_logged_is_one_line_of_json_of_bounded_length(text: str) -> None:
    for line in (
        one_line(text),
        one_line("said %s", text),
        one_line(text, 1),
        one_line("event", extra=text, **{"a b": [text] * 90, "deep": {text: {"x": text}}}),
    ):
        assert len(line.encode()) <= logs.LINE_BYTES
        assert line.isprintable()
        assert json.loads(line)["logger"] == "gateway"


async def test_a_request_is_one_event_with_its_facts(world, written):
    key, sent = world.log.create_key("ann", ["chat"])
    headers = {"authorization": f"Bearer {sent}", "x-request-id": "find-me"}
    async with world.client() as client:
        await client.post(CHAT, json=said("hello"), headers=headers)
        await client.get("/v1/nothing/here?api_key=" + sent, headers={"x-request-id": "lost"})
        await client.get("/health")
    answered, refused = events(written)
    told = {name: answered[name] for name in ("event", "request_id", "route", "status", "key", "experts", "gate")}
    assert told == {
        "event": "request",
        "request_id": "find-me",
        "route": CHAT,
        "status": 200,
        "key": key.id,
        "experts": "multimoe/parrot;w=1",
        "gate": "0",
    }
    assert answered["ms"] > 0
    assert (refused["request_id"], refused["route"], refused["status"]) == ("lost", None, 401)
    assert sent not in written.getvalue()


async def test_lines_are_as_many_as_requests_whatever_is_asked(world, written):
    asked = 0
    async with world.client() as client:
        for text in HOSTILE:
            clean = text.encode("utf-8", "replace").decode()
            for body in (said(clean[:1000]), said("hi", model=clean[:1000]), said("hi", user=clean[:100])):
                await client.post(CHAT, json=body, headers={"x-request-id": clean[:50].encode()})
                asked += 1
            await client.get("/v1/models/" + quote(clean[:500]))
            part = {"file": (clean[:50], b"RIFF", "audio/wav")}
            await client.post("/v1/audio/transcriptions", files=part, data={"model": clean[:50]})
            asked += 2
    found = events(written)
    assert sum(one["event"] == "request" for one in found) == asked
    assert not any(one["event"] == "forged" for one in found)
    assert all(line.isprintable() for line in written.getvalue().split("\n"))


async def test_a_crash_is_told_in_the_log_with_its_trace_and_without_the_secrets_in_it(world, written):
    _, key = world.log.create_key("ann", ["chat"])
    world.gate.failure = RuntimeError(f"refused Bearer {key} at postgresql://moe:hunter22@db/x with api_key='abcd1234'")
    async with world.client() as client:
        await client.post(CHAT, json=said("hi"), headers={"authorization": f"Bearer {key}"})
    crash = next(one for one in events(written) if one["event"] == "request failed")
    assert crash["error_type"] == "RuntimeError"
    assert "Traceback" in crash["trace"]
    for secret in (key, key.split("-", 2)[2], "hunter22", "abcd1234"):
        assert secret not in written.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mm-0123456789ab-Abcdefgh_ijkl-mn", "mm-0123456789ab-***"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("postgresql+psycopg://moe:pa55@h/db", "postgresql+psycopg://moe:***@h/db"),
        ("{'api_key': 'abcdefg'}", "{'api_key': '***'}"),
        ("token=abcdefg&x=1", "token=***&x=1"),
        ("sk-abcdefghijkl", "sk-***"),
        ("tokens: 17, a secretary, the monkey", "tokens: 17, a secretary, the monkey"),
    ],
)
def test_what_looks_like_a_secret_is_blacked_out_and_nothing_else(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_secrets_a_process_holds_are_blacked_out_word_for_word() -> None:
    hidden = secrets_in(
        {"OPENAI_API_KEY": "plainword\n", "RAY_AUTH_TOKEN": "f" * 64, "HOME": "/home"}, "pg://u:p%40ss77@h/x"
    )
    record = logging.getLogger("g").makeRecord("g", 20, "f", 1, f"got plainword {'f' * 64} p%40ss77 /home", (), None)
    assert json.loads(Lines(hidden).format(record))["event"] == "got *** *** *** /home"


def test_a_store_that_cannot_be_reached_is_told_without_its_password(written: io.StringIO) -> None:
    def use() -> None:
        with FeedbackLog.open("postgresql+psycopg://moe:hunter22@127.0.0.1:9/none") as log:
            log.all_keys()

    with pytest.raises(Unavailable) as told:
        use()
    assert "hunter22" not in str(told.value) + repr(told.value) + written.getvalue()


def _write(path: Path, who: int, lines: int, most: int) -> None:
    handler = File(path, most)
    handler.setFormatter(Lines())
    for number in range(lines):
        handler.emit(logging.LogRecord("g", 20, "f", 1, f"{who}/{number} " + "x" * 500, (), None))
    handler.close()


def test_processes_share_a_file_and_turn_it_over_without_losing_or_tearing_a_line(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "gateway.jsonl"
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_write, args=(path, who, 150, 60_000)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    files = sorted(path.parent.glob("gateway.jsonl*"))
    assert 3 <= len(files) <= 1 + logs.KEPT
    found = [json.loads(line)["event"].split()[0] for file in files for line in file.read_text().splitlines()]
    assert sorted(found) == sorted(f"{who}/{number}" for who in range(3) for number in range(150))
    assert path.stat().st_mode & 0o077 == 0


def test_a_process_that_starts_its_log_writes_there_and_warnings_to_standard_error(tmp_path: Path) -> None:
    program = (
        "import logging, pathlib, sys; from gateway import logs; home = pathlib.Path(sys.argv[1]);"
        "logs.start(home / 'logs/gateway.jsonl', ['hidden!']); logs.start(home / 'again');"
        "logging.getLogger('gateway.x').info('told'); logging.getLogger('other').info('not told');"
        "logging.getLogger('multimoe').warning('bad hidden!')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    (file,) = [file for file in (tmp_path / "logs").iterdir() if file.suffix == ".jsonl"]
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["told", "bad ***"]
    assert json.loads(done.stderr)["event"] == "bad ***"


def test_a_log_that_cannot_be_written_stops_nothing_and_goes_on_once_it_can(tmp_path, monkeypatch, capsys) -> None:
    file = File(tmp_path / "logs" / "x.jsonl")
    file.setFormatter(Lines())
    told = logging.makeLogRecord({"msg": "told", "levelno": logging.INFO})

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file.handle(told)
    shutil.rmtree(tmp_path / "logs")
    file.handle(told)
    assert len((tmp_path / "logs" / "x.jsonl").read_text().splitlines()) == 1
    (tmp_path / "logs" / "x.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        for _ in range(3):
            file.handle(logging.makeLogRecord({"msg": "hush", "levelno": logging.INFO}))
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space" in json.loads(line)["error"]
    assert "hush" not in line
    file.handle(told)
    assert len((tmp_path / "logs" / "x.jsonl").read_text().splitlines()) == 1
    file.close()


def holding(secret: str, *artefacts: bytes) -> int:
    """How many of them have it in them."""
    return len(leaks.holding(secret, dict(enumerate(artefacts))))


async def test_no_secret_comes_out_in_any_answer_log_or_file(tmp_path, written):
    world = World(tmp_path / "home", store={"keep_text": False})
    _, key = world.log.create_key("ann", ["chat", "rate", "admin"])
    marker, upstream = "marker-of-a-prompt", "secret-key"  # the second one stands in the catalog's options
    headers = {"authorization": f"Bearer {key}"}
    said_back: list[bytes] = []
    async with world.client() as client:
        for body in (
            said(marker),
            said(marker, model="multimoe/broken"),
            said(marker, model=7),
            said(marker, stream=True),
        ):
            reply = await client.post(CHAT, json=body, headers=headers)
            said_back += [reply.content] if not reply.is_success else []
        world.gate.failure = RuntimeError(f"Bearer {key}")
        said_back.append((await client.post(CHAT, json=said(marker), headers=headers)).content)
        world.gate.failure = None
        world.registry.write(Learned().rows(["parrot"]), Manifest(reason="better"))
        for method, path in served_paths(world.app.routes):
            if method == "GET" and "events" not in path:
                reply = await client.get(path.replace("/experts/x", "/experts/eye"), headers=headers)
                said_back += [reply.content, str(dict(reply.headers)).encode()]
    world.log.close()
    kept = [file.read_bytes() for file in world.catalog.home.rglob("*") if file.is_file()]
    artefacts = [*said_back, *kept, written.getvalue().encode()]
    assert len(artefacts) > 40
    assert {secret: holding(secret, *artefacts) for secret in (key, key.split("-", 2)[2], upstream, marker)} == {
        key: 0,
        key.split("-", 2)[2]: 0,
        upstream: 0,
        marker: 0,
    }
    planted = f'{{"event": "leaked {key} and {marker}"}}'.encode()
    assert holding(key, *artefacts, planted) == holding(marker, *artefacts, planted) == 1
