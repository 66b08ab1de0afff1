"""The demo's checks and its simulated user, against answers in the API's shape."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from gateway.demo import media
from gateway.demo.__main__ import take
from gateway.demo.person import content_with, wishes
from gateway.demo.steps import STEPS, Step, fact, routed, says, streamed, written_from_evidence
from gateway.demo.visitor import Seen, content


def part(expert: str, weight: float, role: str = "answer", kind: str = "text", status: str = "ok") -> dict[str, Any]:
    output = {"kind": kind} if status == "ok" else None
    return {"id": f"multimoe/{expert}", "weight": weight, "role": role, "status": status, "output": output}


def seen(text: str = "", *parts: dict[str, Any], **facts: Any) -> Seen:
    return Seen(text, {"completion_id": "c", "gate": {"version": 2}, "experts": list(parts)}, 0.1, facts)


def test_words_are_found_whatever_their_case_and_line_ends() -> None:
    assert says("FRESH COFFEE")(seen("Fresh\ncoffee, open daily")) == ""
    assert says("tea", "open")(seen("open daily")) == "the answer lacks tea"


def test_one_piece_is_not_a_stream() -> None:
    assert streamed(seen(pieces=1))
    assert not streamed(seen(pieces=2))


def test_evidence_needs_both_a_writer_and_a_witness() -> None:
    writer, witness = part("chat", 0.6), part("vision", 0.4, "evidence", "labels")
    assert written_from_evidence(seen("", writer, witness)) == ""
    assert written_from_evidence(seen("", writer))
    assert written_from_evidence(seen("", witness))
    assert written_from_evidence(seen("", writer, part("vision", 0.4, "evidence", "labels", status="timeout")))


def test_weights_that_do_not_sum_to_one_are_wrong() -> None:
    assert routed(seen("", part("a", 0.7), part("b", 0.3))) == ""
    assert routed(seen("", part("a", 0.7), part("b", 0.7))) == "the weights sum to 1.40"
    assert routed(seen(""))


def test_a_step_that_cannot_be_taken_is_wrong_and_says_why() -> None:
    def run(*_: Any) -> Seen:
        raise ValueError("no such thing")

    step = Step("x", run, ())
    assert take(step, SimpleNamespace(), print)[1] == "ValueError: no such thing"  # type: ignore[arg-type]  # never used


def test_a_step_is_right_only_when_every_check_is_content() -> None:
    step = Step("x", lambda *_: seen(), (fact("a", "no a"), fact("b", "no b")))
    assert step.wrong(seen(a=True, b=True)) == ""
    assert step.wrong(seen(b=True)) == "no a"
    assert step.wrong(seen()) == "no a; no b"


def test_the_user_is_content_only_when_everybody_writes_what_is_wanted() -> None:
    outputs = {"chat": "text", "language": "labels"}
    wish = wishes(1)[0]
    right = next(name for name, kind in outputs.items() if kind == wish.wants)
    wrong = next(name for name, kind in outputs.items() if kind != wish.wants)
    assert content_with(wish, seen("", part(right, 1.0)), outputs) == 1.0
    assert content_with(wish, seen("", part(wrong, 1.0)), outputs) == 0.0
    assert content_with(wish, seen("", part(right, 0.5), part(wrong, 0.5)), outputs) == 0.0
    assert content_with(wish, seen(""), outputs) == 0.0


def test_the_user_asks_mostly_about_code_and_seldom_twice_the_same() -> None:
    asked = wishes(300)
    assert 0.6 < sum(wish.wants == "text" for wish in asked) / len(asked) < 0.9
    code = [wish.question for wish in asked if wish.wants == "text"]
    assert len(set(code)) > 0.95 * len(code)


def test_what_the_visitor_brings_is_all_there() -> None:
    for path in (media.CHEETAH, media.LION, media.SPEECH, media.MUSIC, media.QUESTION):
        assert path.is_file(), path
    assert media.QUESTION.stat().st_size < 40_000


def test_the_sign_is_the_same_picture_each_time() -> None:
    photo = media.photograph_of_sign()
    assert photo == media.photograph_of_sign()
    assert Image.open(io.BytesIO(photo)).size == (900, 420)


def test_text_alone_is_sent_as_a_string_and_media_alone_as_one_part(tmp_path: Path) -> None:
    assert content("hello", ()) == "hello"
    assert [p["type"] for p in content("", [media.MUSIC])] == ["input_audio"]  # type: ignore[index]  # parts
    (broken := tmp_path / "x.bin").write_bytes(b"zzzz")
    with pytest.raises(Exception, match="neither a picture nor a recording"):
        content("", [broken])


def test_there_are_the_eleven_steps() -> None:
    assert len(STEPS) == 11
    assert all(step.checks for step in STEPS)
