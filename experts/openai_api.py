"""Asks a model behind any URL that speaks OpenAI's API: a hosted one, another server, or another multimoe.

Keys come from the environment of the replica and from nowhere else; no error and no log line repeats one. Nothing is
retried but a refusal that says when to come again: another expert is there to answer meanwhile.
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import httpx2
import openai
import orjson
from pydantic import BaseModel, ConfigDict, Field

from multimoe.config import ExpertSpec, Settings, validate
from multimoe.errors import BadConfig, BadInput, ExpertFailed, ExpertTimeout, LoopDetected, MultimoeError
from multimoe.expert import Delta, Expert, FindWeights
from multimoe.media import encode_wav
from multimoe.messages import AudioPart, ChatRequest
from multimoe.openai_chat import Chunk, Json, chat_body, deltas
from multimoe.outputs import Segment, Transcript, Usage
from multimoe.server_sent import event_data

VIA = "x-multimoe-via"  # the gateways a request has come through, as a gateway reads it
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
ABOUT_THE_INPUT = (400, 413, 415, 422)
COME_AGAIN = (429, 503)
# what the environment says of an account at OpenAI is not meant for every server
NOT_OPENAI: Any = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
IDLE = 8  # connections kept open for the next question
REST_SECONDS = 0.1  # that a server gets to end a body whose answer is over
QUOTED = 300  # characters of what a server says of its own failure


class Options(Settings):
    """`base_url` as OpenAI's clients take it (it mostly ends in /v1), `model` as the server calls it.

    `api_key_env` names the environment variable that holds the key, `headers_env` maps further headers to such
    variables. `body` is added to each request, above all else (null leaves a field out); `token_field` is what the
    server calls the limit on the answer. An answer of more than `answer_bytes` is cut off. `connect_s` in seconds; the
    whole answer has the expert's `timeout_s`. With `price_in` and `price_out`, in US$ a million tokens, or where the
    server itself says what an answer cost, that takes the place of the expert's `cost`.
    """

    base_url: str
    model: str = Field(min_length=1)
    api_key_env: str = ""
    headers_env: dict[str, str] = {}
    body: dict[str, Any] = {}
    token_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105  # a count
    connect_s: float = Field(default=5.0, gt=0)
    answer_bytes: int = Field(default=16 * 2**20, gt=0)
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)


class OpenAI(Expert):
    """Writes text. `inputs` say what is passed on of a conversation: text, pictures, recordings. Options: `Options`."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self._server = Server(spec)

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        body = await asyncio.to_thread(chat_body, request, self.spec)
        async with aclosing(self._server.chunks(body, request.via)) as chunks:
            async for delta in deltas(chunks, self.spec.name):
                yield replace(delta, usage=self._server.priced(delta.usage)) if delta.usage else delta


class Speech(Expert):
    """Writes down what is said in recordings (`output: transcript`), by /audio/transcriptions. Options: `Options`.

    Times come from servers that have "verbose_json"; for others say `body: {response_format: json}`.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self._server = Server(spec)

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        if not request.audios:
            raise BadInput(f"expert {self.spec.name!r} hears recordings, and the last user message holds none")
        segments: list[Segment] = []
        begin = 0.0
        for audio in request.audios:
            heard = await self._server.transcript(audio, request.via)
            segments += _segments(heard, begin, audio.seconds)
            begin += audio.seconds
        yield Delta(output=Transcript(segments=tuple(segments), language=heard.language))
        yield Delta(usage=Usage(), finish="stop")


class Heard(BaseModel):
    """An answer of /audio/transcriptions, as far as it is read here."""

    model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True)

    class Piece(BaseModel):
        model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True)

        start: float
        end: float
        text: str

    text: str
    language: str | None = None
    segments: tuple[Piece, ...] | None = None


def _segments(heard: Heard, begin: float, seconds: float) -> list[Segment]:
    """As they lie in all recordings together; one for the whole of this where the server gives no times."""
    if heard.segments is None:
        return [Segment(start=begin, end=begin + seconds, text=heard.text)] if heard.text.strip() else []
    return [Segment(start=begin + piece.start, end=begin + piece.end, text=piece.text) for piece in heard.segments]


class Server:
    """One model behind one URL, and its key. What goes wrong there is said in our errors, and without the key."""

    def __init__(self, spec: ExpertSpec) -> None:
        self.name = spec.name
        self.options = validate(Options, dict(spec.options), f"the options of expert {spec.name!r}")
        self.url = _plain(self.options.base_url, spec.name)
        self._patience = spec.timeout_s / 2  # seconds; who waits longer for a retry has no time left for the answer
        key = self._secret(self.options.api_key_env) if self.options.api_key_env else ""
        headers = {name: self._secret(variable) for name, variable in self.options.headers_env.items()}
        self._secrets = [secret for secret in (key, *headers.values()) if secret]
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=key or "none",  # the library wants one
            max_retries=0,
            default_headers={**NOT_OPENAI, **headers},
            http_client=httpx2.AsyncClient(
                timeout=httpx2.Timeout(spec.timeout_s, connect=self.options.connect_s),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=IDLE),
                headers={"accept-encoding": "identity"},
                event_hooks={"response": [self._limit]},
            ),
        )

    async def chunks(self, body: Json, via: tuple[str, ...]) -> AsyncGenerator[Chunk, None]:
        """Of one streamed answer. Closing it closes the connection, which tells the server to stop."""
        asked = {self.options.token_field if key == "max_tokens" else key: value for key, value in body.items()}
        create = self._client.chat.completions.create
        with self._own_errors():
            stream: Any = await self._patiently(
                lambda: create(
                    messages=asked["messages"],
                    model=self.options.model,
                    stream=True,
                    extra_headers=_passed(via),
                    extra_body={key: value for key, value in (asked | self.options.body).items() if value is not None},
                )
            )
            # each generator is closed here, and in order: what is left to the garbage collector, it closes at any time
            async with aclosing(stream.response.aiter_raw()) as pieces, aclosing(event_data(pieces)) as events:
                async for data in events:
                    if data.startswith("[DONE]"):
                        await _rest(pieces)
                        return
                    yield self._chunk(data)

    def _chunk(self, data: str) -> Chunk:
        """Raises ExpertFailed where the server says in the middle of its answer that it failed, ValueError."""
        tree = orjson.loads(data)
        if isinstance(tree, dict) and (error := tree.get("error")):
            said = error.get("message") if isinstance(error, dict) else None
            raise self._broke_off(self._scrubbed(str(said or error)))
        return Chunk.model_validate(tree)

    async def transcript(self, audio: AudioPart, via: tuple[str, ...]) -> Heard:
        wav = await asyncio.to_thread(encode_wav, audio.samples)
        create = self._client.audio.transcriptions.create
        with self._own_errors():
            heard: Any = await self._patiently(
                lambda: create(
                    file=("recording.wav", wav, "audio/wav"),
                    model=self.options.model,
                    response_format="verbose_json",
                    extra_headers=_passed(via),
                    extra_body=self.options.body,
                )
            )
            return Heard.model_validate(heard)

    def priced(self, usage: Usage) -> Usage:
        options = self.options
        if usage.cost is not None or not (options.price_in or options.price_out):
            return usage
        cost = (usage.prompt_tokens * options.price_in + usage.completion_tokens * options.price_out) / 1e6
        return usage.model_copy(update={"cost": cost})

    async def _patiently(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Once more where the server says when to come again, and that is soon."""
        try:
            return await ask()
        except openai.APIStatusError as error:
            seconds = _seconds(error.response.headers.get("retry-after", ""))
            if error.status_code not in COME_AGAIN or seconds is None or seconds > self._patience:
                raise
        await asyncio.sleep(seconds)
        return await ask()

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """`from None`, because the server's own words may hold the key, and a traceback would show them."""
        try:
            yield
        except (openai.APITimeoutError, httpx2.TimeoutException):
            raise ExpertTimeout(f"expert {self.name!r}: {self.url} did not answer in time") from None
        except openai.APIConnectionError as error:
            why = self._scrubbed(str(error.__cause__ or error))
            raise ExpertFailed(f"expert {self.name!r} has no connection to {self.url}: {why}") from None
        except openai.APIStatusError as error:
            raise self._refused(error.status_code, self._said(error)) from None
        except openai.APIError as error:
            raise self._broke_off(self._said(error)) from None
        except httpx2.HTTPError as error:
            raise self._broke_off(self._scrubbed(str(error))) from None
        except ValueError:
            raise ExpertFailed(
                f"expert {self.name!r}: what {self.url} sent is not of OpenAI's form; is base_url right?"
            ) from None

    def _broke_off(self, why: str) -> ExpertFailed:
        return ExpertFailed(f"expert {self.name!r}: {self.url} failed midway: {why}")

    def _refused(self, status: int, said: str) -> MultimoeError:
        if status in ABOUT_THE_INPUT:
            return BadInput(f"expert {self.name!r} does not take this: {said}")
        if status in (401, 403):
            name = self.options.api_key_env
            cure = f"set {name}" if name else "name the variable that holds its key as api_key_env"
            return ExpertFailed(f"{self.url} refused the key of expert {self.name!r} ({status}): {cure}")
        if status == 404:
            cure = f"is model {self.options.model!r} there, and does base_url end as it should?"
            return ExpertFailed(f"expert {self.name!r}: {self.url} answered 404 ({said}): {cure}")
        kind = LoopDetected if status == 508 else ExpertFailed
        return kind(f"expert {self.name!r}: {self.url} answered {status}: {said}")

    def _said(self, error: openai.APIError) -> str:
        message = error.body.get("message") if isinstance(error.body, dict) else None
        return self._scrubbed(str(message or error.message))

    def _scrubbed(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:QUOTED]

    def _secret(self, variable: str) -> str:
        """The value is never told, nor what stands where a variable's name should."""
        if not VARIABLE.fullmatch(variable):
            raise BadConfig(
                f"expert {self.name!r}: api_key_env and headers_env take the names of environment variables, in "
                "capitals; a key itself does not belong into the catalog"
            )
        secret = os.environ.get(variable, "").strip()  # files that keys are read from end in a newline
        if not secret:
            raise BadConfig(f"expert {self.name!r} needs the environment variable {variable} where its replicas run")
        if not (secret.isascii() and secret.isprintable()):  # else HTTP's own error would repeat it, escaped
            raise BadConfig(f"expert {self.name!r}: what {variable} holds cannot be sent as a header; set it anew")
        return secret

    async def _limit(self, response: httpx2.Response) -> None:
        """Before a byte of the body is read. What is compressed could unpack to anything, and was not asked for."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ExpertFailed(f"expert {self.name!r}: {self.url} sends compressed answers, which it was asked not to")
        response.stream = Limited(cast(httpx2.AsyncByteStream, response.stream), self.options.answer_bytes, self.name)


class Limited(httpx2.AsyncByteStream):
    """The body of a response, cut off with ExpertFailed after `limit` bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int, name: str) -> None:
        self.stream = stream
        self.limit = limit
        self.name = name

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for piece in self.stream:
            read += len(piece)
            if read > self.limit:
                raise ExpertFailed(f"the answer of expert {self.name!r} is over {self.limit:,} bytes (answer_bytes)")
            yield piece

    async def aclose(self) -> None:
        await self.stream.aclose()


def _plain(url: str, name: str) -> str:
    """`url`, which holds no secret. Raises BadConfig, and does not repeat it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadConfig(f"expert {name!r}: base_url must begin with http:// or https:// and name a host")
    if parts.username or parts.password or parts.query:
        raise BadConfig(f"expert {name!r}: base_url must hold no password and no query; keys go by api_key_env")
    return url.rstrip("/")


async def _rest(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows the answer, mostly nothing: only a connection that was read to its end serves again."""
    with suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(REST_SECONDS):
            async for _ in pieces:
                pass


def _passed(via: tuple[str, ...]) -> dict[str, str]:
    return {VIA: ", ".join(via)} if via else {}


def _seconds(text: str) -> float | None:
    """A date, which few servers send, counts as no promise."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return None
