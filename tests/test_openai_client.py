"""The stock OpenAI client against the gateway on a real socket."""

import asyncio
import base64
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from api_world import Sloth, World, audio_part, image_part, served, until, wav
from openai import AsyncOpenAI, OpenAI

from multimoe.media import encode_png

ASKED: Any = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("home"))
    yield made
    made.log.close()


@pytest.fixture(scope="module")
def url(world: World) -> Iterator[str]:
    with served(world) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_an_answer_as_a_whole(client):
    answer = client.chat.completions.create(model="multimoe", messages=ASKED)
    assert answer.choices[0].message.content == "one two three"
    assert answer.usage.total_tokens == 6
    assert answer.usage.cost == 0.001
    assert answer.x_multimoe["experts"][0]["id"] == "multimoe/parrot"
    assert answer._request_id.startswith("req-")


def test_an_answer_as_it_comes(client):
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="multimoe", messages=ASKED, stream=True, stream_options=options
    ) as stream:
        assert stream.response.headers["x-multimoe-completion-id"].startswith("chatcmpl-")
        chunks = list(stream)
    assert chunks[0].x_multimoe["reason"] == ["it was set so"]
    assert chunks[0].selected_model_id == "multimoe/parrot"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-2].x_multimoe["final"] is True
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 6)


def test_the_client_s_own_accumulator_understands_the_stream(client):
    with client.chat.completions.stream(model="multimoe", messages=ASKED) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "one two three"


async def test_the_asynchronous_client_too(url):
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(model="multimoe", messages=ASKED)
        stream = await client.chat.completions.create(model="multimoe", messages=ASKED, stream=True)
        words = [c.choices[0].delta.content or "" async for c in stream]
    assert whole.choices[0].message.content == "".join(words) == "one two three"


def test_all_three_kinds_of_part(client):
    text = {"type": "text", "text": "what is it?"}
    for part, modality in ((text, "text"), (image_part(), "image"), (audio_part(), "audio")):
        messages: Any = [{"role": "user", "content": [part]}]
        answer = client.chat.completions.create(model="multimoe", messages=messages)
        assert answer.x_multimoe["modalities"] == [modality]
        assert answer.choices[0].message.content


def test_our_options_travel_in_extra_body_and_headers(client, world):
    world.gate.policies.clear()
    client.chat.completions.create(
        model="multimoe",
        messages=ASKED,
        extra_body={"x_multimoe": {"top_k": 3, "experts": ["parrot"]}},
        extra_headers={"x-multimoe-explore": "false"},
    )
    policy = world.gate.policies[0]
    assert (policy.top_k, policy.experts, policy.explore) == (3, ("parrot",), False)


def test_raw_responses_have_our_headers(client):
    raw = client.chat.completions.with_raw_response.create(model="multimoe", messages=ASKED)
    assert raw.headers["x-multimoe-experts"] == "multimoe/parrot;w=1"
    assert raw.headers["x-multimoe-path"] == "single"
    assert raw.parse().id == raw.headers["x-multimoe-completion-id"]


@pytest.mark.parametrize(
    ("change", "kind", "code", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value", "temperature"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a.test/"}}]}
                ]
            },
            openai.BadRequestError,
            "url_not_allowed",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [audio_part(b"RIFF")]}]},
            openai.APIStatusError,
            "unsupported_media",
            "messages[0].content[0]",
        ),
        ({"model": "multimoe/broken"}, openai.InternalServerError, "expert_failed", None),
    ],
)
def test_errors_become_the_client_s_own_classes(client, change, kind, code, param):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "multimoe", "messages": ASKED, **change})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id


def test_an_error_inside_a_stream_is_raised(client):
    stream = client.chat.completions.create(model="multimoe/broken", messages=ASKED, stream=True)
    with pytest.raises(openai.APIError, match="failed"):
        list(stream)


def test_a_conflict_is_not_tried_again(url, world):
    version = world.write_version()
    world.gate.broken_versions = {version}
    with OpenAI(base_url=url, api_key="none", max_retries=2) as client:
        world.gate.configured.clear()
        with pytest.raises(openai.ConflictError):
            client.put("/gate/aliases/champion", body={"version": version}, cast_to=object)
    assert world.gate.configured.count(version) == 1


def test_models_are_listed_and_found_by_a_name_with_a_slash(client):
    assert "multimoe/eye" in [model.id for model in client.models.list()]
    assert client.models.retrieve("multimoe/eye").architecture["input_modalities"] == ["image"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("multimoe/nobody")


def test_embeddings_in_the_client_s_default_encoding(client):
    answer = client.embeddings.create(model="multimoe-embed", input=["ab", "abc"])
    assert [one.embedding[0] for one in answer.data] == [2.0, 3.0]
    assert len(answer.data[0].embedding) == 384


def test_speech_to_text(client):
    heard = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", wav()))
    assert heard.text == "0.5 seconds"
    whole = client.audio.transcriptions.create(model="multimoe", file=("a.wav", wav()), response_format="verbose_json")
    assert (whole.duration, whole.segments[0].text) == (0.5, "0.5 seconds")


def test_a_rating_goes_through_the_client_s_own_post(client, world):
    answer = client.chat.completions.create(model="multimoe", messages=ASKED)
    client.post("/feedback", body={"completion_id": answer.id, "score": 1.0}, cast_to=object)
    assert world.log.ratings(answer.id)[0].score == 1.0


def test_a_reader_that_hangs_up_stops_the_expert_and_leaves_a_record(client, world):
    stream = client.chat.completions.create(model="multimoe/sloth", messages=ASKED, stream=True)
    chunks = iter(stream)
    next(chunks)
    assert next(chunks).choices[0].delta.content == "well "
    assert Sloth.answering == 1
    stream.close()
    until(lambda: Sloth.answering == 0, seconds=2)
    until(lambda: world.log.interactions(limit=1)[0].status == "cancelled", seconds=2)
    assert world.log.interactions(limit=1)[0].answer == "well "


def test_a_client_that_gives_up_waiting_stops_the_expert_too(client, world):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model="multimoe/sloth", messages=ASKED)
    until(lambda: Sloth.answering == 0, seconds=2)


def test_many_at_once_get_their_own_answers(url):
    async def ask(client: AsyncOpenAI, number: int) -> bool:
        messages: Any = [{"role": "user", "content": f"number {number}"}]
        answer = await client.chat.completions.create(model="multimoe", messages=messages)
        return answer.choices[0].message.content == f"number {number}"

    async def all_of_them() -> list[bool]:
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(40)))

    assert all(asyncio.run(all_of_them()))


def test_the_server_is_alive_after_a_body_that_was_cut_off(url, client):
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for half in (b"content-length: 500\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\nzz\r\n"):
        with socket.create_connection((host, int(port))) as line:
            line.sendall(start + half)
    assert client.chat.completions.create(model="multimoe", messages=ASKED).choices


def test_a_picture_of_megabytes_gets_through(client):
    noise = base64.b64encode(_noise(1500, 1500)).decode()
    messages: Any = [{"role": "user", "content": [image_part(noise)]}]
    answer = client.chat.completions.create(model="multimoe", messages=messages)
    assert "1500x1500" in answer.choices[0].message.content


def _noise(width: int, height: int) -> bytes:
    return encode_png(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))
