"""A client of the REST API, for everything the stock openai client has no words for. The page and the command line
are built on it, so whatever they can do, a program can.

Synchronous, JSON in and JSON out (the shapes are the API's own, see /docs on a running gateway). It knows nothing of
Ray, the store or the gate's insides, and imports nothing heavy.
"""

import base64
import contextlib
import json
import mimetypes
import socket
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from multimoe import errors

Json = dict[str, Any]

LOOPBACK = {"127.0.0.1", "::1", "localhost"}
UPGRADE_SECONDS = 360.0  # for a new edition of an expert to load and take over
TIMEOUT = httpx.Timeout(300.0, connect=5.0)  # seconds; a first answer may wait for an expert to wake

IMAGE_MAGIC = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"II*\x00": "image/tiff",
    b"MM\x00*": "image/tiff",
}
AUDIO_MAGIC = {
    b"ID3": "mp3",
    b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3",
    b"\xff\xf2": "mp3",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"\x1aE\xdf\xa3": "webm",
}


@dataclass(frozen=True)
class Routing:
    """The answer's `x_multimoe`: first who will answer and why, and once more, `final`, with latencies and outputs."""

    info: Json
    final: bool


@dataclass(frozen=True)
class Said:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Used:
    """Tokens and cost, as the API's `usage`."""

    usage: Json


StreamEvent = Routing | Said | Used


class Client:
    """One gateway at `base_url` (with or without /v1). Safe to share between threads; close it or use it in a `with`.

    Raises BadInput for what cannot be a key. Every method raises Unavailable when nothing listens, else the API's own
    sentence as the matching error class.
    """

    def __init__(self, base_url: str, api_key: str | None = None, timeout: httpx.Timeout = TIMEOUT) -> None:
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise errors.BadInput("this is no API key: it holds what no header can carry", None, "invalid_api_key")
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            trust_env=urlsplit(self.url).hostname not in LOOPBACK,  # no proxy stands between us and this machine
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ready(self) -> bool:
        """Whether the gate is loaded and an expert can answer. False, not an error, when nothing listens."""
        try:
            return self._http.get("/ready", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def limits(self) -> Json:
        """What a request may be at most."""
        return self._call("GET", "/v1/limits")

    def models(self) -> list[Json]:
        """`multimoe`, its presets (`multimoe:NAME`) and every expert (`multimoe/NAME`)."""
        return list(self._call("GET", "/v1/models")["data"])

    def experts(self) -> list[Json]:
        return list(self._call("GET", "/v1/experts")["data"])

    def expert(self, name: str) -> Json:
        return self._call("GET", f"/v1/experts/{quote(name)}")

    def add_expert(self, spec: Json) -> Json:
        """`spec` is one entry of the catalog's `experts`. Raises Conflict when the name is taken."""
        return self._call("POST", "/v1/experts", json=spec)

    def replace_expert(self, spec: Json) -> Json:
        """Upgrade the expert of that name; returns when the new edition answers. Raises NotFound, Conflict."""
        return self._call("PUT", f"/v1/experts/{quote(spec['name'])}", json=spec, timeout=UPGRADE_SECONDS)

    def remove_expert(self, name: str) -> Json:
        return self._call("DELETE", f"/v1/experts/{quote(name)}")

    def scale(self, name: str, min_replicas: int, max_replicas: int) -> Json:
        body = {"min_replicas": min_replicas, "max_replicas": max_replicas}
        return self._call("PUT", f"/v1/experts/{quote(name)}/scale", json=body)

    def chat(self, messages: Sequence[Json], model: str = "multimoe", **options: Any) -> Json:
        """A whole chat completion. `options` are further fields of the body, such as `max_tokens` or `x_multimoe`."""
        return self._call("POST", "/v1/chat/completions", json=_chat(messages, model, options))

    def stream_chat(self, messages: Sequence[Json], model: str = "multimoe", **options: Any) -> "Stream":
        """The same, as it comes."""
        body = _chat(messages, model, options) | {"stream": True, "stream_options": {"include_usage": True}}
        return Stream(self._http, body)

    def route(self, messages: Sequence[Json], model: str = "multimoe", **options: Any) -> Json:
        """Who would answer, as `x_multimoe`; no expert is called."""
        answer = self._call("POST", "/v1/route", json=_chat(messages, model, options))
        return dict(answer.get("x_multimoe", answer))

    def feedback(
        self,
        completion_id: str,
        score: float | None = None,
        *,
        expert: str | None = None,
        label: str | None = None,
        comment: str | None = None,
        user: str | None = None,
        preferred: str | None = None,
        rejected: Sequence[str] = (),
    ) -> Json:
        """Rate an answer, one expert's part of it, or say which expert was `preferred`. `score` runs from 0 to 1.

        The same `user` rating the same thing again replaces the earlier rating. Raises NotFound.
        """
        target = "comparison" if preferred else "expert" if expert else "answer"
        fields = {
            "completion_id": completion_id,
            "target": target,
            "expert": expert,
            "score": score,
            "label": label,
            "comment": comment,
            "user": user,
            "preferred": preferred,
            "rejected": list(rejected),
        }
        return self._call("POST", "/v1/feedback", json={k: v for k, v in fields.items() if v not in (None, [])})

    def unrate(self, completion_id: str, *, expert: str | None = None, user: str | None = None) -> Json:
        """Take a rating back."""
        target = "expert" if expert else "answer"
        fields = {"completion_id": completion_id, "target": target, "expert": expert, "user": user}
        return self._call("DELETE", "/v1/feedback", params={k: v for k, v in fields.items() if v is not None})

    def stats(self) -> Json:
        """Counts of answers and ratings, in all and by expert."""
        return self._call("GET", "/v1/feedback/stats")

    def export(self, format: str = "jsonl") -> Iterator[bytes]:
        """The ratings with their decisions, in pieces as they come."""
        try:
            with self._http.stream("GET", "/v1/feedback/export", params={"format": format}) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response.status_code, response.text)
                yield from response.iter_bytes()
        except httpx.TransportError as error:
            raise _unreachable(self.url, error) from error

    def gate(self) -> Json:
        """The gate that answers now."""
        return self._call("GET", "/v1/gate")

    def versions(self) -> list[Json]:
        return list(self._call("GET", "/v1/gate/versions")["data"])

    def train(self, **options: Any) -> str:
        """Start a retraining; returns the job's id for `job`. Raises Conflict while another one runs."""
        return str(self._call("POST", "/v1/gate/train", json=options)["job_id"])

    def job(self, job_id: str) -> Json:
        """How far a retraining is: its status, its progress from 0 to 1, and in the end its verdict."""
        return self._call("GET", f"/v1/gate/jobs/{quote(job_id)}")

    def promote(self, version: int) -> Json:
        """Serve this version from now on."""
        return self._call("PUT", "/v1/gate/aliases/champion", json={"version": version})

    def put_on_trial(self, version: int, share: float) -> Json:
        """Let this version answer a share of requests, or with 0 only decide beside the champion."""
        stage, body = ("canary", {"share": share}) if share else ("shadow", {})
        return self._call("PUT", f"/v1/gate/aliases/{stage}", json={"version": version, **body})

    def withdraw(self) -> Json:
        """End the trial; the champion goes on."""
        return self._call("DELETE", "/v1/gate/aliases/challenger")

    def rollback(self) -> Json:
        """Withdraw the canary; where there is none, serve the version that was champion before."""
        return self._call("POST", "/v1/gate/rollback")

    def _call(self, method: str, path: str, **request: Any) -> Json:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise _unreachable(self.url, error) from error
        if not response.is_success:
            raise _refusal(response.status_code, response.text)
        return dict(response.json()) if response.content else {}


class Stream(Iterator[StreamEvent]):
    """One answer as it comes. Asked when first read; `close` hangs up, from any thread, and that stops the experts."""

    def __init__(self, http: httpx.Client, body: Json) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._closed = False
        self._events = self._read(body)

    def __next__(self) -> StreamEvent:
        return next(self._events)

    def close(self) -> None:
        self._closed = True
        line = self._response.extensions.get("network_stream") if self._response else None
        if line is not None:
            with contextlib.suppress(OSError):  # wakes a reader that waits in another thread; close() would not
                line.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(ValueError):  # that reader runs the generator right now, and will end it itself
            self._events.close()

    def _read(self, body: Json) -> Generator[StreamEvent, None, None]:
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as self._response:
                if not self._response.is_success:
                    self._response.read()
                    raise _refusal(self._response.status_code, self._response.text)
                for data in _server_sent(self._response.iter_lines()):
                    if self._closed:
                        return
                    yield from _events(data)
        except httpx.TransportError as error:
            if not self._closed:
                raise _unreachable(str(self._http.base_url).rstrip("/"), error) from error


def chat_body(text: str, files: Sequence[str | Path] = ()) -> list[Json]:
    """One user message in OpenAI parts: pictures as `data:` URLs, recordings as `input_audio`.

    Kinds are told by the first bytes, then by the name. Raises BadMedia and UnsupportedMedia.
    """
    if not files:
        return [{"role": "user", "content": text}]
    parts = [{"type": "text", "text": text}] if text.strip() else []
    return [{"role": "user", "content": parts + [media_part(Path(file)) for file in files]}]


def media_part(path: Path) -> Json:
    """A picture or recording as one OpenAI content part."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise errors.BadMedia(f"cannot read {path.name!r}: {error.strerror}; check the path") from error
    if not data:
        raise errors.BadMedia(f"{path.name!r} is empty; attach a picture or a recording")
    encoded = base64.b64encode(data).decode()
    if image := _image_type(data, path):
        return {"type": "image_url", "image_url": {"url": f"data:{image};base64,{encoded}"}}
    if audio := _audio_format(data, path):
        return {"type": "input_audio", "input_audio": {"data": encoded, "format": audio}}
    raise errors.UnsupportedMedia(
        f"{path.name!r} is neither a picture nor a recording; attach png, jpeg, gif, webp, wav, mp3, flac or ogg"
    )


def _image_type(data: bytes, path: Path) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    named = mimetypes.guess_type(path.name)[0] or ""
    found = next((mime for magic, mime in IMAGE_MAGIC.items() if data.startswith(magic)), None)
    return found or (named if named.startswith("image/") else None)


def _audio_format(data: bytes, path: Path) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    if data[4:8] == b"ftyp":
        return "m4a"
    named = path.suffix.lstrip(".").lower() if (mimetypes.guess_type(path.name)[0] or "").startswith("audio/") else None
    return next((name for magic, name in AUDIO_MAGIC.items() if data.startswith(magic)), named)


def _chat(messages: Sequence[Json], model: str, options: Json) -> Json:
    return {"model": model, "messages": list(messages), **options}


def _server_sent(lines: Iterator[str]) -> Iterator[Json]:
    """The JSON of every `data:` line up to [DONE]; comments keep the line alive and mean nothing."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield json.loads(data)


def _events(chunk: Json) -> Iterator[StreamEvent]:
    if chunk.get("error"):
        raise _refusal(500, json.dumps(chunk))
    for choice in chunk.get("choices") or ():
        if text := (choice.get("delta") or {}).get("content"):
            yield Said(text)
    if info := chunk.get("x_multimoe"):
        yield Routing(info, bool(info.get("final")))
    if usage := chunk.get("usage"):
        yield Used(usage)


def _unreachable(url: str, error: httpx.TransportError) -> errors.Unavailable:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return errors.Unavailable(f"nothing answers; is `multimoe serve` running at {url}?", None, "unreachable")
    if isinstance(error, httpx.TimeoutException):
        return errors.Unavailable(f"no answer from {url} in time; try again, or ask for less", None, "timeout")
    return errors.Unavailable(f"the connection to {url} broke before the answer was whole; ask again", None, "broken")


def _refusal(status: int, body: str) -> errors.MultimoeError:
    """The API's error body as an exception: by its code, else by the status."""
    try:
        error = json.loads(body)["error"]
        message, param, code = str(error["message"]), error.get("param"), error.get("code")
    except (ValueError, KeyError, TypeError):
        message, param, code = f"the gateway answered {status} without saying why; look at its log", None, None
    return (_by_code().get(code) or _by_status(status))(message, param, code)


def _by_code() -> dict[str | None, type[errors.MultimoeError]]:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.MultimoeError)]
    return {cls.code: cls for cls in classes}


def _by_status(status: int) -> type[errors.MultimoeError]:
    named: dict[int, type[errors.MultimoeError]] = {
        404: errors.NotFound,
        409: errors.Conflict,
        413: errors.TooLarge,
        429: errors.Unavailable,
        502: errors.ExpertFailed,
        503: errors.Unavailable,
        504: errors.ExpertTimeout,
    }
    return named.get(status, errors.BadInput if 400 <= status < 500 else errors.MultimoeError)
