"""One request's story, with scripted experts in place of a cluster."""

import asyncio

import pytest
from scripted import PICTURE, SOUND, Script, World, ask, cat, heard, run, spoken

from multimoe.decision import Policy
from multimoe.errors import BadInput, ExpertFailed, MultimoeError, UnknownModel
from multimoe.messages import TextPart
from multimoe.mixture import Mixture
from multimoe.outputs import Labels, Text, Usage, Words
from multimoe.reply import Decided, Finished, Spoken


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
    words = []

    async def listen() -> None:
        async for event in Mixture(world, world).answer(ask(TextPart("hi")), Policy()):
            words.extend([event.text] if isinstance(event, Spoken) else [])

    with pytest.raises(ExpertFailed, match="gone"):
        await listen()
    assert words == ["Once upon"]
    assert not world.scripts["b"].asked


async def test_a_writer_that_fails_midway_is_replaced_where_nobody_has_heard_a_word() -> None:
    world = World(
        {"a": 1.0},
        a=Script({"text"}, "text", ["Once upon"], error=ExpertFailed("gone")),
        b=Script({"text"}, "text", ["something", " else"]),
    )
    events = [event async for event in Mixture(world, world).answer(ask(TextPart("hi")), Policy(), whole=True)]
    assert spoken(events) == ["something else"]
    assert isinstance(events[-1], Finished)
    assert events[-1].reply.degraded


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


@pytest.mark.parametrize(("other", "raised"), [(BadInput("far too long"), BadInput), (ExpertFailed("x"), ExpertFailed)])
async def test_a_question_that_everyone_refuses_is_the_asker_s_mistake(
    other: MultimoeError, raised: type[MultimoeError]
) -> None:
    too_long = Script({"text"}, "text", error=BadInput("too long", code="context_length_exceeded"))
    world = World({"a": 1.0}, a=Script({"text"}, "text", error=other), b=too_long)
    with pytest.raises(raised):
        await run(world, ask(TextPart("hi")))
    assert too_long.asked


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


async def test_who_need_not_be_asked_about_a_recording_is_no_evidence() -> None:
    sounds = {n: Script({"audio"}, "labels", [cat(0.9)], group="sounds") for n in ("quick", "careful")}
    ears = Script({"audio"}, "transcript", [heard("Who is there?")])
    world = World(
        {"ears": 0.5, "quick": 0.3, "careful": 0.2}, ears=ears, chat=Script({"text"}, "text", ["I."]), **sounds
    )
    _, reply = await run(world, ask(SOUND), ask_next_below=0.5)
    assert {part.expert: part.role for part in reply.parts if part.expert in sounds} == {
        "quick": "evidence",
        "careful": "skipped",
    }


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
