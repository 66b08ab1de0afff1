"""Ways of combining as a client asks for them: by request, header, preset and catalog, whole and streamed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_world import CATALOG, World, image_part, said

from multimoe.config import Catalog, ExpertSpec, parse
from multimoe.errors import BadConfig, ExpertFailed, MultimoeError
from multimoe.messages import ChatRequest, Message, TextPart

CHAT = "/v1/chat/completions"


def expert(name: str, backend: str = "experts.echo:Echo", **more: Any) -> dict[str, Any]:
    card = {"description": f"About {name}."}
    return {"name": name, "backend": backend, "inputs": ["text"], "output": "text", "card": card, **more}


EXPERTS = [
    expert("one", tokenizer="bytes"),
    expert("two", tokenizer="bytes"),
    expert("gone", tokenizer="bytes", options={"fail": True}),
    expert("eye", "api_world:Eye", inputs=["image"], output="labels", group="eyes"),
    expert("eagle", "api_world:Eye", inputs=["image"], output="labels", group="eyes"),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    presets = {"voting": {"combine": "vote"}, "sparing": {"ask_next_below": 0.8}}
    made = World(tmp_path / "home", experts=EXPERTS, presets=presets, blend={"combine": "all"})
    made.gate.picks = ("one", "two")
    yield made
    made.log.close()


async def ask(world: World, body: dict[str, Any], **headers: str) -> tuple[str, dict[str, Any]]:
    async with world.client() as client:
        response = await client.post(CHAT, json=body, headers=headers)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["message"]["content"], answer["x_multimoe"]


async def test_the_request_stands_above_the_header_above_the_preset_above_the_catalog(world: World) -> None:
    _, routing = await ask(world, said("hi"))
    assert (routing["combine"], routing["combine_asked"]) == ("all", "all")
    _, routing = await ask(world, said("hi", model="multimoe:voting"))
    assert routing["combine"] == "vote"
    _, routing = await ask(world, said("hi", model="multimoe:voting"), **{"x-multimoe-combine": "tokens"})
    assert routing["combine"] == "tokens"
    header = {"x-multimoe-combine": "tokens"}
    _, routing = await ask(world, said("hi", x_multimoe={"combine": "best"}), **header)
    assert routing["combine"] == "best"


async def test_a_reply_says_how_it_was_made_and_why_not_as_asked(world: World) -> None:
    text, routing = await ask(world, said("hi there", x_multimoe={"combine": "vote", "include_outputs": True}))
    assert text == "hi there"
    assert routing["agreement"] == pytest.approx(1)
    assert routing["combine_reason"] is None
    assert [share["output"]["text"] for share in routing["experts"]] == ["hi there"] * 2
    world.gate.picks = ("one",)
    _, routing = await ask(world, said("hi", x_multimoe={"combine": "vote"}))
    assert (routing["combine"], routing["combine_asked"]) == ("best", "vote")
    assert "fewer than two" in routing["combine_reason"]


async def test_two_experts_write_one_answer_byte_by_byte(world: World) -> None:
    text, routing = await ask(world, said("été 🌊", x_multimoe={"combine": "tokens"}))
    assert (text, routing["combine"], routing["degraded"]) == ("été 🌊", "tokens", False)
    world.gate.picks = ("one", "gone")
    text, routing = await ask(world, said("été 🌊", x_multimoe={"combine": "tokens"}))
    assert (text, routing["combine"], routing["degraded"]) == ("été 🌊", "tokens", True)
    assert {share["id"]: share["weight"] for share in routing["experts"]} == {"multimoe/one": 1, "multimoe/gone": 0}


@pytest.mark.parametrize("combine", ["weighted", "best", "vote", "fuse", "auto", "tokens", "all"])
async def test_every_way_streams_what_it_says_whole(world: World, combine: str) -> None:
    body = said("a 🌊 b", x_multimoe={"combine": combine})
    whole, _ = await ask(world, body)
    async with world.client() as client, client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        frames = [json.loads(line[6:]) async for line in response.aiter_lines() if line.startswith("data: {")]
    assert "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames) == whole
    routing = frames[-1]["x_multimoe"]
    assert (routing["final"], routing["combine_asked"]) == (True, combine)
    assert 0 <= routing["timing_ms"]["first_token"] <= routing["timing_ms"]["total"]


async def test_a_second_classifier_is_spared_where_the_first_is_sure(world: World) -> None:
    world.gate.picks = ("eye", "eagle")
    picture = {"model": "multimoe:sparing", "messages": [{"role": "user", "content": [image_part()]}]}
    _, routing = await ask(world, picture)
    assert [share["status"] for share in routing["experts"]] == ["ok", "skipped"]
    assert "0.90" in routing["experts"][1]["reason"]
    _, routing = await ask(world, {**picture, "x_multimoe": {"ask_next_below": 0.95}})
    assert [share["status"] for share in routing["experts"]] == ["ok", "ok"]


async def test_an_impossible_wish_is_refused_by_its_name(world: World) -> None:
    async with world.client() as client:
        for wish in ({"combine": "mean"}, {"ask_next_below": 2}):
            refused = await client.post(CHAT, json=said("hi", x_multimoe=wish))
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == f"x_multimoe.{next(iter(wish))}"


def test_a_fuser_that_writes_nothing_is_refused() -> None:
    tree = {**CATALOG, "blend": {"fuser": "eye"}}
    with pytest.raises(BadConfig, match="no text expert; there are: parrot, sloth, broken"):
        parse(tree)
    assert parse({**CATALOG, "blend": {"fuser": "parrot"}}).blend.fuser == "parrot"


@pytest.mark.filterwarnings("ignore")  # Ray's own
async def test_the_next_token_comes_through_a_replica_and_so_does_its_failure(tmp_path: Path) -> None:
    from ray import serve

    from gateway.deployment.ray_cluster import RayCluster
    from gateway.deployment.serving import ExpertReplica, expert_app_name

    catalog: Catalog = parse({**CATALOG, "home": str(tmp_path), "experts": EXPERTS})
    cluster = RayCluster(catalog)
    request = ChatRequest("r", (Message("user", (TextPart("hi"),)),))

    def replica(spec: ExpertSpec) -> Any:
        app = ExpertReplica.bind(spec.model_dump(mode="json"), str(tmp_path))  # type: ignore[attr-defined]
        return serve.run(app, name=expert_app_name(spec.name), _local_testing_mode=True)

    for name in ("one", "gone", "eye"):
        cluster._handles[expert_app_name(name)] = replica(catalog.expert(name))
    listed = await cluster.next_tokens("one", request, (ord("h"),), 5)
    assert [token.piece for token in listed.tokens] == [b"i"]
    for name, problem in (("gone", "its options say so"), ("eye", "does not write token by token")):
        with pytest.raises((ExpertFailed, MultimoeError), match=problem):
            await cluster.next_tokens(name, request, (), 5)
