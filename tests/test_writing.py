"""How several text experts make one answer: by vote, fused, together, side by side; and who of many need be asked."""

import asyncio
import math

import pytest
from scripted import PICTURE, SOUND, Script, World, ask, cat, heard, next_token, run, spoken

from multimoe.config import BlendSpec, Combine
from multimoe.decision import Policy
from multimoe.errors import ExpertFailed
from multimoe.messages import TextPart
from multimoe.mixture import Mixture
from multimoe.outputs import Label, Labels, Text
from multimoe.reply import Finished, Reply, Spoken

QUESTION = TextPart("Where is it?")
NEVER_GOOD = {"enough_quality": 1.0}


def says(*pieces: str, **more: object) -> Script:
    return Script({"text"}, "text", list(pieces), **more)  # type: ignore[arg-type]


def three(**changes: Script) -> World:
    """Two lesser experts against the weightiest."""
    scripts = {"a": says("Rome."), "b": says("Paris."), "c": says("Paris.")}
    return World({"a": 0.4, "b": 0.35, "c": 0.25}, **(scripts | changes))


def roles(reply: Reply) -> dict[str, str]:
    return {part.expert: part.role for part in reply.parts}


def weights(reply: Reply) -> dict[str, float]:
    return {part.expert: round(part.weight, 3) for part in reply.parts}


# vote


async def test_the_text_that_most_agree_with_is_given() -> None:
    events, reply = await run(three(), ask(QUESTION), "vote")
    assert spoken(events) == ["Paris."]
    assert (reply.combine, reply.combine_asked, reply.combine_reason) == ("vote", "vote", "")
    assert reply.agreement == pytest.approx(0.25 / 0.65)
    assert roles(reply) == {"a": "aside", "b": "answer", "c": "aside"}
    assert {part.expert: part.output for part in reply.parts}["a"] == Text(text="Rome.")


async def test_candidates_are_asked_side_by_side() -> None:
    world = three(a=says("Rome.", delay=0.3), b=says("Paris.", delay=0.3), c=says("Oslo.", delay=0.3))
    began = asyncio.get_running_loop().time()
    await run(world, ask(QUESTION), "vote")
    assert asyncio.get_running_loop().time() - began < 0.6


async def test_a_candidate_that_fails_has_no_say_and_its_weight_goes_to_the_others() -> None:
    _, reply = await run(three(c=says("Par", error=ExpertFailed("gone"))), ask(QUESTION), "vote")
    assert reply.text == "Rome."
    assert reply.degraded
    assert weights(reply) == {"a": 0.533, "b": 0.467, "c": 0.0}


async def test_the_only_candidate_that_came_is_the_answer() -> None:
    gone = says(error=ExpertFailed("gone"))
    _, reply = await run(three(a=gone, b=gone), ask(QUESTION), "vote")
    assert (reply.text, reply.combine, reply.combine_asked) == ("Paris.", "best", "vote")
    assert "answered" in reply.combine_reason
    assert roles(reply)["c"] == "answer"


async def test_when_no_candidate_comes_the_next_best_writes() -> None:
    gone = says(error=ExpertFailed("gone"))
    world = World({"a": 0.5, "b": 0.5}, a=gone, b=gone, d=says("Lima."))
    _, reply = await run(world, ask(QUESTION), "vote")
    assert (reply.text, reply.combine) == ("Lima.", "best")
    with pytest.raises(ExpertFailed, match="gone"):
        await run(World({"a": 0.5, "b": 0.5}, a=gone, b=gone), ask(QUESTION), "vote")


async def test_texts_that_cannot_be_compared_leave_it_to_the_weights() -> None:
    world = three()
    world.vectors = None
    _, reply = await run(world, ask(QUESTION), "vote")
    assert (reply.text, reply.combine) == ("Rome.", "best")
    assert "could not be compared" in reply.combine_reason


@pytest.mark.parametrize("combine", ["vote", "fuse", "auto", "tokens", "all"])
async def test_one_expert_gives_its_own_answer_and_the_reply_says_so(combine: str) -> None:
    world = World({"a": 1.0}, a=says("Ro", "me."), b=says("Paris."))
    events, reply = await run(world, ask(QUESTION), combine)  # type: ignore[arg-type]
    assert spoken(events) == ["Ro", "me."]
    assert (reply.combine, reply.combine_asked) == ("best", combine)
    assert "one" in reply.combine_reason or "fewer than two" in reply.combine_reason


async def test_what_is_not_text_is_mixed_as_ever() -> None:
    world = World(
        {"a": 0.75, "b": 0.25}, a=Script({"image"}, "labels", [cat(0.8)]), b=Script({"image"}, "labels", [cat(0.4)])
    )
    _, reply = await run(world, ask(PICTURE), "vote")
    assert (reply.combine, reply.combine_asked) == ("weighted", "vote")
    assert reply.text.startswith("Cat (70%)")


# fuse


async def test_the_weightiest_writes_one_answer_from_all() -> None:
    world = three()
    world.scripts["a"].says = ["Paris, ", "of course."]
    events, reply = await run(world, ask(QUESTION), "fuse")
    assert spoken(events) == ["Paris, ", "of course."]
    asked = world.scripts["a"].asked[-1].text
    assert asked.index("trust 40%") < asked.index("trust 35%): Paris.") < asked.index("trust 25%): Paris.")
    *told, wrote = ((part.expert, part.role) for part in reply.parts)
    assert sorted(told) == [("a", "evidence"), ("b", "evidence"), ("c", "evidence")]
    assert wrote == ("a", "answer")
    assert sum(part.weight for part in reply.parts) == pytest.approx(1)
    assert reply.output == Text(text="Paris, of course.")


async def test_the_catalog_may_name_who_fuses() -> None:
    world = three(d=says("Fused."))
    _, reply = await run(world, ask(QUESTION), "fuse", fuser="d")
    assert (reply.text, reply.combine) == ("Fused.", "fuse")
    assert weights(reply) == {"a": 0.4, "b": 0.35, "c": 0.25, "d": 0.0}


async def test_where_the_fuser_fails_the_weightiest_candidate_is_the_answer() -> None:
    world = three(d=says(error=ExpertFailed("gone")))
    _, reply = await run(world, ask(QUESTION), "fuse", fuser="d")
    assert (reply.text, reply.combine, reply.degraded) == ("Rome.", "best", True)
    assert roles(reply) == {"a": "answer", "b": "aside", "c": "aside", "d": "answer"}


@pytest.mark.parametrize("policy", [Policy(exclude=("d",)), Policy(experts=("a", "b", "c"))])
async def test_who_is_excluded_does_not_fuse(policy: Policy) -> None:
    world = three(d=says("Fused."))
    _, reply = await run(world, ask(QUESTION), "fuse", policy, fuser="d")
    assert not world.scripts["d"].asked
    assert [part.expert for part in reply.parts if part.role == "answer"] == ["a"]


# auto: route, or fuse


async def test_an_expert_predicted_to_be_good_answers_alone_and_at_once() -> None:
    world = three(b=says("Paris.", quality=0.9))
    events, reply = await run(world, ask(QUESTION), "auto", enough_quality=0.8)
    assert (reply.text, reply.combine) == ("Rome.", "best")
    assert "0.90" in reply.combine_reason
    assert not world.scripts["b"].asked
    assert spoken(events) == ["Rome."]


async def test_texts_that_agree_are_not_fused() -> None:
    world = three(a=says("Paris."))
    _, reply = await run(world, ask(QUESTION), "auto", **NEVER_GOOD)
    assert (reply.text, reply.combine, reply.agreement) == ("Paris.", "vote", pytest.approx(1))
    assert len(world.scripts["a"].asked) == 1


async def test_texts_that_contradict_each_other_are_fused_where_none_is_predicted_good() -> None:
    world = three()
    _, reply = await run(world, ask(QUESTION), "auto", **NEVER_GOOD)
    assert reply.combine == "fuse"
    assert "agree by 0.38" in reply.combine_reason
    assert len(world.scripts["a"].asked) == 2


async def test_how_much_agreement_is_enough_is_a_setting() -> None:
    world = three()
    _, reply = await run(world, ask(QUESTION), "auto", enough_agreement=0.3, **NEVER_GOOD)
    assert (reply.text, reply.combine) == ("Paris.", "vote")


# all


async def test_everybody_s_words_come_under_their_names_as_they_speak() -> None:
    world = World({"slow": 0.6, "fast": 0.4}, slow=says("Ro", "me.", delay=0.2), fast=says("Pa", "ris."))
    events, reply = await run(world, ask(QUESTION), "all")
    assert spoken(events) == ["fast: Pa", "ris.", "\n\nslow: Ro", "me."]
    assert reply.output == Text(text=reply.text)
    assert roles(reply) == {"fast": "answer", "slow": "answer"}
    assert reply.timing_ms["first_token"] < 150


async def test_who_fails_is_left_out_of_all() -> None:
    _, reply = await run(three(b=says(error=ExpertFailed("gone"))), ask(QUESTION), "all")
    assert sorted(reply.text.split("\n\n")) == ["a: Rome.", "c: Paris."]
    assert reply.degraded


async def test_all_has_what_was_seen_beside_what_was_written() -> None:
    world = World({"chat": 0.6, "eyes": 0.4}, chat=says("A cat."), eyes=Script({"image"}, "labels", [cat(0.9)]))
    _, reply = await run(world, ask(QUESTION, PICTURE), "all")
    assert reply.text.startswith("eyes: Cat (90%)")
    assert "\n\nchat: A cat." in reply.text


async def test_who_finds_things_in_words_gets_the_question_as_it_was_asked() -> None:
    world = World(
        {"chat": 0.5, "tone": 0.3, "eyes": 0.2},
        chat=says("A cat."),
        tone=Script({"text"}, "labels", [cat(0.9)]),
        eyes=Script({"image"}, "labels", [cat(0.8)]),
    )
    _, reply = await run(world, ask(QUESTION, PICTURE), "all")
    assert world.scripts["tone"].asked[0].text == QUESTION.text
    assert sorted(block.split(":")[0] for block in reply.text.split("\n\n")) == ["chat", "eyes", "tone"]


async def test_closing_an_answer_of_all_closes_everybody() -> None:
    world = three(a=says("x", "y", delay=0.01), b=says("x", "y", delay=5), c=says("x", "y", delay=5))
    answer = Mixture(world, world).answer(ask(QUESTION), Policy(), BlendSpec(combine="all"))
    async for event in answer:
        if isinstance(event, Spoken):
            break
    await answer.aclose()
    assert all(script.closed for script in world.scripts.values() if script.asked)


@pytest.mark.parametrize("combine", ["all", "tokens"])
async def test_closing_closes_who_stepped_in(combine: Combine) -> None:
    """At once, and not when the garbage is collected."""
    gone = ExpertFailed("gone")
    worlds = {
        "all": three(a=says(error=gone), b=says(error=gone), c=says(error=gone), d=says("x", "y")),
        "tokens": World({"a": 0.6, "d": 0.4}, a=says("x", "y", tokenizer="t"), d=says(tokenizer="t")),
    }
    world = worlds[combine]
    answer = Mixture(world, world).answer(ask(QUESTION), Policy(), BlendSpec(combine=combine))
    async for event in answer:
        if isinstance(event, Spoken):
            break
    await answer.aclose()
    assert all(script.closed for script in world.scripts.values() if script.asked)


# tokens


def sure(**probabilities: float) -> Script:
    """Says that, then ends."""
    return says(
        "alone",
        tokenizer="t",
        says_next=lambda written: next_token(end=1.0) if written else next_token(**probabilities),
    )


async def test_each_token_is_picked_from_the_mixture() -> None:
    world = World({"a": 0.6, "b": 0.4}, a=sure(yes=0.5, maybe=0.3, no=0.2), b=sure(no=0.9, yes=0.1))
    events, reply = await run(world, ask(QUESTION), "tokens")
    assert spoken(events) == ["no "]  # 0.6 * 0.2 + 0.4 * 0.9 = 0.48, and yes has 0.34
    assert (reply.combine, reply.finish, reply.output) == ("tokens", "stop", Text(text="no "))
    assert {part.expert: (part.role, part.weight) for part in reply.parts} == {
        "a": ("answer", 0.6),
        "b": ("answer", 0.4),
    }
    assert reply.usage.prompt_tokens == 6


async def test_weights_of_1_and_0_leave_the_one_alone() -> None:
    world = World({"a": 1.0, "b": 0.0}, a=sure(yes=0.4, maybe=0.35, no=0.25), b=sure(no=1.0))
    _, reply = await run(world, ask(QUESTION), "tokens")
    assert reply.text == "yes "


async def test_an_answer_ends_where_the_mixture_would_end_it() -> None:
    on = says("x", tokenizer="t", says_next=lambda written: next_token(yes=0.6, end=0.4))
    off = says("x", tokenizer="t", says_next=lambda written: next_token(end=0.2 + 0.2 * len(written), yes=0.1))
    _, reply = await run(World({"a": 0.5, "b": 0.5}, a=on, b=off), ask(QUESTION), "tokens")
    assert reply.text == "yes "  # at first the end has (0.4 + 0.2) / 2 = 0.3 against 0.35, then 0.4


async def test_an_answer_is_no_longer_than_asked_for() -> None:
    endless = says("x", tokenizer="t", says_next=lambda written: next_token(yes=1.0))
    request = ask(QUESTION)
    object.__setattr__(request, "max_tokens", 3)
    _, reply = await run(World({"a": 0.5, "b": 0.5}, a=endless, b=endless), request, "tokens")
    assert (reply.text, reply.finish) == ("yes yes yes ", "length")
    assert all(part.usage.completion_tokens == 3 for part in reply.parts)


async def test_who_dies_midway_leaves_its_weight_to_the_others() -> None:
    def dies(written: tuple[int, ...]) -> object:
        if len(written) == 1:
            raise ExpertFailed("gone")
        return next_token(no=1.0)

    lives = says(
        "x", tokenizer="t", says_next=lambda written: next_token(yes=0.9) if len(written) < 3 else next_token(end=1.0)
    )
    world = World({"a": 0.7, "b": 0.3}, a=says("x", tokenizer="t", says_next=dies), b=lives)
    _, reply = await run(world, ask(QUESTION), "tokens")
    assert reply.text == "no yes yes "
    assert reply.degraded
    assert {part.expert: (part.status, part.weight) for part in reply.parts} == {"a": ("error", 0), "b": ("ok", 1)}


async def test_what_everybody_left_half_written_is_no_answer() -> None:
    def dies(written: tuple[int, ...]) -> object:
        if written:
            raise ExpertFailed("gone")
        return next_token(no=1.0)

    world = World(dict.fromkeys("ab", 0.5), **{n: says("x", tokenizer="t", says_next=dies) for n in "ab"})
    with pytest.raises(ExpertFailed, match="gone"):
        await run(world, ask(QUESTION), "tokens")
    world.scripts["c"] = says("whole")
    blend = BlendSpec(combine="tokens")
    *_, last = [event async for event in Mixture(world, world).answer(ask(QUESTION), Policy(), blend, whole=True)]
    assert isinstance(last, Finished)
    assert (last.reply.text, last.reply.combine, last.reply.degraded) == ("whole", "best", True)


async def test_tokenizers_that_differ_are_refused_and_the_best_answers() -> None:
    other = says("x", tokenizer="t", says_next=lambda written: next_token("another", yes=1.0))
    events, reply = await run(World({"a": 0.6, "b": 0.4}, a=sure(yes=1.0), b=other), ask(QUESTION), "tokens")
    assert spoken(events) == ["alone"]
    assert (reply.combine, reply.combine_asked) == ("best", "tokens")
    assert "tokenizers differ" in reply.combine_reason
    assert not reply.degraded


async def test_experts_without_a_tokenizer_in_common_are_not_asked_for_tokens() -> None:
    world = World({"a": 0.6, "b": 0.4}, a=sure(yes=1.0), b=says("x", tokenizer="u"))
    _, reply = await run(world, ask(QUESTION), "tokens")
    assert (reply.text, reply.combine) == ("alone", "best")
    assert "no tokenizer in common" in reply.combine_reason


async def test_experts_that_cannot_write_by_token_answer_as_they_can() -> None:
    world = World({"a": 0.6, "b": 0.4}, a=says("Rome.", tokenizer="t"), b=says("Paris.", tokenizer="t"))
    _, reply = await run(world, ask(QUESTION), "tokens")
    assert (reply.text, reply.combine) == ("Rome.", "best")
    assert "token by token" in reply.combine_reason


async def test_a_seed_repeats_what_was_drawn() -> None:
    either = says("x", tokenizer="t", says_next=lambda written: next_token(yes=0.5, no=0.5))

    async def drawn(seed: int) -> str:
        request = ask(QUESTION)
        for field, value in {"max_tokens": 12, "temperature": 1.0, "seed": seed}.items():
            object.__setattr__(request, field, value)
        return (await run(World({"a": 0.5, "b": 0.5}, a=either, b=either), request, "tokens"))[1].text

    assert await drawn(1) == await drawn(1)
    assert len({await drawn(seed) for seed in range(4)}) > 1


# how soon the first word comes


async def test_the_best_s_first_word_is_not_held_up_and_its_time_is_told() -> None:
    world = World({"a": 1.0}, a=says("Ro", "me.", delay=0.15))
    _, reply = await run(world, ask(QUESTION), "best")
    assert 100 < reply.timing_ms["first_token"] < 280 < reply.timing_ms["answer"]


async def test_a_vote_s_first_word_comes_when_the_last_candidate_is_in() -> None:
    world = three(c=says("Paris.", delay=0.3))
    _, reply = await run(world, ask(QUESTION), "vote")
    assert reply.timing_ms["first_token"] >= 290


# perception: who need not be asked, what is handed over, what is doubted


def two_eyes(first: float) -> World:
    return World(
        {"quick": 0.6, "careful": 0.4},
        quick=Script({"image"}, "labels", [cat(first)], group="eyes"),
        careful=Script({"image"}, "labels", [cat(0.6)], group="eyes"),
    )


async def test_a_second_classifier_is_asked_only_when_the_first_is_unsure() -> None:
    world = two_eyes(0.9)
    _, reply = await run(world, ask(PICTURE), ask_next_below=0.8)
    spared = reply.parts[-1]
    assert (spared.expert, spared.status, spared.role, spared.weight) == ("careful", "skipped", "skipped", 0)
    assert "0.90" in spared.reason
    assert reply.text.startswith("Cat (90%)")
    assert not reply.degraded
    unsure = two_eyes(0.7)
    _, both = await run(unsure, ask(PICTURE), ask_next_below=0.8)
    assert both.text.startswith("Cat (66%)")
    assert unsure.scripts["careful"].asked


async def test_a_second_classifier_beside_a_writer_that_sees_is_asked_only_when_the_first_is_unsure() -> None:
    world = two_eyes(0.9)
    world.scripts["seer"] = Script({"text", "image"}, "text", ["A cat."])
    world.weights = {"seer": 0.5, "quick": 0.3, "careful": 0.2}
    _, reply = await run(world, ask(QUESTION, PICTURE), ask_next_below=0.5)
    assert roles(reply) == {"seer": "answer", "quick": "aside", "careful": "skipped"}
    assert not world.scripts["careful"].asked


async def test_all_are_asked_where_no_threshold_is_set() -> None:
    world = two_eyes(0.99)
    await run(world, ask(PICTURE))
    assert world.scripts["careful"].asked


async def test_a_second_is_asked_when_the_first_fails() -> None:
    world = two_eyes(0.9)
    world.scripts["quick"] = Script({"image"}, "labels", error=ExpertFailed("gone"), group="eyes")
    _, reply = await run(world, ask(PICTURE), ask_next_below=0.5)
    assert reply.text.startswith("Cat (60%)")


async def test_experts_of_other_kinds_are_asked_however_sure_a_classifier_is() -> None:
    world = two_eyes(0.99)
    world.weights = {"quick": 0.6, "ears": 0.4}
    world.scripts["ears"] = Script({"audio"}, "labels", [cat(0.5)], group="eyes")
    await run(world, ask(PICTURE, SOUND), ask_next_below=0.5)
    assert world.scripts["ears"].asked


async def test_classifiers_that_the_catalog_does_not_call_alike_are_all_asked() -> None:
    world = two_eyes(0.99)
    world.scripts["careful"].group = ""
    await run(world, ask(PICTURE), ask_next_below=0.5)
    assert world.scripts["careful"].asked


async def test_several_recognisers_are_all_asked_and_blended() -> None:
    world = World(
        {"a": 0.4, "b": 0.3, "c": 0.3},
        a=Script({"audio"}, "transcript", [heard("the bat sat")]),
        b=Script({"audio"}, "transcript", [heard("the cat sat")]),
        c=Script({"audio"}, "transcript", [heard("the cat sat")]),
    )
    _, reply = await run(world, ask(SOUND), ask_next_below=0.5)
    assert reply.text == "the cat sat"
    assert len(reply.parts) == 3


async def test_picture_and_sound_together_become_evidence() -> None:
    world = World(
        {"chat": 0.5, "eyes": 0.3, "ears": 0.2},
        chat=says("A cat that says hello."),
        eyes=Script({"image"}, "labels", [cat(0.9)]),
        ears=Script({"audio"}, "transcript", [heard("hello")]),
    )
    _, reply = await run(world, ask(QUESTION, PICTURE, SOUND))
    told = world.scripts["chat"].asked[0].text
    assert "cat" in told
    assert "hello" in told
    assert roles(reply) == {"eyes": "evidence", "ears": "evidence", "chat": "answer"}


async def test_the_answer_says_when_its_evidence_is_weak() -> None:
    def world(p: float) -> World:
        names = {"cat": p, "dog": (1 - p) / 2, "fox": (1 - p) / 2}
        seen = Labels(space="pets", labels=tuple(Label(name=name, probability=share) for name, share in names.items()))
        return World({"chat": 0.6, "eyes": 0.4}, chat=says("A cat."), eyes=Script({"image"}, "labels", [seen]))

    _, doubtful = await run(world(0.4), ask(QUESTION, PICTURE))
    assert doubtful.text.startswith("A cat.\n\n")
    assert "unclear" in doubtful.text
    assert doubtful.output == Text(text="A cat.")
    _, certain = await run(world(0.95), ask(QUESTION, PICTURE))
    assert certain.text == "A cat."


async def test_who_sees_gets_the_picture_and_the_words_heard() -> None:
    world = World(
        {"vlm": 1.0},
        vlm=Script({"text", "image"}, "text", ["A cat."]),
        eyes=Script({"image"}, "labels", [cat(0.2)]),
        ears=Script({"audio"}, "transcript", [heard("What is this called?")]),
    )
    _, reply = await run(world, ask(QUESTION, PICTURE, SOUND))
    sent = world.scripts["vlm"].asked[0]
    assert sent.images
    assert not sent.audios
    assert "What is this called?" in sent.text
    assert not world.scripts["eyes"].asked
    assert reply.text == "A cat."


async def test_who_cannot_see_votes_beside_who_can() -> None:
    world = World(
        {"vlm": 0.5, "chat": 0.5},
        vlm=Script({"text", "image"}, "text", ["A cat."]),
        chat=says("A cat."),
        eyes=Script({"image"}, "labels", [cat(0.9)]),
    )
    _, reply = await run(world, ask(QUESTION, PICTURE), "vote")
    assert world.scripts["vlm"].asked[0].images
    assert not world.scripts["chat"].asked[0].images
    assert "cat" in world.scripts["chat"].asked[0].text
    assert reply.combine == "vote"


async def test_a_blind_stand_in_gets_the_evidence_that_the_one_who_sees_did_not_need() -> None:
    world = World(
        {"vlm": 1.0},
        vlm=Script({"text", "image"}, "text", error=ExpertFailed("gone")),
        chat=says("A cat."),
        eyes=Script({"image"}, "labels", [cat(0.9)]),
    )
    _, reply = await run(world, ask(QUESTION, PICTURE))
    assert "cat" in world.scripts["chat"].asked[0].text
    assert math.isclose(sum(part.weight for part in reply.parts), 1)
    assert reply.degraded
