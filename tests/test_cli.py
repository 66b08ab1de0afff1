"""The command line against a scripted gateway: what it prints, what it sends, and how it ends."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.cli.app import hoist
from gateway.cli.ask import number
from multimoe.errors import BadInput

INFO = {
    "completion_id": "chatcmpl-1",
    "gate": {"version": 7},
    "experts": [{"id": "multimoe/vision", "weight": 0.71, "prob": 0.6, "status": "ok"}],
    "considered": [{"id": "multimoe/code", "prob": 0.02}],
    "timing_ms": {"embed": 12.0, "experts": 30.0},
    "reason": ["image present"],
}
REPLY = {
    "id": "chatcmpl-1",
    "choices": [{"message": {"role": "assistant", "content": "Paris."}}],
    "x_multimoe": INFO,
}
CHUNKS: tuple[dict[str, Any], ...] = (
    {"choices": [{"delta": {"role": "assistant", "content": ""}}], "x_multimoe": INFO},
    {"choices": [{"delta": {"content": "Par"}}]},
    {"choices": [{"delta": {"content": "is."}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}], "x_multimoe": INFO | {"final": True}},
)
DONE = {
    "status": "done",
    "progress": 1.0,
    "message": "",
    "result": {"version": 8, "promoted": True, "reason": "better"},
}


class Gateway:
    """Answers each method and path with what `script` says, and keeps what was sent."""

    def __init__(self) -> None:
        self.script: dict[str, tuple[int, Any]] = {}
        self.sent: list[tuple[str, Any]] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                asked = f"{self.command} {self.path.split('?')[0]}"
                gateway.sent.append((asked, json.loads(self.rfile.read(length)) if length else None))
                status, body = gateway.script.get(
                    asked, (404, {"error": {"message": f"no {asked}", "code": "not_found"}})
                )
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--url", self.url])


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def stream(*chunks: dict[str, Any]) -> bytes:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in (*chunks,)).encode() + b"data: [DONE]\n\n"


def test_ask_streams_the_answer_to_stdout_and_who_gave_it_to_stderr(gateway: Gateway) -> None:
    gateway.script["POST /v1/chat/completions"] = (200, stream(*CHUNKS))
    done = gateway.run("ask", "capital of France?")
    assert (done.exit_code, done.stdout) == (0, "Paris.\n")
    assert done.stderr.split(" · ") == ["vision 71 %", "42 ms", "gate 7", "chatcmpl-1\n"]


def test_ask_as_json_prints_the_whole_reply(gateway: Gateway) -> None:
    gateway.script["POST /v1/chat/completions"] = (200, REPLY)
    done = gateway.run("ask", "capital of France?", "--json")
    assert json.loads(done.stdout) == REPLY


def test_ask_sends_files_as_parts_and_choices_as_options(gateway: Gateway, tmp_path: Path) -> None:
    (picture := tmp_path / "a.png").write_bytes(b"\x89PNG....")
    gateway.script["POST /v1/chat/completions"] = (200, REPLY)
    gateway.run("ask", "what?", "-a", str(picture), "--preset", "fast", "--expert", "vision", "--no-stream")
    body = gateway.sent[0][1]
    assert [part["type"] for part in body["messages"][0]["content"]] == ["text", "image_url"]
    assert (body["model"], body["x_multimoe"]) == ("multimoe:fast", {"experts": ["vision"]})


def test_route_shows_everyone_considered_and_asks_no_one(gateway: Gateway) -> None:
    gateway.script["POST /v1/route"] = (200, INFO)
    done = gateway.run("route", "what?")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["vision", "code"]
    assert [path for path, _ in gateway.sent] == ["POST /v1/route"]


def test_a_rating_for_one_expert_is_sent_as_such(gateway: Gateway) -> None:
    gateway.script["POST /v1/feedback"] = (201, {})
    gateway.run("rate", "chatcmpl-1", "down", "--expert", "vision")
    assert gateway.sent[0][1] == {"completion_id": "chatcmpl-1", "target": "expert", "expert": "vision", "score": 0.0}


@pytest.mark.parametrize("score", ["great", "1.5", "-0.1", "nan"])
def test_refuses_a_score_outside_its_range(score: str) -> None:
    with pytest.raises(BadInput, match="from 0 to 1"):
        number(score)


def test_training_that_promotes_nothing_exits_with_3(gateway: Gateway) -> None:
    result = {"version": 8, "promoted": False, "reason": "the interval crosses zero"}
    gateway.script["POST /v1/gate/train"] = (202, {"job_id": "j"})
    gateway.script["GET /v1/gate/jobs/j"] = (200, DONE | {"result": result})
    done = gateway.run("gate", "train")
    assert done.exit_code == 3
    assert "the interval crosses zero" in done.stdout


def test_training_that_promotes_exits_with_0(gateway: Gateway) -> None:
    gateway.script["POST /v1/gate/train"] = (202, {"job_id": "j"})
    gateway.script["GET /v1/gate/jobs/j"] = (200, DONE)
    done = gateway.run("gate", "train", "--json")
    assert (done.exit_code, json.loads(done.stdout)["version"]) == (0, 8)


def test_training_that_begins_a_trial_exits_with_0_and_says_so(gateway: Gateway) -> None:
    result = {"version": 8, "promoted": False, "proven": True, "stage": "canary", "reason": "better: +0.1"}
    gateway.script["POST /v1/gate/train"] = (202, {"job_id": "j"})
    gateway.script["GET /v1/gate/jobs/j"] = (200, DONE | {"result": result})
    done = gateway.run("gate", "train")
    assert (done.exit_code, done.stdout) == (
        0,
        "gate 8 is better and answers a share of requests first: better: +0.1\n",
    )


@pytest.mark.parametrize(
    ("proven", "told"), [(True, "kept, but was not put on trial"), (False, "kept but not promoted: held")]
)
def test_a_version_that_has_to_wait_is_not_promoted(gateway: Gateway, proven: bool, told: str) -> None:
    result = {"version": 8, "promoted": False, "proven": proven, "stage": "candidate", "reason": "held for a person"}
    gateway.script["POST /v1/gate/train"] = (202, {"job_id": "j"})
    gateway.script["GET /v1/gate/jobs/j"] = (200, DONE | {"result": result})
    done = gateway.run("gate", "train")
    assert done.exit_code == 3
    assert told in done.stdout


EARNED = {"ratings": 40, "gain": {"value": 0.05, "low": -0.1, "high": 0.2}}
TRIAL = {
    "version": 8,
    "stage": "canary",
    "share": 0.1,
    "since": "2026-11-01T10:00:00Z",
    "seen": {"requests": 200, "agreement": 0.7, "cost": {"champion": 0.001, "challenger": 0.002}},
    "earned": EARNED,
}
ON_TRIAL = {"version": 7, "challenger": TRIAL, "watch": {"against": 6, "enough": 200, "earned": EARNED}}


def test_status_tells_who_serves_who_is_on_trial_and_what_ratings_say(gateway: Gateway) -> None:
    gateway.script["GET /v1/gate"] = (200, ON_TRIAL)
    assert gateway.run("gate", "status").stdout.splitlines() == [
        "gate 7 serves",
        "  on probation: +0.050 (-0.10 to +0.20) on 40 rated answers of 200, against what gate 6 earned before",
        "gate 8 is in canary since 2026-11-01T10:00 and answers 10 % of requests",
        "  chooses as the champion on 70 % of 200 requests, at US$0.002 each instead of US$0.001",
        "  by ratings: +0.050 (-0.10 to +0.20) on 40 rated answers",
    ]
    assert json.loads(gateway.run("gate", "status", "--json").stdout) == ON_TRIAL
    gateway.script["GET /v1/gate"] = (200, {"version": 7, "challenger": None, "watch": None})
    assert gateway.run("gate", "status").stdout == "gate 7 serves\nno version is on trial\n"


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--canary", "0.1"], ("PUT /v1/gate/aliases/canary", {"version": 8, "share": 0.1})),
        (["--shadow"], ("PUT /v1/gate/aliases/shadow", {"version": 8})),
        ([], ("PUT /v1/gate/aliases/champion", {"version": 8})),
    ],
)
def test_a_version_is_promoted_at_once_or_put_on_trial(
    gateway: Gateway, words: list[str], asked: tuple[str, Any]
) -> None:
    gateway.script |= {"GET /v1/gate": (200, ON_TRIAL), asked[0]: (200, {})}
    assert gateway.run("gate", "promote", "8", *words).exit_code == 0
    assert asked in gateway.sent


@pytest.mark.parametrize("words", [["--canary", "0.1", "--shadow"], ["--canary", "0"], ["--canary", "0.9"]])
def test_a_trial_that_makes_no_sense_is_a_mistake_of_usage(gateway: Gateway, words: list[str]) -> None:
    assert gateway.run("gate", "promote", "8", *words).exit_code == 2
    assert all(path.startswith("GET") for path, _ in gateway.sent)


def test_a_trial_is_withdrawn(gateway: Gateway) -> None:
    quiet = {"version": 7, "challenger": None, "watch": None}
    gateway.script |= {"GET /v1/gate": (200, quiet), "DELETE /v1/gate/aliases/challenger": (200, quiet)}
    assert gateway.run("gate", "withdraw").stdout == "gate 7 serves\nno version is on trial\n"


def test_the_list_shows_each_version_s_stage_and_why_it_came_no_further(gateway: Gateway) -> None:
    versions = [
        {"version": 8, "stage": "withdrawn", "stage_reason": "as a canary it earned less", "reason": "better"},
        {"version": 7, "stage": "champion", "stage_reason": "by hand", "reason": "better: +0.1"},
    ]
    gateway.script["GET /v1/gate/versions"] = (200, {"data": versions})
    rows = gateway.run("gate", "list").stdout.splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [["8", "withdrawn"], ["7", "champion"]]
    assert ("as a canary it earned less" in rows[0], "better: +0.1" in rows[1]) == (True, True)


def test_a_failed_training_is_told_in_its_own_words(gateway: Gateway) -> None:
    gateway.script["POST /v1/gate/train"] = (202, {"job_id": "j"})
    gateway.script["GET /v1/gate/jobs/j"] = (200, DONE | {"status": "failed", "error": "12 ratings are too few"})
    done = gateway.run("gate", "train")
    assert done.exit_code == 1
    assert "12 ratings are too few" in done.stderr


def test_scaling_below_nothing_is_a_mistake_of_usage(gateway: Gateway) -> None:
    assert gateway.run("experts", "scale", "vision", "--min", "3", "--max", "1").exit_code == 2
    assert gateway.sent == []


def test_an_expert_is_checked_here_before_it_is_sent(gateway: Gateway, tmp_path: Path) -> None:
    (file := tmp_path / "e.yaml").write_text("name: late\nbackend: experts.echo:Echo\ninput: [text]\noutput: text\n")
    done = gateway.run("experts", "add", str(file))
    assert done.exit_code == 1
    assert "did you mean 'inputs'" in done.stderr
    assert gateway.sent == []


def test_export_writes_a_file_whole_or_not_at_all(gateway: Gateway, tmp_path: Path) -> None:
    gateway.script["GET /v1/feedback/export"] = (200, b'{"a":1}\n')
    assert gateway.run("feedback", "export", "-o", str(tmp_path / "all.jsonl")).exit_code == 0
    assert (tmp_path / "all.jsonl").read_bytes() == b'{"a":1}\n'
    gateway.script.clear()
    assert gateway.run("feedback", "export", "-o", str(tmp_path / "none.jsonl")).exit_code == 1
    assert not (tmp_path / "none.jsonl").exists()


def test_a_refusal_is_one_sentence_without_a_traceback(gateway: Gateway) -> None:
    body = {"error": {"message": "no expert 'visoin'; did you mean 'vision'?", "code": "not_found"}}
    gateway.script["GET /v1/experts/visoin"] = (404, body)
    done = gateway.run("experts", "show", "visoin")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: no expert 'visoin'; did you mean 'vision'?\n"


def test_no_server_exits_with_4_and_says_what_to_start() -> None:
    done = CliRunner().invoke(app, ["experts", "list", "--url", "http://127.0.0.1:9"])
    assert done.exit_code == 4
    assert "multimoe serve" in done.stderr


def offline(tmp_path: Path, *words: str) -> Result:
    """A command with a catalog whose server does not run."""
    catalog = {
        "home": str(tmp_path),
        "server": {"port": 9},
        "gate": {"encoders": {}},
        "experts": [
            {"name": "e", "backend": "a:B", "inputs": ["text"], "output": "text", "card": {"description": "Any."}}
        ],
    }
    (file := tmp_path / "catalog.yaml").write_text(json.dumps(catalog))
    return CliRunner().invoke(app, [*words, "--catalog", str(file)])


def test_gate_versions_are_read_from_their_folders_when_no_server_runs(tmp_path: Path) -> None:
    done = offline(tmp_path, "gate", "list", "--json")
    assert [(v["version"], v["aliases"]) for v in json.loads(done.stdout)] == [(0, ["champion"])]
    assert "working on" in done.stderr


def test_a_rollback_with_nothing_before_is_refused_without_a_server_too(tmp_path: Path) -> None:
    done = offline(tmp_path, "gate", "rollback")
    assert done.exit_code == 1
    assert "go back to" in done.stderr


def test_a_trial_is_prepared_and_ended_without_a_server(tmp_path: Path) -> None:
    from multimoe.checkpoint import Manifest, Registry
    from multimoe.quality import Learned

    Registry(tmp_path / "gates").write(Learned().rows(["e"]), Manifest(reason="better"))
    done = offline(tmp_path, "gate", "promote", "1", "--canary", "0.2")
    assert "gate 1 is in canary" in done.stdout
    assert "answers 20 % of requests" in done.stdout
    assert (
        "no version is on trial"
        in offline(tmp_path, "gate", "rollback").stdout + offline(tmp_path, "gate", "status").stdout
    )
    versions = json.loads(offline(tmp_path, "gate", "list", "--json").stdout)
    assert [(v["version"], v["stage"]) for v in versions] == [(1, "withdrawn"), (0, "champion")]
    assert offline(tmp_path, "gate", "withdraw").exit_code == 1


def test_a_named_server_that_is_away_is_not_replaced_by_the_folders() -> None:
    assert CliRunner().invoke(app, ["gate", "list", "--url", "http://127.0.0.1:9"]).exit_code == 4


def test_debug_shows_where_an_error_came_from() -> None:
    done = CliRunner().invoke(app, ["experts", "list", "--debug", "--url", "http://127.0.0.1:9"])
    assert done.exception is not None
    assert not isinstance(done.exception, SystemExit)


def test_a_catalog_that_is_wrong_is_explained(tmp_path: Path) -> None:
    (file := tmp_path / "c.yaml").write_text("gate: {encoders: {}}\nexpert: []\n")
    done = CliRunner().invoke(app, ["config", "validate", "--catalog", str(file)])
    assert done.exit_code == 1
    assert "did you mean 'experts'" in done.stderr


def test_common_options_may_follow_the_command_but_not_a_double_dash() -> None:
    assert hoist(["ask", "a", "--url", "u", "--debug"]) == ["--url", "u", "--debug", "ask", "a"]
    assert hoist(["ask", "--url=u", "a"]) == ["--url=u", "ask", "a"]
    assert hoist(["ask", "--", "--url", "u"]) == ["ask", "--", "--url", "u"]
    assert hoist(["ask", "--url"]) == ["--url", "ask"]


def test_light_commands_load_nothing_heavy() -> None:
    heavy = "('torch', 'ray', 'gradio', 'transformers', 'sqlalchemy', 'av', 'openai')"
    code = f"import sys, gateway.cli, gateway.client; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
