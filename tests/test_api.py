import asyncio
import base64
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
from api_world import Broken, Sloth, World, audio_part, image_part, said, wav

from gateway.api import gates
from multimoe.checkpoint import Registry
from multimoe.errors import Conflict, ExpertTimeout, Unavailable
from multimoe.examples import read
from multimoe.journal import Place

CHAT = "/v1/chat/completions"


async def chunks(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any] | str]:
    """The `data:` of every frame, parsed but for [DONE]."""
    async with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The OpenAI error, whose shape every refusal has."""
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert response.headers["x-request-id"]
    return error


async def test_an_answer_has_openai_s_shape_and_says_who_gave_it(client, world):
    response = await client.post(CHAT, json=said("one two three"))
    body = response.json()
    routing = body["x_multimoe"]

    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert (body["model"], body["system_fingerprint"]) == ("multimoe/parrot", "gate-0")
    assert (body["usage"]["total_tokens"], body["usage"]["cost"]) == (6, 0.001)
    assert (routing["schema"], routing["completion_id"], routing["final"]) == (1, body["id"], True)
    assert routing["gate"] == {"version": 0, "alias": "champion"}
    assert (routing["propensity"], routing["reason"]) == (0.25, ["it was set so"])
    assert routing["experts"][0] | {"latency_ms": 0} == {
        "id": "multimoe/parrot",
        "weight": 1.0,
        "prob": pytest.approx(1 / 3),
        "quality": 0.5,
        "status": "ok",
        "role": "answer",
        "latency_ms": 0,
        "cost": 0.001,
        "error": None,
        "reason": None,
        "output": None,
        "inside": [],
    }
    assert {"embed", "route", "experts", "total"} <= set(routing["timing_ms"])
    assert len(body["id"].removeprefix("chatcmpl-")) >= 24


async def test_an_answer_cut_short_says_so(client):
    choice = (await client.post(CHAT, json=said("one two three", max_tokens=2))).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "length")
    *_, last, _ = await chunks(client, said("one two three", max_tokens=2))
    assert last["choices"][0]["finish_reason"] == "length"


async def test_headers_say_who_answered(client):
    sent = {"x-request-id": "mine-1"}
    headers = (await client.post(CHAT, json=said("hello"), headers=sent)).headers
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-multimoe-completion-id"].startswith("chatcmpl-")
    assert headers["x-multimoe-experts"] == "multimoe/parrot;w=1"
    assert (headers["x-multimoe-gate"], headers["x-multimoe-path"]) == ("0", "single")
    assert float(headers["x-multimoe-cost"]) == 0.001
    assert int(headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize("sent", ["a\tb", "x" * 129, "<script>", "\u00e9"])
async def test_a_request_id_that_could_do_harm_is_replaced(client, sent):
    response = await client.get("/health", headers={"x-request-id": sent.encode()})
    assert response.headers["x-request-id"].startswith("req-")


async def test_a_stream_tells_who_answers_then_the_words_then_the_bill(client):
    first, *words, last, done = await chunks(client, said("one two three"))

    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["selected_model_id"] == "multimoe/parrot"
    assert first["x_multimoe"]["experts"][0]["status"] == "chosen"
    assert first["x_multimoe"]["final"] is False
    assert [chunk["choices"][0]["delta"]["content"] for chunk in words] == ["one", " two", " three"]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["x_multimoe"]["final"] is True
    assert last["x_multimoe"]["experts"][0]["status"] == "ok"
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in (first, *words, last)}) == 1
    assert all("usage" not in chunk for chunk in (first, *words, last))


async def test_the_usage_chunk_comes_last_and_the_others_have_a_null(client):
    *rest, usage, done = await chunks(client, said("one two", stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert (usage["usage"]["total_tokens"], usage["usage"]["cost"]) == (4, 0.001)
    assert all(chunk["usage"] is None for chunk in rest)


async def test_metadata_can_be_switched_off(client):
    quiet = {"x-multimoe-metadata": "disabled"}
    assert "x_multimoe" not in (await client.post(CHAT, json=said("hi"), headers=quiet)).json()
    async with client.stream("POST", CHAT, json=said("hi", stream=True), headers=quiet) as response:
        assert b"x_multimoe" not in await response.aread()


async def test_a_refusal_before_a_stream_begins_has_a_status_of_its_own(client, world):
    world.gate.failure = Unavailable("the gate is starting; try again")
    response = await client.post(CHAT, json=said("hi", stream=True))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert error_of(response)["code"] == "overloaded"


async def test_an_error_inside_a_stream_is_its_last_frame(client, world):
    *_, last = await chunks(client, said("hi", model="multimoe/broken"))
    assert last["error"]["code"] == "expert_failed"
    assert "/usr/lib" not in json.dumps(last)


async def test_an_expert_that_crashes_is_a_502_and_another_stands_in(client, world):
    alone = await client.post(CHAT, json=said("hi", model="multimoe/broken"))
    assert (alone.status_code, error_of(alone)["code"]) == (502, "expert_failed")
    assert "secret" not in alone.text

    world.gate.picks = ("broken",)
    helped = await client.post(CHAT, json=said("hi", x_multimoe={"exclude": ["sloth"]}))
    assert helped.status_code == 200
    assert helped.json()["x_multimoe"]["degraded"] is True
    assert helped.headers["x-multimoe-path"] == "fallback"


async def test_an_expert_that_cannot_be_loaded_is_replaced_too(client, world, monkeypatch):
    class Unloadable(Broken):
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("secret detail in /usr/lib/secret.py")

    monkeypatch.setattr("api_world.Broken", Unloadable)
    world.gate.picks = ("broken",)
    body = (await client.post(CHAT, json=said("hi", x_multimoe={"exclude": ["sloth"]}))).json()
    assert (body["choices"][0]["message"]["content"], body["x_multimoe"]["degraded"]) == ("hi", True)


async def test_a_request_past_its_deadline_is_a_504(tmp_path):
    world = World(tmp_path, limits={"request_seconds": 0.2})
    async with world.client() as client:
        response = await client.post(CHAT, json=said("hi", model="multimoe/sloth"))
    assert (response.status_code, error_of(response)["code"]) == (504, ExpertTimeout.code)
    assert Sloth.answering == 0
    assert world.log.interactions()[0].status == "error"


async def test_pictures_and_recordings_reach_their_experts(client):
    picture = [{"type": "text", "text": "what is it?"}, image_part()]
    seen = await client.post(CHAT, json=said(picture, model="multimoe/eye"))
    assert "12x8" in seen.json()["choices"][0]["message"]["content"]

    alone = await client.post(CHAT, json=said([audio_part()]))
    assert alone.json()["choices"][0]["message"]["content"] == "0.5 seconds"
    assert alone.json()["x_multimoe"]["modalities"] == ["audio"]


async def test_an_expert_asked_by_name_bypasses_the_gate(client, world):
    body = (await client.post(CHAT, json=said("hi", model="multimoe/parrot"))).json()
    assert world.gate.policies == []
    assert body["x_multimoe"]["gate"] is None
    assert body["x_multimoe"]["propensity"] is None
    assert body["x_multimoe"]["reason"] == ["asked for by name"]


async def test_a_rating_of_an_expert_asked_by_name_can_be_learned_from(client, world):
    named = (await client.post(CHAT, json=said("hi", model="multimoe/parrot"))).json()
    await client.post("/v1/feedback", json={"completion_id": named["id"], "score": 1})

    (example,) = read(world.log.rated())

    assert [(label.expert, label.score) for label in example.labels] == [("parrot", 1.0)]
    assert example.embedding.revisions == {"text": "t1"}
    assert example.decision is None


@pytest.mark.parametrize("late", [True, False])
async def test_an_answer_waits_for_no_embedding_and_fails_with_none(client, world, monkeypatch, caplog, late):
    async def embed(request: Any) -> Any:
        await asyncio.sleep(30 * late)
        raise ValueError("an encoder of somebody else's")

    monkeypatch.setattr(world.gate, "embed", embed)
    began = time.perf_counter()
    answer = await client.post(CHAT, json=said("hi", model="multimoe/parrot"))

    assert answer.status_code == 200
    assert time.perf_counter() - began < 5
    assert world.log.interaction(answer.json()["id"]).embedding is None
    assert "its ratings teach nothing" in caplog.text


async def test_the_policy_comes_from_preset_headers_and_body_in_that_order(client, world):
    headers = {"x-multimoe-top-k": "3", "x-multimoe-explore": "false", "x-multimoe-exclude": "multimoe/sloth, broken"}
    await client.post(CHAT, json=said("hi", model="multimoe:top1"))
    await client.post(CHAT, json=said("hi", model="multimoe:top1"), headers=headers)
    own = {"top_k": 2, "max_cost": 1}
    await client.post(CHAT, json=said("hi", model="multimoe:latest", x_multimoe=own), headers=headers)
    preset, by_header, by_body = world.gate.policies
    assert (preset.top_k, by_header.top_k, by_body.top_k) == (1, 3, 2)
    assert (by_header.explore, by_header.exclude) == (False, ("sloth", "broken"))
    assert (by_body.max_cost, by_body.explore) == (1, False)


async def test_a_strategy_is_asked_for_by_header_or_body_and_a_wrong_one_is_refused(client, world):
    await client.post(CHAT, json=said("hi"), headers={"x-multimoe-strategy": "gshard"})
    await client.post(CHAT, json=said("hi", x_multimoe={"strategy": "thompson"}))
    assert [policy.strategy for policy in world.gate.policies] == ["gshard", "thompson"]

    for wrong, why in {"sofmax": "there are: softmax", "expert-choice": "needs a batch"}.items():
        response = await client.post(CHAT, json=said("hi", x_multimoe={"strategy": wrong}))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "x_multimoe.strategy"
        assert why in response.json()["error"]["message"]


async def test_a_gate_version_is_asked_for_by_number_or_alias(client, world):
    newest = world.write_version()
    for asked in (newest, str(newest), "challenger"):
        response = await client.post(CHAT, json=said("hi", x_multimoe={"gate": asked}))
        assert response.json()["x_multimoe"]["gate"]["version"] == newest
    assert response.json()["x_multimoe"]["gate"]["alias"] == "challenger"
    world.write_version()
    await client.put("/v1/gate/aliases/shadow", json={"version": newest})
    for alias, version in (("challenger", newest), ("champion", 0)):
        response = await client.post(CHAT, json=said("hi", x_multimoe={"gate": alias}))
        assert response.json()["x_multimoe"]["gate"] == {"version": version, "alias": alias}
        assert world.gate.policies[-1].gate == version
    assert (await client.post(CHAT, json=said("hi", x_multimoe={"gate": 99}))).status_code == 404
    assert (await client.post(CHAT, json=said("hi", x_multimoe={"gate": "best"}))).status_code == 400


async def test_outputs_are_shown_when_asked_for(client):
    asked = said([image_part()], x_multimoe={"include_outputs": True})
    routing = (await client.post(CHAT, json=asked)).json()["x_multimoe"]
    assert routing["experts"][0]["output"]["labels"][0]["name"] == "12x8"
    assert routing["output"]["kind"] == "labels"


async def test_what_no_expert_here_can_do_is_refused_for_good(client, world):
    response = await client.post(CHAT, json=said([image_part()], x_multimoe={"experts": ["parrot"]}))
    assert (response.status_code, error_of(response)["code"]) == (400, "no_expert_for_modality")


async def test_route_says_who_would_answer_and_asks_nobody(client, world):
    world.gate.picks = ("sloth", "parrot")
    routing = (await client.post("/v1/route", json=said("hi", x_multimoe={"exclude": ["broken"]}))).json()
    assert [share["id"] for share in routing["experts"]] == ["multimoe/sloth", "multimoe/parrot"]
    assert routing["ineligible"]["eye"]
    assert world.log.interactions() == ()


async def test_tools_and_unknown_fields_are_ignored(client):
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": {}}} for i in range(36)]
    body = said("hello", tools=tools, tool_choice="auto", logit_bias={}, metadata={"a": 1}, response_format=None)
    assert (await client.post(CHAT, json=body)).status_code == 200


async def test_a_client_that_hangs_up_stops_the_expert(world):
    """Both ways of asking; over real sockets this is shown in test_openai_client."""
    for stream in (True, False):
        await _hang_up_after(world, said("hi", model="multimoe/sloth", stream=stream))
        assert Sloth.answering == 0
    assert [one.status for one in world.log.interactions()] == ["cancelled", "cancelled"]
    assert {one.answer for one in world.log.interactions()} == {"well ", ""}  # only the stream had given a word out


async def _hang_up_after(world: World, body: dict[str, Any]) -> None:
    """Speaks ASGI itself: sends the body, waits until the expert works, and disconnects."""
    sent = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in sent:
            return message
        while Sloth.answering == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("client.test", 1),
        "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
    }
    await world.app(scope, receive, send)


# --- the record ---


async def test_an_answer_is_on_record_before_it_is_told(client, world):
    body = (await client.post(CHAT, json=said("hi there", user="ann"))).json()
    kept = world.log.interaction(body["id"])
    assert (kept.question, kept.answer, kept.user, kept.status) == ("hi there", "hi there", "ann", "ok")
    assert kept.decision.propensity == 0.25
    assert kept.embedding
    assert [(o.expert, o.status, o.text) for o in kept.outcomes] == [("parrot", "ok", "hi there")]


async def test_texts_are_not_kept_where_the_catalog_says_so(tmp_path):
    world = World(tmp_path, store={"keep_text": False})
    async with world.client() as client:
        body = (await client.post(CHAT, json=said("hi there"))).json()
    kept = world.log.interaction(body["id"])
    assert (kept.question, kept.answer, kept.outcomes[0].text) == (None, None, None)


@pytest.mark.parametrize("failure", [Unavailable("the store is gone; try again"), ValueError("no NUL in a text")])
async def test_an_answer_goes_out_without_a_store_and_says_it_cannot_be_rated(world, caplog, failure):
    class Gone:
        def all_keys(self) -> tuple[()]:
            return ()

        def record(self, interaction: Any) -> None:
            raise failure

    transport = httpx.ASGITransport(world.with_log(Gone()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        with caplog.at_level(logging.ERROR):
            response = await client.post(CHAT, json=said("hi"))
    assert response.status_code == 200
    assert response.json()["x_multimoe"]["rateable"] is False
    assert "not recorded" in caplog.text


async def test_a_failed_answer_is_on_record_too(client, world):
    await client.post(CHAT, json=said("hi", model="multimoe/broken"))
    assert world.log.interactions()[0].status == "error"


async def test_past_decisions_can_be_looked_up(client):
    ids = [(await client.post(CHAT, json=said(f"question {i}"))).json()["id"] for i in range(3)]
    listed = (await client.get("/v1/routing", params={"limit": 2, "expert": "multimoe/parrot"})).json()
    assert [one["id"] for one in listed["data"]] == [ids[2], ids[1]]
    assert listed["has_more"] is True
    older = (await client.get("/v1/routing", params={"before": ids[1], "since": "2020-01-01T00:00:00"})).json()
    assert [one["id"] for one in older["data"]] == [ids[0]]
    one = (await client.get(f"/v1/routing/{ids[0]}")).json()
    assert (one["question"], one["ratings"], one["decision"]["propensity"]) == ("question 0", [], 0.25)
    assert "embedding" not in one


# --- ratings ---


async def test_a_rating_is_created_changed_read_and_taken_back(client):
    id = (await client.post(CHAT, json=said("hi"))).json()["id"]
    rating = {"completion_id": id, "score": 1.0, "user": "ann"}
    assert (await client.post("/v1/feedback", json=rating)).status_code == 201
    assert (await client.post("/v1/feedback", json={**rating, "score": 0.0, "label": "too_slow"})).status_code == 200
    found = (await client.get("/v1/feedback", params={"completion_id": id})).json()["data"]
    assert [(one["score"], one["label"], one["source"]) for one in found] == [(0.0, "too_slow", "user")]
    assert (await client.get("/v1/feedback/stats")).json()["ratings"] == 1
    gone = await client.delete("/v1/feedback", params={"completion_id": id, "user": "ann"})
    assert gone.json()["deleted"] is True
    again = await client.delete("/v1/feedback", params={"completion_id": id, "user": "ann"})
    assert again.json()["deleted"] is False


async def test_an_expert_is_rated_by_either_of_its_names(client):
    id = (await client.post(CHAT, json=said("hi"))).json()["id"]
    for name, status in (("parrot", 201), ("multimoe/parrot", 200)):
        body = {"completion_id": id, "target": "expert", "expert": name, "score": 1}
        assert (await client.post("/v1/feedback", json=body)).status_code == status


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"completion_id": "chatcmpl-no"}, 404, "completion_not_found", "completion_id"),
        ({"score": 1.5}, 400, "invalid_value", "score"),
        ({"score": None}, 400, "invalid_value", "score"),
        ({"score": "good"}, 400, "invalid_value", "score"),
        ({"target": "expert"}, 400, "invalid_value", "expert"),
        ({"target": "expert", "expert": "sloth"}, 400, "invalid_value", "expert"),
        ({"source": "operator"}, 400, "invalid_value", "source"),
        ({"comment": "x" * 20_000}, 413, "request_too_large", "comment"),
        ({"user": "x" * 200}, 400, "invalid_value", "user"),
    ],
)
async def test_a_rating_that_cannot_be_is_refused(client, change, status, code, param):
    id = (await client.post(CHAT, json=said("hi"))).json()["id"]
    response = await client.post("/v1/feedback", json={"completion_id": id, "score": 1.0, **change})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


async def test_ratings_are_exported_as_files(client):
    id = (await client.post(CHAT, json=said("hi"))).json()["id"]
    await client.post("/v1/feedback", json={"completion_id": id, "score": 1})
    lines = await client.get("/v1/feedback/export")
    assert json.loads(lines.text)["completion_id"] == id
    assert "attachment" in lines.headers["content-disposition"]
    assert (await client.get("/v1/feedback/export?format=csv")).text.startswith("completion_id,")
    refused = await client.get("/v1/feedback/export?format=xls")
    assert (refused.status_code, error_of(refused)["param"]) == (400, "format")


# --- experts, gate ---


async def test_experts_are_listed_with_their_state_and_without_their_keys(client):
    await client.post(CHAT, json=said("hi"))
    listed = (await client.get("/v1/experts")).json()["data"]
    by_name = {expert["name"]: expert for expert in listed}
    assert (by_name["parrot"]["state"], by_name["eye"]["state"]) == ("ready", "asleep")
    assert by_name["parrot"]["stats"]["asked"] == 1
    one = await client.get("/v1/experts/multimoe/eye")
    assert one.json()["spec"]["backend"] == "api_world:Eye"
    assert "secret-key" not in one.text
    assert (await client.get("/v1/experts/nobody")).status_code == 404


async def test_an_expert_is_added_asked_and_removed(client, world):
    spec = {**_spec(), "name": "cockatoo"}
    added = await client.post("/v1/experts", json=spec)
    assert (added.status_code, added.json()["state"]) == (201, "ready")
    assert (await client.post(CHAT, json=said("hi", model="multimoe/cockatoo"))).status_code == 200
    assert "multimoe/cockatoo" in [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
    twice = await client.post("/v1/experts", json=spec)
    assert (twice.status_code, twice.headers["x-should-retry"]) == (409, "false")
    assert error_of(twice)["type"] == "conflict_error"
    assert (await client.delete("/v1/experts/cockatoo")).json()["deleted"] is True
    assert (await client.post(CHAT, json=said("hi", model="multimoe/cockatoo"))).status_code == 404


def _spec() -> dict[str, Any]:
    return {
        "name": "x",
        "backend": "experts.echo:Echo",
        "inputs": ["text"],
        "output": "text",
        "card": {"description": "Another parrot."},
    }


async def test_a_misspelt_expert_names_the_right_key(client):
    response = await client.post("/v1/experts", json={**_spec(), "wieghts": {}})
    assert response.status_code == 400
    assert "did you mean 'weights'" in error_of(response)["message"]


async def test_scaling_reaches_the_cluster(client, world, monkeypatch):
    scaled: list[tuple[str, int, int]] = []

    async def scale(expert: str, low: int, high: int) -> None:
        scaled.append((expert, low, high))

    one_process = await client.put("/v1/experts/parrot/scale", json={"min_replicas": 1, "max_replicas": 2})
    assert one_process.status_code == 409
    monkeypatch.setattr(world.cluster, "scale", scale)
    for name in ("parrot", "multimoe/parrot"):
        response = await client.put(f"/v1/experts/{name}/scale", json={"min_replicas": 0, "max_replicas": 3})
        assert response.json()["name"] == "parrot"
    assert scaled == [("parrot", 0, 3)] * 2
    wrong = await client.put("/v1/experts/parrot/scale", json={"min_replicas": 4, "max_replicas": 3})
    assert wrong.status_code == 400


async def test_a_version_is_promoted_and_rolled_back(client, world):
    made = world.write_version()
    listed = (await client.get("/v1/gate/versions")).json()["data"]
    assert [(one["version"], one["aliases"]) for one in listed] == [(1, []), (0, ["champion"])]
    promoted = (await client.put("/v1/gate/aliases/champion", json={"version": made})).json()
    assert (promoted["version"], promoted["aliases"]) == (made, ["champion"])
    assert (await client.get(f"/v1/gate/versions/{made}")).json()["promoted"] is True
    assert (await client.post(CHAT, json=said("hi"))).json()["system_fingerprint"] == "gate-1"
    assert (await client.post("/v1/gate/rollback")).json()["version"] == 0
    assert (await client.post("/v1/gate/rollback")).status_code == 409


async def test_without_the_store_it_is_known_who_serves_and_a_step_is_answered(client, world, monkeypatch):
    made = world.write_version()

    def gone(*_: Any, **__: Any) -> Any:
        raise Unavailable("the store is away", code="store_unavailable")

    monkeypatch.setattr(world.log, "interactions", gone)
    trying = await client.put("/v1/gate/aliases/shadow", json={"version": made})
    assert (trying.status_code, trying.json()["challenger"]["version"]) == (200, made)
    now = (await client.get("/v1/gate")).json()
    assert (now["version"], now["challenger"]["seen"]) == (0, None)


async def test_versions_can_be_listed_though_one_comes_or_goes_meanwhile(client, world, monkeypatch):
    gone, come = world.write_version(), world.write_version()
    shutil.rmtree(world.registry.root / f"{gone:04d}")
    monkeypatch.setattr(Registry, "versions", lambda _: (0, gone, come))
    monkeypatch.setattr(Registry, "places", lambda _: {0: Place(stage="champion")})
    listed = (await client.get("/v1/gate/versions")).json()["data"]
    assert [(one["version"], one["stage"]) for one in listed] == [(come, "refused"), (gone, "refused"), (0, "champion")]
    assert f"no gate version {gone}" in listed[1]["reason"]


def test_a_version_that_goes_while_places_are_read_is_refused(world, monkeypatch):
    monkeypatch.setattr(Registry, "versions", lambda _: (0, 7))
    assert world.registry.places()[7].stage == "refused"


async def test_who_hangs_up_leaves_no_job_that_nobody_began(world, monkeypatch):
    opened, go = asyncio.Event(), threading.Event()
    start, loop = world.log.start_job, asyncio.get_running_loop()

    def slowly(kind: str) -> Any:
        job = start(kind)
        loop.call_soon_threadsafe(opened.set)
        go.wait(5)
        return job

    monkeypatch.setattr(world.log, "start_job", slowly)
    asking = asyncio.create_task(gates.train(world.services))
    await opened.wait()
    asking.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    while world.log.jobs()[0].status == "running":
        await asyncio.sleep(0.01)
    assert world.trained == [world.log.jobs()[0].id]


async def test_a_swap_that_fails_leaves_everything_as_it_was(client, world):
    made = world.write_version()
    world.gate.broken_versions = {made}
    refused = await client.put("/v1/gate/aliases/champion", json={"version": made})
    assert (refused.status_code, error_of(refused)["code"]) == (409, "checkpoint_refused")
    assert (world.registry.champion(), world.gate.version) == (0, 0)


async def test_a_pointer_that_cannot_move_undoes_the_swap(client, world, monkeypatch):
    made = world.write_version()

    def take(*_: object) -> None:
        raise Conflict("another process was faster; look again")

    monkeypatch.setattr(world.registry, "take", take)
    assert (await client.put("/v1/gate/aliases/champion", json={"version": made})).status_code == 409
    assert world.gate.version == 0


async def test_a_rollback_that_cannot_be_served_is_undone(client, world):
    made = world.write_version()
    await client.put("/v1/gate/aliases/champion", json={"version": made})
    world.gate.broken_versions = {0}
    assert (await client.post("/v1/gate/rollback")).status_code == 409
    assert (world.registry.champion(), world.gate.version) == (made, made)


async def test_a_version_is_put_on_trial_shown_and_withdrawn(client, world):
    made = world.write_version()
    shadow = (await client.put("/v1/gate/aliases/shadow", json={"version": made})).json()
    assert (shadow["version"], shadow["stage"], shadow["challenger"]["stage"]) == (0, "champion", "shadow")
    canary = (await client.put("/v1/gate/aliases/canary", json={"version": made, "share": 0.25})).json()["challenger"]
    assert (canary["version"], canary["stage"], canary["share"], canary["seen"]["requests"]) == (
        made,
        "canary",
        0.25,
        0,
    )
    assert (world.gate.version, world.gate.trial.version, world.gate.trial.share) == (0, made, 0.25)
    listed = {one["version"]: one for one in (await client.get("/v1/gate/versions")).json()["data"]}
    assert (listed[made]["aliases"], listed[made]["stage"]) == (["challenger", "canary"], "canary")
    assert (listed[0]["aliases"], listed[0]["stage"], listed[made]["stage_reason"]) == (
        ["champion"],
        "champion",
        "by hand",
    )
    withdrawn = (await client.delete("/v1/gate/aliases/challenger")).json()
    assert (withdrawn["challenger"], world.gate.trial) == (None, None)
    assert (await client.get(f"/v1/gate/versions/{made}")).json()["stage"] == "withdrawn"
    assert (await client.delete("/v1/gate/aliases/challenger")).status_code == 409


async def test_a_rollback_undoes_the_canary_first_and_then_the_champion(client, world):
    first, second = world.write_version(), world.write_version()
    await client.put("/v1/gate/aliases/champion", json={"version": first})
    await client.put("/v1/gate/aliases/canary", json={"version": second})
    assert world.gate.trial.share == 0.1  # the catalog's
    undone = (await client.post("/v1/gate/rollback")).json()
    assert (undone["version"], undone["challenger"]) == (first, None)
    await client.put("/v1/gate/aliases/shadow", json={"version": second})
    undone = (await client.post("/v1/gate/rollback")).json()
    assert (undone["version"], undone["challenger"], world.gate.trial) == (0, None, None)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"version": 9}, 404),
        ({"version": 0}, 409),
        ({"version": 1, "share": 0}, 400),
        ({"version": 1, "share": 1}, 400),
    ],
)
async def test_what_cannot_be_a_canary_is_refused(client, world, body, status):
    world.write_version()
    assert (await client.put("/v1/gate/aliases/canary", json=body)).status_code == status
    assert world.gate.trial is None


@pytest.mark.parametrize(("body", "status"), [({"version": 9}, 404), ({"version": -1}, 400), ({"vesion": 1}, 400)])
async def test_a_version_that_is_not_there_is_not_promoted(client, world, body, status):
    assert (await client.put("/v1/gate/aliases/champion", json=body)).status_code == status


async def test_a_damaged_version_is_listed_as_such(client, world):
    made = world.write_version()
    (world.catalog.gates / f"{made:04d}" / "manifest.json").write_text("{")
    assert (await client.get("/v1/gate/versions")).json()["data"][0]["promoted"] is False
    assert (await client.get(f"/v1/gate/versions/{made}")).status_code == 409


async def test_training_is_a_job_one_can_follow(client, world):
    started = await client.post("/v1/gate/train", json={})
    assert started.status_code == 202
    id = started.json()["job_id"]
    async with client.stream("GET", f"/v1/gate/jobs/{id}/events") as response:
        seen = [json.loads(line[6:]) async for line in response.aiter_lines() if line.startswith("data: ")]
    assert (seen[-1]["status"], seen[-1]["result"]) == ("done", {"version": 1})
    assert world.trained == [id]
    assert (await client.get(f"/v1/gate/jobs/{id}")).json()["progress"] == 1.0
    assert (await client.get("/v1/gate/jobs")).json()["data"][0]["id"] == id
    assert (await client.get("/v1/gate/jobs/none")).status_code == 404


async def test_only_one_training_runs(client, world):
    world.log.start_job("retrain")
    response = await client.post("/v1/gate/train")
    assert (response.status_code, error_of(response)["code"]) == (409, "job_running")


async def test_a_training_that_cannot_start_leaves_no_job_open(client, world):
    world.cluster._train = None
    assert (await client.post("/v1/gate/train")).status_code == 409
    assert world.log.jobs()[0].status == "failed"


# --- models, embeddings, speech ---


async def test_models_are_the_mixture_its_presets_and_its_experts(client):
    listed = (await client.get("/v1/models")).json()["data"]
    mixtures = ["multimoe", "multimoe:top1", "multimoe:cheap", "multimoe:balanced", "multimoe:best"]
    assert [model["id"] for model in listed][:6] == [*mixtures, "multimoe/parrot"]
    assert listed[0]["architecture"]["input_modalities"] == ["text", "image", "audio"]
    eye = (await client.get("/v1/models/multimoe/eye")).json()
    assert (eye["architecture"]["input_modalities"], eye["pricing"]["request"]) == (["image"], "0.0002")
    assert (await client.get("/v1/models/multimoe-embed")).status_code == 200


@pytest.mark.parametrize("model", ["gpt-4", "multimoe/parot", "multimoe:tpo1", "", "multimoe/", "multimoe:top1/parrot"])
async def test_an_unknown_model_is_a_404_that_suggests_one(client, model):
    response = await client.post(CHAT, json=said("hi", model=model))
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "did you mean" in error["message"] or "there are:" in error["message"]


async def test_embeddings_come_as_numbers_or_base64(client):
    body = {"model": "multimoe-embed", "input": ["ab", "abc"]}
    floats = (await client.post("/v1/embeddings", json=body)).json()["data"]
    packed = (await client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})).json()["data"]
    assert [one["embedding"][0] for one in floats] == [2.0, 3.0]
    assert np.frombuffer(base64.b64decode(packed[1]["embedding"]), "<f4").tolist() == floats[1]["embedding"]


@pytest.mark.parametrize("sent", [[1, 2], [[1, 2], [3]], [], "", ["a", " "], ["a"] * 3000, {"a": 1}, None])
async def test_embeddings_of_what_is_no_text_are_refused(client, sent):
    response = await client.post("/v1/embeddings", json={"model": "multimoe-embed", "input": sent})
    assert response.status_code == 400
    if sent in ([1, 2], [[1, 2], [3]]):
        assert "check_embedding_ctx_length=False" in error_of(response)["message"]


@pytest.mark.parametrize("model", ["multimoe", "whisper-1", "multimoe/ear"])
async def test_speech_becomes_text(client, model):
    def ask(**form: str) -> Any:
        return client.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav(), "audio/wav")}, data=form)

    assert (await ask(model=model)).json() == {"text": "0.5 seconds"}
    assert (await ask(model=model, response_format="text")).text == "0.5 seconds\n"
    whole = (await ask(model=model, response_format="verbose_json")).json()
    assert (whole["duration"], whole["language"], whole["segments"][0]["end"]) == (0.5, "en", 0.5)
    assert (await ask(model=model, response_format="srt")).status_code == 400


async def test_a_recording_without_sound_is_refused(client):
    for data, status in ((b"", 422), (b"not a recording", 415)):
        files = {"file": ("a.wav", data, "audio/wav")}
        response = await client.post("/v1/audio/transcriptions", files=files, data={"model": "multimoe"})
        assert (response.status_code, error_of(response)["param"]) == (status, "file")
    missing = await client.post("/v1/audio/transcriptions", data={"model": "multimoe"})
    assert (missing.status_code, error_of(missing)["param"]) == (400, "file")


# --- health, pages, the edge ---


async def test_it_is_ready_when_the_gate_answers_and_somebody_is_up(client, world, monkeypatch):
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).json()["status"] == "ready"
    world.gate.failure = Unavailable("the gate is starting; try again")
    waiting = await client.get("/ready")
    assert (waiting.status_code, error_of(waiting)["code"]) == (503, "not_ready")
    assert waiting.headers["retry-after"]
    world.gate.failure = None

    async def nobody() -> dict[str, Any]:
        return {}

    monkeypatch.setattr(world.cluster, "expert_states", nobody)
    assert "no expert" in error_of(await client.get("/ready"))["message"]


async def test_the_docs_need_no_internet(client):
    page = (await client.get("/docs")).text
    assert "http://" not in page.replace("http://127.0.0.1", "")
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/docs/{asset}" in page
        assert len((await client.get(f"/docs/{asset}")).content) > 100_000
    assert (await client.get("/docs/../api.py")).status_code == 404
    spec = (await client.get("/openapi.json")).json()
    operation = spec["paths"][CHAT]["post"]
    assert {"200", "400", "401", "403", "404", "413", "422", "429", "503", "504"} <= set(operation["responses"])
    for status in ("400", "503"):
        content = operation["responses"][status]["content"]
        assert content["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
    assert operation["security"] == [{"key": ["chat"]}]
    assert spec["paths"]["/health"]["get"]["security"] == []


async def test_the_root_leads_to_the_page(client):
    assert (await client.get("/")).headers["location"] == "/ui/"
    assert (await client.get("/version")).json()["name"] == "multimoe"
    assert (await client.get("/v1/limits")).json()["json_depth"] == 64


async def test_what_is_not_there_is_said_in_openai_s_shape(client):
    nowhere = await client.get("/v1/nothing")
    assert (nowhere.status_code, error_of(nowhere)["code"]) == (404, "unknown_url")
    wrong = await client.post("/v1/models")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert "GET" in wrong.headers["allow"]


async def test_a_crash_gives_nothing_away_and_names_the_log_entry(client, world, caplog):
    world.gate.failure = RuntimeError("secret at /home/secret.py")
    response = await client.post(CHAT, json=said("hi"), headers={"x-request-id": "find-me"})
    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "find-me" in error["message"]
    assert "secret" not in response.text
    assert any(getattr(record, "request_id", "") == "find-me" for record in caplog.records)


async def test_pages_of_other_sites_may_not_give_orders(client):
    foreign = await client.post("/v1/gate/rollback", headers={"origin": "https://evil.test"})
    assert (foreign.status_code, error_of(foreign)["type"]) == (403, "permission_error")
    for origin in ("http://[", "http://[::1", "null", ""):
        nowhere = await client.post(CHAT, json=said("hi"), headers={"origin": origin})
        assert (nowhere.status_code, error_of(nowhere)["code"]) == (403, "origin_not_allowed")
    for origin in ("http://localhost:5173", "http://127.0.0.1"):
        assert (await client.post(CHAT, json=said("hi"), headers={"origin": origin})).status_code == 200
    local = await client.post(CHAT, json=said("hi"), headers={"origin": "http://127.0.0.1:3000"})
    assert local.headers["access-control-allow-origin"] == "http://127.0.0.1:3000"
    assert "x-multimoe-experts" in local.headers["access-control-expose-headers"]


def test_the_gateway_process_loads_neither_torch_nor_ray():
    program = (
        "import sys, gateway.api.app, gateway.deployment.local; "
        "print(sorted({'torch', 'ray', 'gradio'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
