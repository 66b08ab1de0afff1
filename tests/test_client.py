"""The client against a scripted server: what it sends, what it makes of answers, and its errors."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.client import Client, Routing, Said, Used, chat_body
from multimoe import errors

ASKED = [{"role": "user", "content": "hello"}]


def client(answer: httpx.Response, seen: list[httpx.Request] | None = None) -> Client:
    """A client whose every request gets `answer`."""

    def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return answer

    made = Client("http://gateway.test/v1/")
    made._http = httpx.Client(transport=httpx.MockTransport(handle), base_url=made.url)
    return made


def sse(*chunks: dict[str, Any]) -> httpx.Response:
    lines = [": keepalive", *(f"data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]"]
    return httpx.Response(200, text="\n\n".join(lines) + "\n\n")


def refused(status: int, code: str, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "type": "x", "param": "model", "code": code}})


@pytest.mark.parametrize("key", ["mm-ü", "mm-a\n", "mm-\x00"])
def test_what_no_header_can_carry_is_no_key(key: str) -> None:
    with pytest.raises(errors.BadInput, match="no API key"):
        Client("http://gateway.test", key)


def test_stream_yields_who_answers_before_the_words_and_the_bill_last() -> None:
    chunks: tuple[dict[str, Any], ...] = (
        {"choices": [{"delta": {"role": "assistant", "content": ""}}], "x_multimoe": {"experts": []}, "usage": None},
        {"choices": [{"delta": {"content": "Hel"}}], "usage": None},
        {"choices": [{"delta": {"content": "lo"}}], "usage": None},
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "x_multimoe": {"final": True}, "usage": None},
        {"choices": [], "usage": {"total_tokens": 3, "cost": 0.0}},
    )
    events = list(client(sse(*chunks)).stream_chat(ASKED))
    assert [type(event) for event in events] == [Routing, Said, Said, Routing, Used]
    assert [event.final for event in events if isinstance(event, Routing)] == [False, True]
    assert "".join(event.text for event in events if isinstance(event, Said)) == "Hello"


def test_an_error_inside_a_stream_is_raised_with_its_class() -> None:
    broken = sse(
        {"choices": [{"delta": {"content": "Hel"}}]}, {"error": {"message": "too slow", "code": "expert_timeout"}}
    )
    stream = client(broken).stream_chat(ASKED)
    assert next(stream) == Said("Hel")
    with pytest.raises(errors.ExpertTimeout, match="too slow"):
        next(stream)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "no_expert_for_modality", errors.NoExpert),
        (404, "model_not_found", errors.UnknownModel),
        (404, "completion_not_found", errors.NotFound),
        (409, "job_running", errors.Conflict),
        (413, "request_too_large", errors.TooLarge),
        (429, "rate_limit_exceeded", errors.Unavailable),
        (403, "admin_required", errors.BadInput),
    ],
)
def test_the_api_s_sentence_comes_back_as_the_matching_class(
    status: int, code: str, kind: type[errors.MultimoeError]
) -> None:
    with pytest.raises(errors.MultimoeError) as caught:
        client(refused(status, code, "say what to do")).gate()
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.code, caught.value.param) == ("say what to do", code, "model")


def test_a_refused_stream_says_why() -> None:
    with pytest.raises(errors.TooLarge, match="make it smaller"):
        list(client(refused(413, "request_too_large", "make it smaller")).stream_chat(ASKED))


def test_an_answer_that_is_not_json_is_still_a_sentence() -> None:
    with pytest.raises(errors.MultimoeError, match="answered 500"):
        client(httpx.Response(500, text="Internal Server Error")).gate()


def test_nothing_listening_names_the_command_to_run() -> None:
    with Client("http://127.0.0.1:9") as nobody:
        with pytest.raises(errors.Unavailable, match=r"is `multimoe serve` running at http://127.0.0.1:9\?"):
            nobody.gate()
        with pytest.raises(errors.Unavailable, match="multimoe serve"):
            list(nobody.stream_chat(ASKED))
        assert nobody.ready() is False


def test_a_rating_sends_only_what_was_said_and_names_its_target() -> None:
    seen: list[httpx.Request] = []
    made = client(httpx.Response(201, json={}), seen)
    made.feedback("chatcmpl-1", 1.0, user="u")
    made.feedback("chatcmpl-1", 0.0, expert="vision", label="wrong_expert", user="u")
    made.feedback("chatcmpl-1", preferred="vision", rejected=["text"], user="u")
    made.unrate("chatcmpl-1", expert="vision", user="u")
    bodies = [json.loads(request.content) for request in seen[:3]]
    assert bodies[0] == {"completion_id": "chatcmpl-1", "target": "answer", "score": 1.0, "user": "u"}
    assert bodies[1]["target"] == "expert"
    assert bodies[1]["label"] == "wrong_expert"
    assert bodies[2]["target"] == "comparison"
    assert seen[3].method == "DELETE"
    assert dict(seen[3].url.params) == {
        "completion_id": "chatcmpl-1",
        "target": "expert",
        "expert": "vision",
        "user": "u",
    }


def test_closing_a_stream_hangs_up() -> None:
    class Endless(httpx.SyncByteStream):
        closed = False

        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'

        def close(self) -> None:
            self.closed = True

    endless = Endless()
    stream = client(httpx.Response(200, stream=endless)).stream_chat(ASKED)
    next(stream)
    stream.close()
    assert endless.closed


def test_another_thread_can_hang_up_on_a_server_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stream = Client(f"http://127.0.0.1:{server.getsockname()[1]}").stream_chat(ASKED)
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        line, _ = server.accept()
        with line:
            line.recv(65536)
            line.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: keepalive\n\n")
            while stream._response is None:
                time.sleep(0.01)
            stream.close()
            reader.join(timeout=5)
            assert not reader.is_alive()
            line.settimeout(5)
            while line.recv(65536):  # ends only when the server sees the hang-up
                pass


def test_text_alone_stays_a_string() -> None:
    assert chat_body("hi") == [{"role": "user", "content": "hi"}]


def test_files_are_told_by_their_bytes_not_their_names(tmp_path: Path) -> None:
    (tmp_path / "photo.wav").write_bytes(b"\x89PNG\r\n\x1a\n...")
    (tmp_path / "blob").write_bytes(b"RIFF\x00\x00\x00\x00WAVEfmt ")
    (tmp_path / "old.mp3").write_bytes(b"\x00\x00not a known header")
    (message,) = chat_body("what?", [tmp_path / "photo.wav", tmp_path / "blob", tmp_path / "old.mp3"])
    text, image, wav, mp3 = message["content"]
    assert text == {"type": "text", "text": "what?"}
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert wav["input_audio"]["format"] == "wav"
    assert base64.b64decode(wav["input_audio"]["data"]).startswith(b"RIFF")
    assert mp3["input_audio"]["format"] == "mp3"


def test_a_recording_alone_is_a_message_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    (message,) = chat_body("  ", [tmp_path / "a.flac"])
    assert [part["type"] for part in message["content"]] == ["input_audio"]


@pytest.mark.parametrize(
    ("name", "data", "kind", "says"),
    [
        ("a.txt", b"hello", errors.UnsupportedMedia, "neither a picture nor a recording"),
        ("a.png", b"", errors.BadMedia, "is empty"),
    ],
)
def test_other_files_are_refused_by_name(
    tmp_path: Path, name: str, data: bytes, kind: type[errors.MultimoeError], says: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(kind, match=says):
        chat_body("", [tmp_path / name])


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(errors.BadMedia, match=r"gone\.png"):
        chat_body("", [tmp_path / "gone.png"])
