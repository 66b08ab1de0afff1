"""One request's story, with scripted experts in place of a cluster."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from multimoe.config import Card, ExpertSpec
from multimoe.decision import Choice, Considered, Decision, Policy
from multimoe.errors import BadInput, ExpertFailed, UnknownModel
from multimoe.expert import Delta
from multimoe.messages import AudioPart, ChatRequest, ImagePart, Message, Part, TextPart
from multimoe.mixture import Combine, Mixture
from multimoe.outputs import Label, Labels, Output, OutputKind, Segment, Text, Transcript, Usage, Words
from multimoe.reply import Decided, Event, Finished, Reply, Routed, Spoken

PICTURE = ImagePart(np.zeros((4, 4, 3), np.uint8))
SOUND = AudioPart(np.zeros(16_000, np.float32))


def cat(p: float) -> Labels:
    return Labels(space="imagenet-1k", labels=(Label(name="cat", probability=p), Label(name="dog", probability=1 - p)))


def heard(text: str) -> Transcript:
    return Transcript(segments=(Segment(start=0, end=1, text=text),))


@dataclass
class Script:
    """What one expert does: yield these, after `delay` seconds, then raise `error` if there is one."""

    reads: set[str]
    kind: OutputKind
    says: Sequence[str | Output] = ()
    error: Exception | None = None
    delay: float = 0.0
    timeout_s: float = 5.0
    asked: list[ChatRequest] = field(default_factory=list)
    closed: bool = False

    def spec(self, name: str) -> ExpertSpec:
        return ExpertSpec(
            name=name,
            backend="experts.echo:Echo",
            inputs=frozenset(self.reads),  # type: ignore[arg-type]  # literals in the tests
            output=self.kind,
            card=Card(description=name),
            timeout_s=self.timeout_s,
            cost=0.5,
        )


class World:
    """Router and experts at once; the gate picks `weights` in order, then considers everyone else."""

    def __init__(self, weights: dict[str, float], **scripts: Script) -> None:
        self.weights = weights
        self.scripts = scripts
        self.decided: list[tuple[ChatRequest, Policy]] = []

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        self.decided.append((request, policy))
        able = [name for name, script in self.scripts.items() if script.reads & request.modalities]
        picked = {name: weight for name, weight in self.weights.items() if name in able} or {able[0]: 1.0}
        total = sum(picked.values())
        chosen = tuple(Choice(expert=n, weight=w / total, probability=0.5, quality=0.5) for n, w in picked.items())
        considered = tuple(Considered(expert=n, probability=0.5, quality=0.5) for n in able)
        decision = Decision(
            chosen=chosen,
            considered=considered,
            propensity=0.25,
            explored=False,
            strategy="softmax",
            seed=1,
            gate_version=3,
            modalities=tuple(sorted(request.modalities)),  # type: ignore[arg-type]
        )
        return Routed(decision, b"vectors")

    async def roster(self) -> tuple[ExpertSpec, ...]:
        return tuple(script.spec(name) for name, script in self.scripts.items())

    async def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        script = self.scripts[expert]
        script.asked.append(request)
        try:
            await asyncio.sleep(script.delay)
            for piece in script.says:
                yield Delta(text=piece) if isinstance(piece, str) else Delta(output=piece)
            if script.error:
                raise script.error
            yield Delta(usage=Usage(prompt_tokens=3, completion_tokens=2), finish="stop")
        finally:
            script.closed = True


def ask(*parts: Part) -> ChatRequest:
    return ChatRequest("chatcmpl-1", (Message("user", parts),))


async def run(world: World, request: ChatRequest, combine: Combine | None = None) -> tuple[list[Event], Reply]:
    events = [event async for event in Mixture(world, world).answer(request, Policy(), combine)]
    assert isinstance(events[0], Decided)
    assert isinstance(events[-1], Finished)
    return events, events[-1].reply


def spoken(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Spoken)]


async def test_text_is_streamed_piece_by_piece() -> None:
    events, reply = await run(World({"chat": 1}, chat=Script({"text"}, "text", ["Par", "is"])), ask(TextPart("?")))
    assert spoken(events) == ["Par", "is"]
    assert reply.text == "Paris"
    assert reply.output == Text(text="Paris")
    assert reply.usage == Usage(prompt_tokens=3, completion_tokens=2)
    assert not reply.degraded


async def test_two_classifiers_answer_as_one_mixture() -> None:
    world = World(
        {"a": 0.75, "b": 0.25}, a=Script({"image"}, "labels", [cat(0.8)]), b=Script({"image"}, "labels", [cat(0.4)])
    )
    _, reply = await run(world, ask(PICTURE))
    assert isinstance(reply.output, Labels)
    assert reply.output.labels[0].probability == pytest.approx(0.7)
    assert {part.expert: part.weight for part in reply.parts} == {"a": 0.75, "b": 0.25}


async def test_perception_experts_are_asked_side_by_side() -> None:
    world = World(
        {"a": 0.5, "b": 0.5},
        a=Script({"image"}, "labels", [cat(0.8)], delay=0.2),
        b=Script({"image"}, "labels", [cat(0.4)], delay=0.2),
    )
    started = asyncio.get_running_loop().time()
    await run(world, ask(PICTURE))
    assert asyncio.get_running_loop().time() - started < 0.35


async def test_a_failed_part_is_left_out_and_weights_are_renormalised() -> None:
    world = World(
        {"a": 0.6, "b": 0.4},
        a=Script({"image"}, "labels", error=ExpertFailed("gone")),
        b=Script({"image"}, "labels", [cat(0.4)]),
    )
    _, reply = await run(world, ask(PICTURE))
    assert reply.degraded
    assert {part.expert: (part.status, part.weight) for part in reply.parts} == {"a": ("error", 0.0), "b": ("ok", 1.0)}
    assert reply.output == cat(0.4).model_copy(
        update={"labels": tuple(sorted(cat(0.4).labels, key=lambda x: -x.probability))}
    )


async def test_when_all_chosen_fail_the_next_best_of_the_kind_steps_in() -> None:
    world = World(
        {"a": 1.0},
        a=Script({"image"}, "labels", error=ExpertFailed("gone")),
        read=Script({"image"}, "words", []),
        b=Script({"image"}, "labels", [cat(0.9)]),
    )
    _, reply = await run(world, ask(PICTURE))
    assert reply.degraded
    assert reply.text.startswith("Cat (90%)")
    assert [part.expert for part in reply.parts if part.status == "ok"] == ["b"]
    assert not world.scripts["read"].asked


async def test_a_writer_that_fails_before_its_first_word_is_replaced() -> None:
    world = World(
        {"a": 1.0},
        a=Script({"text"}, "text", error=ExpertFailed("gone")),
        b=Script({"text"}, "text", ["hello"]),
    )
    events, reply = await run(world, ask(TextPart("hi")))
    assert spoken(events) == ["hello"]
    assert reply.degraded


async def test_a_writer_that_fails_midway_is_not_continued_by_another() -> None:
    world = World(
        {"a": 1.0},
        a=Script({"text"}, "text", ["Once upon"], error=ExpertFailed("gone")),
        b=Script({"text"}, "text", ["something else"]),
    )
    _, reply = await run(world, ask(TextPart("hi")))
    assert reply.text == "Once upon"
    assert reply.degraded
    assert not world.scripts["b"].asked


async def test_a_slow_expert_times_out_and_another_answers() -> None:
    world = World(
        {"a": 1.0},
        a=Script({"text"}, "text", ["late"], delay=5, timeout_s=0.05),
        b=Script({"text"}, "text", ["in time"]),
    )
    _, reply = await run(world, ask(TextPart("hi")))
    assert reply.text == "in time"
    assert {part.expert: part.status for part in reply.parts} == {"a": "timeout", "b": "ok"}
    assert world.scripts["a"].closed


async def test_when_everyone_fails_the_last_error_is_raised() -> None:
    world = World({"a": 1.0}, a=Script({"text"}, "text", error=ExpertFailed("gone for good")))
    with pytest.raises(ExpertFailed, match="gone for good"):
        await run(world, ask(TextPart("hi")))


async def test_a_question_about_a_picture_is_written_from_evidence() -> None:
    world = World(
        {"chat": 0.6, "eyes": 0.4},
        chat=Script({"text"}, "text", ["A cat."]),
        eyes=Script({"image"}, "labels", [cat(0.9)]),
    )
    _, reply = await run(world, ask(TextPart("Which animal is this?"), PICTURE))
    written = world.scripts["chat"].asked[0]
    assert written.modalities == {"text"}
    assert "cat" in written.text
    assert "Which animal is this?" in written.text
    assert reply.text == "A cat."
    assert [(part.expert, part.role) for part in reply.parts] == [("eyes", "evidence"), ("chat", "answer")]


async def test_a_writer_that_cannot_see_gets_evidence_though_the_gate_chose_it_alone() -> None:
    world = World({"chat": 1.0}, chat=Script({"text"}, "text", ["Yes."]), eyes=Script({"image"}, "labels", [cat(0.9)]))
    _, reply = await run(world, ask(TextPart("Is it a cat?"), PICTURE))
    assert {part.expert: (part.role, part.weight) for part in reply.parts} == {
        "eyes": ("evidence", 0.0),
        "chat": ("answer", 1.0),
    }


async def test_the_likeliest_eyes_are_asked_too_when_chance_chose_others() -> None:
    world = World(
        {"chat": 0.9, "reader": 0.1},
        chat=Script({"text"}, "text", ["A cat."]),
        eyes=Script({"image"}, "labels", [cat(0.9)]),
        reader=Script({"image"}, "words", [Words(boxes=())]),
    )
    _, reply = await run(world, ask(TextPart("Is it dangerous?"), PICTURE))
    assert {part.expert: part.role for part in reply.parts} == {
        "reader": "evidence",
        "eyes": "evidence",
        "chat": "answer",
    }
    assert "cat" in world.scripts["chat"].asked[0].text


async def test_an_expert_that_sleeps_beside_a_finished_answer_is_not_waited_for() -> None:
    world = World(
        {"chat": 0.9, "tone": 0.1},
        chat=Script({"text"}, "text", ["Hello."]),
        tone=Script({"text"}, "labels", [cat(0.9)], delay=4),
    )
    started = asyncio.get_running_loop().time()
    _, reply = await run(world, ask(TextPart("Hi")))
    assert asyncio.get_running_loop().time() - started < 2
    assert {part.expert: part.status for part in reply.parts} == {"chat": "ok", "tone": "skipped"}
    assert not reply.degraded


async def test_a_writer_that_sees_gets_the_picture_itself() -> None:
    world = World(
        {"vlm": 1.0}, vlm=Script({"text", "image"}, "text", ["A cat."]), eyes=Script({"image"}, "labels", [cat(0.9)])
    )
    await run(world, ask(TextPart("What is it?"), PICTURE))
    assert world.scripts["vlm"].asked[0].images
    assert not world.scripts["eyes"].asked


async def test_a_chosen_writer_is_not_run_when_perception_leads() -> None:
    world = World(
        {"eyes": 0.7, "chat": 0.3},
        eyes=Script({"image"}, "labels", [cat(0.9)]),
        chat=Script({"text"}, "text", ["A cat."]),
    )
    _, reply = await run(world, ask(TextPart("What is it?"), PICTURE))
    assert reply.text.startswith("Cat (90%)")
    assert {part.expert: part.status for part in reply.parts} == {"eyes": "ok", "chat": "skipped"}
    assert not world.scripts["chat"].asked


async def test_a_spoken_question_is_answered() -> None:
    world = World(
        {"ears": 1.0},
        ears=Script({"audio"}, "transcript", [heard("What is the capital of France?")]),
        chat=Script({"text"}, "text", ["Paris."]),
    )
    events, reply = await run(world, ask(SOUND))
    assert "What is the capital of France?" in "".join(spoken(events))
    assert reply.text == "".join(spoken(events))
    assert reply.text.endswith("Paris.")
    assert world.scripts["chat"].asked[0].text == "What is the capital of France?"
    assert [(part.expert, part.role) for part in reply.parts] == [("ears", "evidence"), ("chat", "answer")]
    assert len(world.decided) == 2


async def test_speech_that_asks_nothing_is_only_transcribed() -> None:
    world = World(
        {"ears": 1.0},
        ears=Script({"audio"}, "transcript", [heard("I am going out.")]),
        chat=Script({"text"}, "text", ["Bye."]),
    )
    _, reply = await run(world, ask(SOUND))
    assert reply.text == "I am going out."
    assert not world.scripts["chat"].asked


async def test_all_shows_the_parts_side_by_side() -> None:
    world = World(
        {"a": 0.5, "b": 0.5}, a=Script({"image"}, "labels", [cat(0.8)]), b=Script({"image"}, "labels", [cat(0.6)])
    )
    _, reply = await run(world, ask(PICTURE), "all")
    assert "a: Cat (80%)" in reply.text
    assert "b: Cat (60%)" in reply.text


async def test_a_named_expert_is_asked_without_the_gate() -> None:
    world = World({}, chat=Script({"text"}, "text", ["hello"]))
    events = [event async for event in Mixture(world, world).ask_one("chat", ask(TextPart("hi")))]
    assert events[0] == Decided(None)
    assert isinstance(events[-1], Finished)
    assert events[-1].reply.decision is None
    assert not world.decided


async def test_a_named_expert_that_does_not_exist_or_cannot_read_it_is_refused() -> None:
    world = World({}, chat=Script({"text"}, "text", ["hello"]))
    with pytest.raises(UnknownModel, match="there are: chat"):
        await anext(Mixture(world, world).ask_one("chta", ask(TextPart("hi"))))
    with pytest.raises(BadInput, match="reads text"):
        await anext(Mixture(world, world).ask_one("chat", ask(PICTURE)))


async def test_closing_the_answer_closes_the_expert() -> None:
    world = World({"chat": 1}, chat=Script({"text"}, "text", ["one", "two", "three"]))
    answer = Mixture(world, world).answer(ask(TextPart("hi")), Policy())
    async for event in answer:
        if isinstance(event, Spoken):
            break
    await answer.aclose()
    await asyncio.sleep(0)
    assert world.scripts["chat"].closed
