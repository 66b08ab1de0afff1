"""An OpenAI-compatible server as an expert, over real HTTP on loopback: a strict one that can fail in every way.

Its model's name says what it does. llama.cpp's own server stands for a rival's.
"""

import asyncio
import base64
import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from api_world import served, until
from fastapi import FastAPI, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response, StreamingResponse

from experts.openai_api import OpenAI, Speech
from multimoe.config import ExpertSpec, Limits
from multimoe.errors import BadConfig, BadInput, ExpertFailed, ExpertTimeout, LoopDetected
from multimoe.expert import Delta, Expert, FindWeights
from multimoe.media import decode_audio
from multimoe.messages import AudioPart, ChatRequest, ImagePart, Message, Part, Role, TextPart
from multimoe.outputs import Transcript, Usage

KEY = "sk-very-secret-4711"
NO_WEIGHTS = cast(FindWeights, None)
MIB = 2**20


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Body(Strict):
    """The request as OpenAI documents it, as far as the expert uses it: anything else is answered by 400."""

    class Turn(Strict):
        role: str
        content: str | list[dict[str, Any]]

    class StreamOptions(Strict):
        include_usage: bool

    model: str
    messages: list[Turn]
    stream: bool
    stream_options: StreamOptions
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    reasoning_effort: str | None = None


@dataclass
class Stub:
    """What it was asked, and what became of its answers."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked: int = 0
    hung_up: int = 0
    go_on: bool = False

    def app(self) -> FastAPI:
        app = FastAPI()
        app.post("/v1/chat/completions")(self.chat)
        app.post("/v1/audio/transcriptions")(self.transcribe)
        return app

    async def chat(self, request: Request) -> Response:
        self.asked += 1
        self.headers.append(dict(request.headers))
        sent = await request.json()
        self.bodies.append(sent)
        try:
            body = Body.model_validate(sent)
        except ValueError as error:
            return problem(400, f"strictly speaking: {error}")
        if request.headers.get("authorization") not in (f"Bearer {KEY}", "Bearer none"):
            return problem(401, f"Incorrect API key provided: {request.headers.get('authorization')}")
        return await self.answer(body.model, request)

    async def answer(self, model: str, request: Request) -> Response:
        if model.isdigit():
            return problem(int(model), f"it failed with {KEY}")
        if model.startswith("busy"):
            after = model.partition(" ")[2]
            if self.asked == 1 or after == "0":
                return problem(429, "slow down", {"retry-after": after or "0.05"})
            return stream(said("at last"), end())
        if model == "silent":
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
            self.hung_up += 1
        if model == "endless":
            return StreamingResponse(self.endless(), media_type="text/event-stream")
        if model == "flood":
            return StreamingResponse(self.flood(request), media_type="text/event-stream")
        if model == "flooded error":
            return StreamingResponse(self.flood(request), 500, media_type="application/json")
        if model == "step by step":
            return StreamingResponse(self.step_by_step(), media_type="text/event-stream")
        return ANSWERS[model]()

    async def endless(self) -> AsyncIterator[str]:
        try:
            yield said("on and ")
            while True:
                await asyncio.sleep(0.01)
                yield said("on and ")
        finally:
            self.hung_up += 1

    async def flood(self, request: Request) -> AsyncIterator[bytes]:
        """One line without end: whoever does not count what he reads reads for ever."""
        yield b"data: "
        while not await request.is_disconnected():
            yield b"x" * MIB
        self.hung_up += 1

    async def step_by_step(self) -> AsyncIterator[str]:
        yield said("first")
        while not self.go_on:
            await asyncio.sleep(0.005)
        yield said(" second") + end()

    async def transcribe(self, request: Request) -> Response:
        self.headers.append(dict(request.headers))
        async with request.form() as form:
            sound = decode_audio(await form["file"].read(), Limits())  # type: ignore[union-attr]
        self.bodies.append({key: value for key, value in form.items() if key != "file"} | {"seconds": sound.seconds})
        if form["model"] == "garbled":
            return Response("<html>", media_type="text/html")
        heard: dict[str, Any] = {"text": "hello there"}
        if form["response_format"] == "verbose_json":
            piece = {"id": 0, "start": 0.25, "end": 0.75, "text": " hello there", "tokens": []}
            heard |= {"language": "english", "duration": 1.0, "segments": [piece]}
        return JSONResponse(heard)


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    error = {"message": message, "type": "some_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)


def frame(**data: Any) -> str:
    return f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'm', **data})}\n\n"


def said(text: str) -> str:
    return frame(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def end(reason: str = "stop", usage: bool = True, **more: float) -> str:
    last = frame(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
    counted = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, **more}
    return last + (frame(choices=[], usage=counted) if usage else "") + "data: [DONE]\n\n"


def stream(*frames: str) -> Response:
    return Response("".join(frames), media_type="text/event-stream")


def cut(*frames: str) -> Response:
    async def broken() -> AsyncIterator[str]:
        for one in frames:
            yield one
        raise ConnectionAbortedError

    return StreamingResponse(broken(), media_type="text/event-stream")


ANSWERS: dict[str, Callable[[], Response]] = {
    "good": lambda: stream(": a comment\n\n", frame(choices=[]), said("Hello"), said(" there"), end()),
    "good without usage": lambda: stream(said("Hello there"), end(usage=False)),
    "good with its cost": lambda: stream(said("Hello there"), end(cost=0.5)),
    "long": lambda: stream(said("Hello"), end("length")),
    "refusing": lambda: stream(
        frame(choices=[{"index": 0, "delta": {"refusal": "I would rather not."}, "finish_reason": None}]), end()
    ),
    "filtered": lambda: stream(end("content_filter")),
    "no end": lambda: stream(said("Hello")),
    "cut": lambda: cut(said("Hello")),
    "error inside": lambda: stream(said("Hello"), 'data: {"error": {"message": "out of memory", "code": 500}}\n\n'),
    "not JSON": lambda: stream("data: {nonsense\n\n"),
    "not a chunk": lambda: stream('data: {"choices": "none"}\n\n'),
    "not an object": lambda: stream("data: [1, 2]\n\n"),
    "not UTF-8": lambda: Response(b"data: \xff\xfe\n\n", media_type="text/event-stream"),
    "a page": lambda: Response("<html>Welcome</html>", media_type="text/html"),
    "empty": lambda: stream(),
    "elsewhere": lambda: Response(status_code=307, headers={"location": "/v1/elsewhere"}),
    "compressed": lambda: Response(b"x", headers={"content-encoding": "gzip"}, media_type="text/event-stream"),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Stub, str]]:
    stub = Stub()
    with served(cast(Any, SimpleNamespace(app=stub.app()))) as url:
        yield stub, url


@pytest.fixture
def stub(shared: tuple[Stub, str]) -> Stub:
    """The same server, that remembers nothing."""
    vars(shared[0]).update(vars(Stub()))
    return shared[0]


@pytest.fixture
def url(shared: tuple[Stub, str]) -> str:
    return shared[1]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key; and no connection outlives its question, as it would outlive the test's event loop."""
    monkeypatch.setenv("THE_KEY", KEY)
    monkeypatch.setattr("experts.openai_api.IDLE", 0)


def spec_of(url: str, model: str, inputs: set[str] | None = None, timeout_s: float = 10, **options: Any) -> ExpertSpec:
    return ExpertSpec.model_validate(
        {
            "name": "other",
            "backend": "experts.openai_api:OpenAI",
            "inputs": inputs or {"text"},
            "output": "text",
            "card": {"description": "Another server."},
            "timeout_s": timeout_s,
            "options": {"base_url": url, "model": model, "api_key_env": "THE_KEY", **options},
        }
    )


def expert(url: str, model: str, **changes: Any) -> OpenAI:
    return OpenAI(spec_of(url, model, **changes), NO_WEIGHTS)


def asking(*parts: Part, before: tuple[Message, ...] = (), **settings: Any) -> ChatRequest:
    return ChatRequest("r", (*before, Message("user", parts or (TextPart("hi"),))), **settings)


async def read(asked: Expert, request: ChatRequest | None = None) -> list[Delta]:
    return [delta async for delta in asked.answer(request or asking())]


def words(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


# what is passed on


async def test_the_whole_conversation_is_passed_on_with_its_settings(stub: Stub, url: str) -> None:
    turns: list[tuple[Role, str]] = [("system", "Be brief."), ("user", "hi"), ("assistant", "hello")]
    before = tuple(Message(role, (TextPart(text),)) for role, text in turns)
    settings: Any = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": ("END",), "seed": 3}
    await read(expert(url, "good"), asking(TextPart("how are you?"), before=before, **settings))
    (body,) = stub.bodies
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "how are you?"},
    ]
    assert body | settings | {"stop": ["END"]} == body
    assert body["model"] == "good"


async def test_pictures_and_recordings_are_passed_on_as_they_are(stub: Stub, url: str) -> None:
    page = np.full((40, 60, 3), 255, np.uint8)
    page[10:20] = 7
    photo = np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)
    sound = np.sin(np.arange(16_000) / 10).astype(np.float32)
    parts = (TextPart("what is this?"), ImagePart(page), ImagePart(photo), AudioPart(sound))
    await read(expert(url, "good", inputs={"text", "image", "audio"}), asking(*parts))
    text, exact, small, heard = stub.bodies[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is this?"}
    assert (pixels(exact)[0], pixels(small)[0]) == ("png", "jpeg")
    np.testing.assert_array_equal(pixels(exact)[1], page)
    assert pixels(small)[1].shape == photo.shape
    assert heard["input_audio"]["format"] == "wav"
    samples = decode_audio(base64.b64decode(heard["input_audio"]["data"]), Limits()).samples
    np.testing.assert_allclose(samples, sound, atol=1e-3)


def pixels(part: dict[str, Any]) -> tuple[str, Any]:
    head, data = part["image_url"]["url"].split(";base64,")
    return head.removeprefix("data:image/"), np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


async def test_what_the_model_cannot_read_is_left_out(stub: Stub, url: str) -> None:
    picture = ImagePart(np.zeros((4, 4, 3), np.uint8))
    before = (Message("user", (picture,)), Message("assistant", (TextPart("A black square."),)))
    await read(expert(url, "good"), asking(TextPart("sure?"), picture, before=before))
    assert [turn["content"] for turn in stub.bodies[0]["messages"]] == ["A black square.", "sure?"]
    with pytest.raises(BadInput, match="reads text"):
        await read(expert(url, "good"), asking(picture))
    assert stub.asked == 1


async def test_a_server_with_other_field_names_gets_them(stub: Stub, url: str) -> None:
    body = {"temperature": None, "top_p": None, "reasoning_effort": "low"}
    await read(expert(url, "good", token_field="max_completion_tokens", body=body), asking(max_tokens=5))  # noqa: S106
    assert set(stub.bodies[0]) == {
        "model", "messages", "stream", "stream_options", "max_completion_tokens", "reasoning_effort"
    }  # fmt: skip
    assert stub.bodies[0]["max_completion_tokens"] == 5


async def test_gateways_on_the_way_are_passed_on(stub: Stub, url: str) -> None:
    await read(expert(url, "good"), asking(via=("one", "two")))
    await read(expert(url, "good"))
    assert [headers.get("x-multimoe-via") for headers in stub.headers] == ["one, two", None]


# what comes back


async def test_words_come_as_they_are_written(stub: Stub, url: str) -> None:
    answer = expert(url, "step by step").answer(asking())
    assert (await anext(answer)).text == "first"  # the server waits for this before it goes on
    stub.go_on = True
    rest = [delta async for delta in answer]
    assert words(rest) == " second"
    assert rest[-1] == Delta(usage=Usage(prompt_tokens=7, completion_tokens=2), finish="stop")


@pytest.mark.parametrize(
    ("model", "text", "finish", "tokens"),
    [
        ("good", "Hello there", "stop", 2),
        ("good without usage", "Hello there", "stop", 0),
        ("long", "Hello", "length", 2),
        ("refusing", "I would rather not.", "stop", 2),
    ],
)
async def test_ends_are_told_apart(url: str, model: str, text: str, finish: str, tokens: int) -> None:
    deltas = await read(expert(url, model))
    assert (words(deltas), deltas[-1].finish) == (text, finish)
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == tokens


@pytest.mark.parametrize(
    ("model", "prices", "cost"),
    [
        ("good", {}, None),
        ("good", {"price_in": 1.0, "price_out": 4.0}, 15e-6),
        ("good with its cost", {"price_in": 1.0}, 0.5),
        ("good without usage", {"price_in": 1.0}, 0.0),
    ],
)
async def test_what_it_cost_is_told_where_it_is_known(
    url: str, model: str, prices: dict[str, Any], cost: float | None
) -> None:
    *_, last = await read(expert(url, model, **prices))
    assert last.usage is not None
    assert last.usage.cost == (cost if cost is None else pytest.approx(cost))


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ("400", BadInput, "does not take this: it failed"),
        ("413", BadInput, "does not take this"),
        ("422", BadInput, "does not take this"),
        ("401", ExpertFailed, "set THE_KEY"),
        ("403", ExpertFailed, "set THE_KEY"),
        ("404", ExpertFailed, "is model '404' there"),
        ("429", ExpertFailed, "answered 429"),
        ("500", ExpertFailed, "answered 500"),
        ("503", ExpertFailed, "answered 503"),
        ("508", LoopDetected, "answered 508"),
        ("elsewhere", ExpertFailed, "answered 307"),
        ("filtered", ExpertFailed, "without a word"),
        ("no end", ExpertFailed, "broke off before its end"),
        ("empty", ExpertFailed, "broke off before its end"),
        ("a page", ExpertFailed, "broke off before its end"),
        ("cut", ExpertFailed, "failed midway"),
        ("error inside", ExpertFailed, "out of memory"),
        ("not JSON", ExpertFailed, "not of OpenAI's form"),
        ("not a chunk", ExpertFailed, "not of OpenAI's form"),
        ("not an object", ExpertFailed, "not of OpenAI's form"),
        ("not UTF-8", ExpertFailed, "not of OpenAI's form"),
        ("compressed", ExpertFailed, "compressed"),
    ],
)
async def test_a_failure_there_is_told_in_our_words(
    stub: Stub, url: str, model: str, error: type[Exception], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(error, match=says) as caught:
        await read(expert(url, model))
    assert stub.asked == 1  # nobody retries behind our back
    assert type(caught.value) is error
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__ or not caught.value.__context__
    assert KEY not in caplog.text


async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ExpertFailed, match=f"no connection to {url}"):
            await read(expert(url, "good"))


async def test_a_server_that_says_nothing_is_given_up(stub: Stub, url: str) -> None:
    with pytest.raises(ExpertTimeout, match="did not answer in time"):
        await read(expert(url, "silent", timeout_s=0.2))
    until(lambda: stub.hung_up == 1)


@pytest.mark.parametrize(("model", "asked"), [("busy", 2), ("busy 0", 2), ("busy 60", 1), ("busy tomorrow", 1)])
async def test_come_again_is_heeded_once_and_only_when_it_is_soon(stub: Stub, url: str, model: str, asked: int) -> None:
    if model == "busy":
        assert words(await read(expert(url, model))) == "at last"
    else:
        with pytest.raises(ExpertFailed, match="slow down"):
            await read(expert(url, model))
    assert stub.asked == asked


@pytest.mark.parametrize("model", ["flood", "flooded error"])
async def test_an_answer_without_end_is_cut_off(stub: Stub, url: str, model: str) -> None:
    with pytest.raises(ExpertFailed, match="over 2,097,152 bytes"):
        await read(expert(url, model, answer_bytes=2 * MIB))
    await asyncio.to_thread(until, lambda: stub.hung_up == 1)


async def test_closing_the_answer_ends_the_work_on_it(stub: Stub, url: str) -> None:
    answer: Any = expert(url, "endless").answer(asking())
    await anext(answer)
    assert stub.hung_up == 0
    await answer.aclose()
    await asyncio.to_thread(until, lambda: stub.hung_up == 1)


@pytest.mark.parametrize("model", ["endless", "silent"])
async def test_cancelling_ends_the_work_on_it(stub: Stub, url: str, model: str) -> None:
    task = asyncio.create_task(read(expert(url, model)))
    await asyncio.to_thread(until, lambda: stub.asked == 1)
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.to_thread(until, lambda: stub.hung_up == 1)


# keys


async def test_the_key_comes_from_the_environment_and_nothing_else_does(
    stub: Stub, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "https://somebody.else")
    await read(expert(url, "good", headers_env={"X-Account": "THE_KEY"}))
    await read(expert(url, "good", api_key_env=""))
    assert [headers["authorization"] for headers in stub.headers] == [f"Bearer {KEY}", "Bearer none"]
    assert stub.headers[0]["x-account"] == KEY
    assert "somebody" not in str(stub.headers)


async def test_a_key_read_from_a_file_may_end_in_a_newline(
    stub: Stub, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", f"{KEY}\n")
    await read(expert(url, "good", headers_env={"X-Account": "THE_KEY"}))
    assert [stub.headers[0][name] for name in ("authorization", "x-account")] == [f"Bearer {KEY}", KEY]


@pytest.mark.parametrize("held", [f"{KEY}\nsecond line", f"{KEY}ü", f"{KEY}\x00", " \n"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_told(monkeypatch: pytest.MonkeyPatch, held: str) -> None:
    monkeypatch.setattr("os.environ", {"THE_KEY": held})  # a real one holds no zero byte
    with pytest.raises(BadConfig, match="THE_KEY") as caught:
        expert("http://127.0.0.1:1/v1", "good")
    assert KEY not in str(caught.value)


async def test_a_server_that_wants_a_key_gets_none_by_default(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG", "sk-wrong")
    with pytest.raises(ExpertFailed, match="set WRONG") as caught:
        await read(expert(url, "good", api_key_env="WRONG"))
    assert "sk-wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"api_key": KEY}, "unknown key 'api_key'; did you mean 'api_key_env'"),
        ({"api_key_env": KEY}, "names of environment variables"),
        ({"api_key_env": "deadbeef4711"}, "names of environment variables"),
        ({"headers_env": {"Authorization": f"Bearer {KEY}"}}, "names of environment variables"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "needs the environment variable NOT_SET_ANYWHERE"),
        ({"base_url": f"https://me:{KEY}@example.org/v1"}, "no password"),
        ({"base_url": f"https://example.org/v1?key={KEY}"}, "no query"),
        ({"base_url": "example.org/v1"}, "must begin with http"),
        ({"temperatur": 1}, "unknown key"),
        ({"model": ""}, "model"),
    ],
)
def test_a_catalog_with_a_key_or_a_mistake_in_it_is_refused(options: dict[str, Any], says: str) -> None:
    spec = spec_of("http://127.0.0.1:1/v1", "good").model_copy(
        update={"options": {"base_url": "http://127.0.0.1:1/v1", "model": "good", **options}}
    )
    with pytest.raises(BadConfig, match=says) as caught:
        OpenAI(spec, NO_WEIGHTS)
    assert KEY not in str(caught.value)
    assert "deadbeef" not in str(caught.value)


# speech


def listener(url: str, model: str = "whisper-1", **options: Any) -> Speech:
    spec = spec_of(url, model, inputs={"audio"}, **options)
    return Speech(spec.model_copy(update={"output": "transcript"}), NO_WEIGHTS)


SECOND = AudioPart(np.zeros(16_000, np.float32))


async def test_recordings_are_written_down_one_after_the_other(stub: Stub, url: str) -> None:
    first, last = await read(listener(url), asking(SECOND, SECOND, via=("one",)))
    assert isinstance(first.output, Transcript)
    assert [(s.start, s.end, s.text) for s in first.output.segments] == [
        (0.25, 0.75, " hello there"),
        (1.25, 1.75, " hello there"),
    ]
    assert (first.output.language, last.finish) == ("english", "stop")
    assert stub.bodies[0] == {"model": "whisper-1", "response_format": "verbose_json", "seconds": 1.0}
    assert stub.headers[0]["x-multimoe-via"] == "one"


async def test_a_transcript_without_times_spans_the_recording(url: str) -> None:
    first, _ = await read(listener(url, body={"response_format": "json"}), asking(SECOND))
    assert isinstance(first.output, Transcript)
    assert [(s.start, s.end) for s in first.output.segments] == [(0.0, 1.0)]


async def test_what_is_no_transcript_is_a_failure(url: str) -> None:
    with pytest.raises(ExpertFailed, match="not of OpenAI's form"):
        await read(listener(url, "garbled"), asking(SECOND))
    with pytest.raises(BadInput, match="hears recordings"):
        await read(listener(url), asking())


# a rival's server


@pytest.mark.weights
async def test_llama_cpp_s_own_server_is_an_expert(
    catalog: Any, weights: FindWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experts.llamacpp import Chat

    engine = Chat(catalog.expert("chat"), weights)
    monkeypatch.setenv("RIVALS_KEY", engine._headers["Authorization"].removeprefix("Bearer "))
    url = f"{engine._engine.listening_address}/v1"
    rival = expert(url, "any", api_key_env="RIVALS_KEY", timeout_s=60)
    before = (Message("system", (TextPart("You are a helpful assistant. Answer briefly and correctly."),)),)
    question = TextPart("What is the capital of France?")
    deltas = await read(rival, asking(question, before=before, max_tokens=24))
    assert "Paris" in words(deltas)
    assert len(deltas) > 3
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens > 3
    cut_short = await read(rival, asking(TextPart("Count to a hundred."), max_tokens=4))
    assert cut_short[-1].finish == "length"
    with pytest.raises(ExpertFailed, match="set THE_KEY"):
        await read(expert(url, "any"))
    with pytest.raises(BadInput):
        await read(rival, replace(asking(TextPart("far too long " * 3000)), max_tokens=8))
