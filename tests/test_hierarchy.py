"""Two whole gateways over real HTTP, one an expert of the other; and each an expert of the other, which must end."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_world import World, image_part, png, said, served, until

from experts.openai_api import OpenAI
from gateway.demo.product import free_port
from gateway.provenance import HEADER, came_through, installation
from multimoe.config import ExpertSpec
from multimoe.contract import examine
from multimoe.errors import LoopDetected
from multimoe.expert import Delta
from multimoe.messages import ChatRequest

CHAT = "/chat/completions"


class Forgetful(OpenAI):
    """As a gateway without the header: it does not say where a request has been."""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        async for delta in super().answer(replace(request, via=())):
            yield delta


def parrot() -> dict[str, Any]:
    return {
        "cost": 0.25,
        "name": "parrot",
        "backend": "experts.echo:Echo",
        "inputs": ["text", "image"],
        "output": "text",
        "card": {"description": "Says it again."},
    }


def gateway_as_expert(name: str, port: int, backend: str = "experts.openai_api:OpenAI") -> dict[str, Any]:
    options = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "multimoe"}
    card = {"description": "Another mixture."}
    return {**parrot(), "name": name, "backend": backend, "options": options, "card": card, "timeout_s": 20, "cost": 9}


class Pair:
    """Gateway `outer`, which asks `inner` first of all, and `inner`, whose experts are those given."""

    def __init__(self, root: Path, inner: list[dict[str, Any]], backend: str = "experts.openai_api:OpenAI") -> None:
        self.ports = free_port(), free_port()
        experts = [
            [gateway_as_expert("inner", self.ports[1], backend), parrot()],
            [expert | {"options": self._options(expert)} for expert in inner],
        ]
        self.outer, self.inner = (
            World(root / name, experts=some) for name, some in zip(("outer", "inner"), experts, strict=True)
        )
        self.outer.gate.picks, self.inner.gate.picks = ("inner",), (inner[0]["name"],)
        self.stack = ExitStack()

    def _options(self, expert: dict[str, Any]) -> dict[str, Any]:
        options = expert.get("options", {})
        return options | {"base_url": f"http://127.0.0.1:{self.ports[0]}/v1"} if "base_url" in options else options

    def __enter__(self) -> "Pair":
        self.url, _ = (
            self.stack.enter_context(served(w, p)) for w, p in zip((self.outer, self.inner), self.ports, strict=True)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        for world in (self.outer, self.inner):
            world.log.close()

    def decided(self) -> tuple[int, int]:
        """How often each gate has chosen."""
        return len(self.outer.gate.policies), len(self.inner.gate.policies)

    def ask(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        return httpx.post(self.url + CHAT, json=body, headers=headers, timeout=60)


@pytest.fixture(autouse=True)
def no_idle_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would outlive the event loop of the gateway that keeps them, which ends with the test."""
    monkeypatch.setattr("experts.openai_api.IDLE", 0)


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path, [parrot()]) as pair:
        yield pair


def outer_again(backend: str = "experts.openai_api:OpenAI") -> dict[str, Any]:
    return gateway_as_expert("outer", 0, backend)


def test_an_answer_comes_through_pictures_and_all_and_says_who_gave_it(nested: Pair) -> None:
    content = [{"type": "text", "text": "what is this?"}, image_part(png(12, 8))]
    body = said("") | {"messages": [{"role": "user", "content": content}]}
    reply = nested.ask(body).json()
    assert reply["choices"][0]["message"]["content"] == "what is this? [image 12x8]"
    assert reply["model"] == "multimoe/inner"
    assert reply["usage"]["total_tokens"] == 8
    (share,) = reply["x_multimoe"]["experts"]
    assert (share["id"], share["status"], share["cost"]) == ("multimoe/inner", "ok", 0.25)
    assert share["inside"] == [{"id": "multimoe/parrot", "weight": 1.0}]
    assert nested.decided() == (1, 1)


async def test_a_gateway_keeps_the_contract_of_experts(nested: Pair) -> None:
    tree = gateway_as_expert("inner", nested.ports[1])
    findings = await examine(ExpertSpec.model_validate(tree), lambda uri: Path(uri))
    assert {finding.promise: finding.advice for finding in findings if finding.state == "broken"} == {}
    assert sum(finding.state == "kept" for finding in findings) > 5


def test_it_is_streamed_through_both(nested: Pair) -> None:
    with httpx.stream("POST", nested.url + CHAT, json=said("one two three", stream=True), timeout=60) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines[:-1]]
    words = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert words == ["", "one", " two", " three", None]
    assert chunks[-1]["x_multimoe"]["experts"][0]["inside"] == [{"id": "multimoe/parrot", "weight": 1.0}]


def test_a_mixture_inside_that_fails_is_stood_in_for(tmp_path: Path) -> None:
    broken = parrot() | {"name": "broken", "options": {"fail": True}}
    with Pair(tmp_path, [broken]) as pair:
        reply = pair.ask(said("hello")).json()
    assert reply["choices"][0]["message"]["content"] == "hello"
    assert {e["id"]: e["status"] for e in reply["x_multimoe"]["experts"]} == {
        "multimoe/inner": "error",
        "multimoe/parrot": "ok",
    }


def test_a_loop_is_refused_inside_and_answered_outside(tmp_path: Path) -> None:
    with Pair(tmp_path, [outer_again()]) as pair:
        reply = pair.ask(said("hello")).json()
        decided = pair.decided()
    assert reply["choices"][0]["message"]["content"] == "hello"
    failed, answered = reply["x_multimoe"]["experts"]
    assert (failed["id"], failed["status"]) == ("multimoe/inner", "error")
    assert "answered 508: this request has been at this gateway" in failed["error"]
    assert (answered["id"], answered["status"]) == ("multimoe/parrot", "ok")
    assert decided == (1, 1)  # it came back once, and was not routed again


def test_a_loop_is_answered_by_whoever_else_there_is(tmp_path: Path) -> None:
    with Pair(tmp_path, [outer_again(), parrot()]) as pair:
        reply = pair.ask(said("hello")).json()
        decided = pair.decided()
    assert reply["choices"][0]["message"]["content"] == "hello"
    (share,) = reply["x_multimoe"]["experts"]
    assert share["inside"] == [{"id": "multimoe/parrot", "weight": 1.0}]
    assert decided == (1, 1)


async def test_without_the_header_they_would_ask_each_other_for_ever(tmp_path: Path) -> None:
    forgetful = "test_hierarchy:Forgetful"
    with Pair(tmp_path, [outer_again(forgetful)], forgetful) as pair:
        async with httpx.AsyncClient(timeout=60) as client:
            asking = asyncio.create_task(client.post(pair.url + CHAT, json=said("hello")))
            # until each has about as many under way as it takes on
            await asyncio.to_thread(until, lambda: min(pair.decided()) >= 6, 30)
            asking.cancel()  # which every gateway passes on, so that it ends
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(1)
        ended = pair.decided()
        await asyncio.sleep(0.5)
        assert pair.decided() == ended


def test_a_refusal_says_what_to_do(nested: Pair) -> None:
    here = installation(nested.outer.catalog.home)
    for path in (CHAT, "/route"):
        response = httpx.post(nested.url + path, json=said("hello"), headers={HEADER: f"elsewhere, {here}"})
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"]) == (508, "server_error", "loop_detected")
        assert "remove one from the other's catalog" in error["message"]
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-request-id"]
    assert nested.decided() == (0, 0)
    assert nested.ask(said("hello"), **{HEADER: "elsewhere"}).status_code == 200


def test_a_chain_of_gateways_may_be_only_so_long() -> None:
    assert came_through(["a, b", " c,"], "here", 3) == ("a", "b", "c", "here")
    assert came_through([], "here", 0) == ("here",)
    with pytest.raises(LoopDetected, match="has come through 4 gateways, more than"):
        came_through(["a,b,c,d"], "here", 3)
    with pytest.raises(LoopDetected, match="before"):
        came_through(["a", "here"], "here", 9)
    assert came_through(["a, no\u00e9, <b>"], "here", 3) == ("a", "here")


def test_an_installation_has_one_name_and_another_has_another(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        names = set(threads.map(lambda _: installation(tmp_path / "one"), range(32)))
    assert len(names) == 1
    assert installation(tmp_path / "one") in names
    assert installation(tmp_path / "two") not in names
