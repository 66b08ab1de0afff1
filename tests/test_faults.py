"""An answer, whatever fails: experts that die, hang, lie or are slow, and the next best in their place, in time."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_world import CATALOG, Sloth, World, said, served, until
from api_world import World as Gateway
from drills.arena import Load
from drills.change import gate_alone
from scripted import PICTURE, SOUND, Script, ask, cat, heard, next_token
from scripted import World as Scripts

from multimoe.config import BlendSpec, Combine, FaultSpec
from multimoe.decision import Policy
from multimoe.errors import BadInput, ExpertFailed, ExpertTimeout, MultimoeError, NoReplica, ReplicaLost
from multimoe.expert import Delta, Expert, NextToken, Token
from multimoe.inspection import MOST_CHARS, inspected, inspected_tokens
from multimoe.messages import ChatRequest, TextPart
from multimoe.mixture import Mixture
from multimoe.outputs import Event, Events, Label, Labels, Text, Transcript, Usage
from multimoe.reply import Finished, Reply, Spoken

QUESTION = ask(TextPart("hi"))
CHAT = "/v1/chat/completions"
QUICK = FaultSpec(slow_seconds=0.2, slow_factor=1, eject_seconds=60)


class Losing(Scripts):
    """The first `lost` questions to an expert are lost with its replica, after `after` words."""

    def __init__(self, weights: dict[str, float], lost: dict[str, int], after: int = 0, **scripts: Script) -> None:
        super().__init__(weights, **scripts)
        self.lost, self.after = Counter(lost), after

    async def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        lost = self.lost[expert] > 0
        self.lost[expert] -= lost
        heard = 0
        async for delta in super().ask(expert, request):
            if lost and heard == self.after:
                raise ReplicaLost(f"a replica of expert {expert!r} went away")
            heard += 1
            yield delta


def writer(*words: str, **more: Any) -> Script:
    return Script({"text"}, "text", list(words), **more)


def mixture(world: Scripts, faults: FaultSpec | None = None) -> Mixture:
    world.noticed = Counter()  # type: ignore[attr-defined]
    return Mixture(world, world, faults=faults, notice=lambda e, what: world.noticed.update([f"{e} {what}"]))  # type: ignore[attr-defined]


async def answered(
    mixture: Mixture,
    request: ChatRequest = QUESTION,
    combine: Combine = "weighted",
    seconds: float = math.inf,
    whole: bool = True,
    words: list[str] | None = None,
) -> Reply:
    async for event in mixture.answer(request, Policy(), BlendSpec(combine=combine), seconds, whole):
        if isinstance(event, Spoken) and words is not None:
            words.append(event.text)
        if isinstance(event, Finished):
            return event.reply
    raise AssertionError("no end")


def statuses(reply: Reply) -> dict[str, str]:
    return {part.expert: part.status for part in reply.parts}


# --- a replica that dies ---


async def test_a_question_lost_with_its_replica_is_put_to_another_replica_of_the_same_expert() -> None:
    world = Losing({"a": 1}, {"a": 1}, a=writer("yes"), b=writer("no"))
    reply = await answered(mixture(world), whole=False)
    assert (reply.text, reply.degraded, statuses(reply)) == ("yes", False, {"a": "ok"})
    assert world.noticed == {"a retried": 1}  # type: ignore[attr-defined]


async def test_without_retries_the_next_best_has_to_answer() -> None:
    world = Losing({"a": 1}, {"a": 1}, a=writer("yes"), b=writer("no"))
    reply = await answered(mixture(world, FaultSpec(retries=0)))
    assert (reply.text, reply.degraded, statuses(reply)) == ("no", True, {"a": "error", "b": "ok"})


async def test_without_retries_and_another_expert_the_question_is_lost() -> None:
    with pytest.raises(ReplicaLost):
        await answered(mixture(Losing({"a": 1}, {"a": 1}, a=writer("yes")), FaultSpec(retries=0)))


async def test_a_question_is_repeated_once_then_the_next_best_is_asked() -> None:
    world = Losing({"a": 1}, {"a": 9}, a=writer("yes"), b=writer("no"))
    assert (await answered(mixture(world))).text == "no"
    assert len(world.scripts["a"].asked) == 2


async def test_a_whole_answer_that_broke_off_is_asked_for_again_and_comes_whole() -> None:
    world = Losing({"a": 1}, {"a": 1}, 1, a=writer("Once ", "upon"), b=writer("no"))
    words: list[str] = []
    reply = await answered(mixture(world), words=words)
    assert (reply.text, words, reply.degraded) == ("Once upon", ["Once upon"], False)


async def test_a_stream_that_broke_off_is_neither_repeated_nor_continued_but_fails() -> None:
    world = Losing({"a": 1}, {"a": 1}, 1, a=writer("Once ", "upon"), b=writer("no"))
    words: list[str] = []
    with pytest.raises(ReplicaLost):
        await answered(mixture(world), whole=False, words=words)
    assert words == ["Once "]
    assert not world.scripts["b"].asked


async def test_a_fused_text_that_broke_off_is_no_answer_either() -> None:
    world = Losing({"a": 0.6, "b": 0.4}, {}, a=writer("one ", "two"), b=writer("three"))
    asked = world.scripts["a"].asked
    original = Losing.ask

    async def second_breaks_off(expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        async for delta in original(world, expert, request):
            if expert == "a" and len(asked) == 2 and delta.text == "two":
                raise ExpertFailed("gone")
            yield delta

    world.ask = second_breaks_off  # type: ignore[method-assign]
    with pytest.raises(ExpertFailed, match="gone"):
        await answered(mixture(world), combine="fuse", whole=False)
    asked.clear()
    assert (await answered(mixture(world), combine="fuse")).text == "one two"  # the weightiest candidate, whole


async def test_a_lost_step_of_writing_together_is_repeated() -> None:
    lost = iter([True])

    def steps(written: tuple[int, ...]) -> NextToken:
        if written and next(lost, False):
            raise ReplicaLost("gone")
        return next_token(yes=0.9) if len(written) < 2 else next_token(end=1.0)

    team = {name: writer("x", tokenizer="t", says_next=steps) for name in "ab"}
    reply = await answered(mixture(Scripts({"a": 0.5, "b": 0.5}, **team)), combine="tokens")
    assert (reply.text, reply.degraded) == ("yes yes ", False)


async def test_a_lost_classifier_is_repeated_too() -> None:
    eyes = Script({"image"}, "labels", [cat(0.9)])
    reply = await answered(mixture(Losing({"eyes": 1}, {"eyes": 1}, eyes=eyes)), ask(PICTURE))
    assert statuses(reply) == {"eyes": "ok"}


class Restarting(Scripts):
    """Of an expert no replica is up for the first `times` that it is asked."""

    def __init__(self, weights: dict[str, float], times: dict[str, int], **scripts: Script) -> None:
        super().__init__(weights, **scripts)
        self.times = Counter(times)

    async def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        self.times[expert] -= 1
        if self.times[expert] >= 0:
            raise NoReplica(f"no replica of expert {expert!r} is up")
        async for delta in super().ask(expert, request):
            yield delta


async def test_where_no_replica_is_up_another_expert_answers_at_once() -> None:
    world = Restarting({"a": 1}, {"a": 9}, a=writer("back"), b=writer("here"))
    reply = await answered(mixture(world), seconds=20)
    assert (reply.text, reply.degraded, world.times["a"]) == ("here", True, 8)
    assert statuses(reply) == {"a": "skipped", "b": "ok"}


@pytest.mark.parametrize("kind", ["text", "labels"])
async def test_where_nobody_else_can_answer_the_replica_that_is_started_is_waited_for(kind: str) -> None:
    team = {"a": writer("back") if kind == "text" else Script({"image"}, "labels", [cat(0.9)])}
    world = Restarting({"a": 1}, {"a": 3}, **team)
    reply = await answered(mixture(world), QUESTION if kind == "text" else ask(PICTURE), seconds=20)
    assert statuses(reply) == {"a": "ok"}


async def test_nor_is_it_waited_for_beyond_the_deadline() -> None:
    world = Restarting({"a": 1}, {"a": 99}, a=writer("back"))
    began = asyncio.get_running_loop().time()
    with pytest.raises(NoReplica):
        await answered(mixture(world), seconds=1.2)
    assert asyncio.get_running_loop().time() - began < 1.5


# --- one that hangs or is slow ---


async def test_a_stuck_expert_leaves_the_next_one_time_within_the_deadline() -> None:
    world = Scripts({"a": 1}, a=writer("late", delay=60, timeout_s=60), b=writer("in time"))
    reply = await answered(mixture(world), seconds=0.6)
    assert (reply.text, statuses(reply)) == ("in time", {"a": "timeout", "b": "ok"})
    assert world.scripts["a"].closed


async def test_experts_are_told_how_long_they_are_waited_for() -> None:
    world = Scripts({"a": 1}, a=writer("hi", timeout_s=60))
    await answered(mixture(world), seconds=10)
    await answered(mixture(world))
    told = [request.seconds for request in world.scripts["a"].asked]
    assert 9 < told[0] <= 10
    assert told[1] == 60


@pytest.mark.parametrize("combine", ["vote", "fuse", "all"])
async def test_who_hangs_is_not_waited_for_until_the_end(combine: Combine) -> None:
    team = {"a": writer("yes"), "b": writer("yes"), "c": writer("late", delay=60, timeout_s=60)}
    began = asyncio.get_running_loop().time()
    reply = await answered(mixture(Scripts({"a": 0.4, "b": 0.3, "c": 0.3}, **team), QUICK), combine=combine, seconds=6)
    assert asyncio.get_running_loop().time() - began < 5.5
    assert statuses(reply)["c"] == "timeout"
    assert reply.degraded
    assert sum(part.weight for part in reply.parts) == pytest.approx(1.0)


async def test_a_hanging_classifier_beside_one_that_answered_is_not_waited_for() -> None:
    eyes = {name: Script({"image"}, "labels", [cat(0.9)], delay=60 * (name == "b"), timeout_s=60) for name in "ab"}
    reply = await answered(mixture(Scripts({"a": 0.5, "b": 0.5}, **eyes), QUICK), ask(PICTURE), seconds=30)
    assert statuses(reply) == {"a": "ok", "b": "timeout"}
    assert eyes["b"].closed


@pytest.mark.parametrize("combine", ["vote", "all"])
async def test_who_writes_on_is_heard_to_the_end_however_long_that_takes(combine: Combine) -> None:
    team = {"a": writer("yes"), "b": writer("no ", "and ", "no ", "again", delay=0.15, timeout_s=60)}
    reply = await answered(mixture(Scripts({"a": 0.5, "b": 0.5}, **team), QUICK), combine=combine, seconds=30)
    assert statuses(reply) == {"a": "ok", "b": "ok"}


async def test_where_all_are_slow_all_are_heard() -> None:
    team = {name: writer(name, delay=0.5, timeout_s=60) for name in "ab"}
    reply = await answered(mixture(Scripts({"a": 0.5, "b": 0.5}, **team), QUICK), combine="all", seconds=30)
    assert statuses(reply) == {"a": "ok", "b": "ok"}


@pytest.mark.parametrize("hedges", [0.0, 0.05])
async def test_a_steadily_slow_expert_is_learned_to_be_so_and_stays(hedges: float) -> None:
    world = Scripts({"a": 1}, a=writer("hi", delay=0.3, timeout_s=60), b=writer("no"), c=writer("no"))
    asked = mixture(world, FaultSpec(slow_seconds=0.2, slow_factor=2, eject_seconds=0.1, hedges=hedges))
    texts = [(await answered(asked)).text for _ in range(8)]
    assert texts == (["hi"] if hedges == 0.0 else ["no"]) * 8
    async with asyncio.timeout(20):
        while asked.asker.breakers.ejected():  # until it has been tried out
            await answered(asked)
            await asyncio.sleep(0.05)
    assert [(await answered(asked)).text for _ in range(3)] == ["hi"] * 3


# --- one that is slow, and another asked beside it ---

HEDGED = FaultSpec(slow_seconds=0.2, slow_factor=1)


async def test_the_next_best_is_asked_beside_who_is_slow_and_the_first_to_speak_is_heard() -> None:
    world = Scripts({"a": 1}, a=writer("late", delay=60, timeout_s=60), b=writer("in ", "time"))
    began, words = asyncio.get_running_loop().time(), list[str]()
    reply = await answered(mixture(world, HEDGED), seconds=30, whole=False, words=words)
    assert asyncio.get_running_loop().time() - began < 2
    assert (words, statuses(reply), reply.degraded) == (["in ", "time"], {"a": "timeout", "b": "ok"}, True)
    assert world.scripts["a"].closed
    assert world.noticed == {"a hedged": 1}  # type: ignore[attr-defined]


async def test_who_was_slow_is_heard_where_it_speaks_first_all_the_same() -> None:
    world = Scripts({"a": 1}, a=writer("slow", delay=0.4, timeout_s=60), b=writer("no", delay=60, timeout_s=60))
    reply = await answered(mixture(world, HEDGED), seconds=30)
    assert (reply.text, statuses(reply)) == ("slow", {"a": "ok", "b": "timeout"})
    assert world.scripts["b"].closed


async def test_who_was_slow_is_heard_where_the_one_beside_it_fails() -> None:
    world = Scripts({"a": 1}, a=writer("slow", delay=0.5, timeout_s=60), b=writer(error=ExpertFailed("gone")))
    reply = await answered(mixture(world, HEDGED), seconds=30)
    assert (reply.text, statuses(reply)) == ("slow", {"a": "ok", "b": "error"})


async def test_a_slow_classifier_is_hedged_too() -> None:
    eyes = {name: Script({"image"}, "labels", [cat(0.9)], delay=60 * (name == "a"), timeout_s=60) for name in "ab"}
    reply = await answered(mixture(Scripts({"a": 1}, **eyes), HEDGED), ask(PICTURE), seconds=30)
    assert statuses(reply) == {"a": "timeout", "b": "ok"}


async def test_who_has_begun_is_not_hedged_though_nobody_has_heard_it_yet() -> None:
    world = Scripts({"a": 1}, a=writer("one ", "two ", "three", delay=0.15, timeout_s=60), b=writer("no"))
    assert (await answered(mixture(world, HEDGED), seconds=30)).text == "one two three"
    assert not world.scripts["b"].asked


async def test_hedges_have_a_budget() -> None:
    world = Scripts({"a": 1}, a=writer("slow", delay=1.5, timeout_s=60), b=writer("no"))
    asked = mixture(world, HEDGED.model_copy(update={"eject_after": 100}))
    replies = await asyncio.gather(*(answered(asked, seconds=30) for _ in range(40)))
    assert Counter(reply.text for reply in replies) == {"no": 10, "slow": 30}


async def test_closing_a_hedged_answer_closes_everybody() -> None:
    team = {name: writer("late", delay=60, timeout_s=60) for name in "ab"}
    world = Scripts({"a": 1}, **team)
    asking = asyncio.create_task(answered(mixture(world, HEDGED), seconds=30))
    await eventually(lambda: bool(team["b"].asked))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert team["a"].closed
    assert team["b"].closed


async def test_a_server_that_cannot_be_reached_in_its_own_time_has_failed() -> None:
    unreachable = writer(error=ExpertTimeout("no connection within 5 s"), delay=0.01, timeout_s=60)
    world = Scripts({"a": 1}, a=unreachable, b=writer("yes"), c=writer("no"))
    asked = mixture(world)
    for _ in range(5):
        await answered(asked)
    assert asked.asker.breakers.ejected() == ["a"]


async def test_evidence_answers_where_the_only_writer_hangs() -> None:
    world = Scripts(
        {"chat": 1}, chat=writer("late", delay=60, timeout_s=60), eyes=Script({"image"}, "labels", [cat(0.9)])
    )
    reply = await answered(mixture(world), ask(TextPart("What is it?"), PICTURE), seconds=0.6)
    assert reply.text.startswith("Cat (90%)")


async def test_a_spoken_question_finds_another_writer() -> None:
    world = Scripts(
        {"ears": 1},
        ears=Script({"audio"}, "transcript", [heard("Who is there?")]),
        a=writer(error=ExpertFailed("gone")),
        b=writer("I."),
    )
    reply = await answered(mixture(world), ask(SOUND))
    assert reply.text.endswith("I.")
    assert reply.degraded


async def test_a_question_that_a_failure_repeats_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    question = 'Is "Eve" in\nthe garden tonight?'
    said_so = f"500: cannot read {json.dumps({'content': question})}"
    world = Scripts({"a": 0.6, "b": 0.4}, a=writer(error=ExpertFailed(said_so)), b=writer("yes"))
    reply = await answered(mixture(world), ask(TextPart(question)))
    (failed,) = [part for part in reply.parts if part.expert == "a"]
    assert "garden" in str(failed.error)  # whoever asked may read it
    (record,) = [record for record in caplog.records if record.getMessage() == "expert failed"]
    assert vars(record)["error"] == '500: cannot read {"content": "… (the question)'


# --- one that keeps failing ---


async def test_who_keeps_failing_is_no_longer_asked_and_the_reply_says_why() -> None:
    world = Scripts({"a": 0.6, "b": 0.4}, a=writer(error=ExpertFailed("gone")), b=writer("yes"), c=writer("no"))
    asked = mixture(world, FaultSpec(eject_after=5, eject_seconds=60))
    for _ in range(7):
        reply = await answered(asked)
        assert (reply.text, reply.degraded) == ("yes", True)
    assert len(world.scripts["a"].asked) == 5
    parts = {part.expert: part for part in reply.parts}
    assert (parts["a"].status, parts["a"].weight, parts["b"].weight) == ("skipped", 0.0, 1.0)
    assert "passed over after 5 failures in a row (it failed);" in parts["a"].reason  # not how: that is another's
    assert world.noticed == {"a ejected": 1, "a passed_over": 2}  # type: ignore[attr-defined]


async def test_a_hanging_expert_is_paid_for_a_few_times_only() -> None:
    world = Scripts({"a": 1}, a=writer("late", delay=60, timeout_s=60), b=writer("yes"), c=writer("no"))
    asked = mixture(world, QUICK)
    together = await asyncio.gather(*(answered(asked, seconds=1.5) for _ in range(5)))
    assert {reply.text for reply in together} == {"yes"}
    began = asyncio.get_running_loop().time()
    assert (await answered(asked, seconds=30)).text == "yes"
    assert asyncio.get_running_loop().time() - began < 1
    assert len(world.scripts["a"].asked) == 5


async def test_nobody_waits_for_the_answer_of_an_expert_that_is_tried_out() -> None:
    sick = writer("late", delay=60, timeout_s=60)
    world = Scripts({"a": 1}, a=sick, b=writer("yes"), c=writer("no"))
    asked = mixture(world, FaultSpec(slow_seconds=0.7, slow_factor=1, eject_after=1, eject_seconds=0.1))
    breakers = asked.asker.breakers
    await answered(asked, seconds=3.5)
    assert breakers.ejected() == ["a"]
    for well in (False, True):
        sick.delay = 0 if well else 60
        await eventually(lambda: breakers.due("a"))
        before, began = len(sick.asked), asyncio.get_running_loop().time()
        reply = await answered(asked, seconds=30)
        assert (reply.text, reply.degraded) == ("yes", True)
        assert asyncio.get_running_loop().time() - began < 1.5  # the copy may take two seconds
        await eventually(lambda before=before: len(sick.asked) == before + 1)  # type: ignore[misc]
    await eventually(lambda: breakers.ejected() == [])
    assert (await answered(asked, seconds=30)).text == "late"


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_who_names_the_expert_that_keeps_failing_tries_it_out_and_waits() -> None:
    world = Scripts({"a": 1}, a=writer(error=ExpertFailed("gone")), b=writer("yes"), c=writer("no"))
    asked = mixture(world, FaultSpec(eject_after=1, eject_seconds=0.1))
    await answered(asked)
    await eventually(lambda: asked.asker.breakers.due("a"))
    world.scripts["a"].error, world.scripts["a"].says = None, ["well again"]
    events = [event async for event in asked.ask_one("a", QUESTION)]
    assert isinstance(events[-1], Finished)
    assert events[-1].reply.text == "well again"
    assert len(world.scripts["a"].asked) == 2
    assert asked.asker.breakers.ejected() == []


async def test_a_caller_in_a_hurry_ejects_nobody() -> None:
    world = Scripts({"a": 1}, a=writer("hi", delay=0.1), b=writer("no"), c=writer("no"))
    asked = mixture(world)
    for _ in range(6):
        await answered(asked, seconds=0.1)
    assert asked.asker.breakers.ejected() == []


async def test_a_question_that_an_expert_refuses_says_nothing_against_it() -> None:
    world = Scripts({"a": 1}, a=writer(error=BadInput("too long")), b=writer("yes"))
    asked = mixture(world)
    for _ in range(8):
        await answered(asked)
    assert asked.asker.breakers.ejected() == []


@pytest.mark.parametrize("kind", ["text", "labels"])
async def test_who_keeps_failing_is_asked_all_the_same_where_nobody_else_answers(kind: str) -> None:
    reads, says = ({"text"}, ["hello"]) if kind == "text" else ({"image"}, [cat(0.9)])
    failing = Script(reads, kind, error=ExpertFailed("gone"))  # type: ignore[arg-type]
    world = Scripts({"a": 1}, a=failing, b=Script(reads, kind, error=ExpertFailed("gone")))  # type: ignore[arg-type]
    request = QUESTION if kind == "text" else ask(PICTURE)
    asked = mixture(world, FaultSpec(eject_seconds=60))
    for _ in range(6):
        with pytest.raises(ExpertFailed):
            await answered(asked, request)
    failing.error, failing.says = None, says
    reply = await answered(asked, request)
    assert statuses(reply)["a"] == "ok"
    assert asked.asker.breakers.ejected() == []
    assert [part.expert for part in reply.parts].count("a") == 1


async def test_an_ejected_expert_is_tried_by_one_and_comes_back() -> None:
    world = Scripts({"a": 1}, a=writer(error=ExpertFailed("gone")), b=writer("no"), c=writer("no"))
    asked = mixture(world, FaultSpec(eject_seconds=0.05))
    for _ in range(6):
        await answered(asked)
    world.scripts["a"].error, world.scripts["a"].says, world.scripts["a"].delay = None, ["yes"], 0.05
    await eventually(lambda: asked.asker.breakers.due("a"))
    before = len(world.scripts["a"].asked)
    replies = await asyncio.gather(*(answered(asked) for _ in range(4)))
    assert [reply.text for reply in replies] == ["no"] * 4  # nobody has to wait for how that goes
    await eventually(lambda: asked.asker.breakers.ejected() == [])
    assert len(world.scripts["a"].asked) == before + 1  # one of the four's
    assert (await answered(asked)).text == "yes"


# --- one that lies ---

SURROGATE = "half \ud83d a character"
NAN = Label.model_construct(name="cat", probability=math.nan, id=None, synonyms=())
LIES: dict[str, Callable[[], Delta]] = {
    "a probability that is none": lambda: Delta(output=labels(NAN)),
    "an infinite one": lambda: Delta(output=labels(NAN.model_copy(update={"probability": math.inf}))),
    "probabilities beyond one": lambda: Delta(output=labels(*[Label(name="cat", probability=0.9)] * 2)),
    "thousands of labels": lambda: Delta(output=labels(*[Label(name="cat", probability=0.0)] * 30_000)),
    "half a character in a label": lambda: Delta(output=labels(Label(name=SURROGATE, probability=0.5))),
    "megabytes in a label": lambda: Delta(output=labels(Label(name="x" * 2_000_000, probability=0.5))),
    "another kind": lambda: Delta(output=Text(text="a cat")),
    "something else altogether": lambda: Delta(output={"kind": "labels"}),  # type: ignore[arg-type]
    "labels that are none": lambda: Delta(output=Labels.model_construct(space="s", labels=(3,), each=())),
    "no delta": lambda: "cat",  # type: ignore[return-value, arg-type]
    "bytes": lambda: Delta(text=b"\xff\xfe"),  # type: ignore[arg-type]
    "half a character": lambda: Delta(text=SURROGATE),
    "a text without an end": lambda: Delta(text="x" * (MOST_CHARS + 1)),
    "tokens that cannot be": lambda: Delta(usage=Usage(prompt_tokens=-1)),
    "a cost that is none": lambda: Delta(usage=Usage(cost=math.nan)),
    "another end": lambda: Delta(finish="whenever"),  # type: ignore[arg-type]
}


def labels(*listed: Label) -> Labels:
    return Labels.model_construct(kind="labels", space="s", labels=listed, each=())


async def saying(*deltas: Delta) -> AsyncGenerator[Delta, None]:
    for delta in deltas:
        yield delta


@pytest.mark.parametrize("lie", list(LIES))
async def test_what_no_honest_expert_says_is_refused(lie: str) -> None:
    spec = Script({"image"}, "labels").spec("eyes")
    with pytest.raises(ExpertFailed, match="eyes") as refused:
        _ = [delta async for delta in inspected(saying(LIES[lie]()), spec, ask(PICTURE))]
    assert refused.value.code == "bad_output"
    assert len(str(refused.value)) < 300


async def test_a_stream_of_nothing_without_an_end_is_ended() -> None:
    async def for_ever() -> AsyncGenerator[Delta, None]:
        while True:
            yield Delta()

    with pytest.raises(ExpertFailed, match="does not stop"):
        _ = [delta async for delta in inspected(for_ever(), writer().spec("a"), QUESTION)]


async def test_times_must_be_finite() -> None:
    event = Event.model_construct(label="music", start=0.0, end=math.inf, score=0.5)
    events = Events.model_construct(space="sound", duration=1.0, events=(event,))
    with pytest.raises(ExpertFailed, match="inf"):
        _ = [d async for d in inspected(saying(Delta(output=events)), Script({"audio"}, "events").spec("e"), QUESTION)]


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("labels", cat(0.9)),
        ("transcript", heard("été 🌊")),
        ("transcript", Transcript(segments=())),
        ("events", Events(space="s", duration=0.0, events=())),
        ("text", Text(text="🌊" * 1000)),
    ],
)
async def test_what_honest_experts_say_passes_as_it_is(kind: Any, output: Any) -> None:
    said = [Delta(text="é") for _ in range(300)] if kind == "text" else []
    said.append(Delta(output=output, usage=Usage(prompt_tokens=1, cost=0.1), finish="stop"))
    assert [d async for d in inspected(saying(*said), Script({"text"}, kind).spec("a"), QUESTION)] == said


@pytest.mark.parametrize(
    "listed",
    [
        NextToken((Token(1, math.nan, b"x"),), "v"),
        NextToken((Token(1, 0.0, b"x"), Token(2, 0.0, b"y")), "v"),
        NextToken((Token(1, -9.0, b"x"),) * 99, "v"),
        NextToken((Token(1, 0.0, b"x" * 5000),), "v"),
        NextToken((), "v"),
    ],
)
def test_a_list_of_tokens_must_be_a_distribution(listed: NextToken) -> None:
    with pytest.raises(ExpertFailed):
        inspected_tokens(listed, writer().spec("a"), 64)


async def test_the_next_best_answers_in_place_of_a_liar() -> None:
    eyes = {"a": Script({"image"}, "labels", [labels(NAN)]), "b": Script({"image"}, "labels", [cat(0.9)])}
    reply = await answered(mixture(Scripts({"a": 0.9, "b": 0.1}, **eyes)), ask(PICTURE))
    assert statuses(reply) == {"a": "error", "b": "ok"}
    assert reply.text.startswith("Cat (90%)")


# --- through the API ---


@pytest.fixture
def world(tmp_path: Path) -> Gateway:
    return World(tmp_path / "home")


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_caller_s_own_deadline_ends_in_time_and_stops_the_expert(world: Gateway, by_header: bool) -> None:
    body = said("hi", model="multimoe/sloth")
    headers = {"x-multimoe-timeout-s": "0.2"} if by_header else {}
    body |= {} if by_header else {"x_multimoe": {"timeout_s": 0.2}}
    async with world.client(timeout=30) as client:
        began = asyncio.get_running_loop().time()
        reply = await client.post(CHAT, json=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "expert_timeout")
    assert asyncio.get_running_loop().time() - began < 3
    assert Sloth.answering == 0


async def test_nobody_gets_more_time_than_the_limits_allow(tmp_path: Path) -> None:
    world = World(tmp_path / "home", limits={"request_seconds": 0.2})
    async with world.client(timeout=30) as client:
        body = said("hi", model="multimoe/sloth", x_multimoe={"timeout_s": 1000})
        assert (await client.post(CHAT, json=body)).status_code == 504


async def test_a_stream_that_breaks_off_ends_in_an_error_and_not_as_if_it_were_done(world: Gateway) -> None:
    midway = world.catalog.experts[0].model_copy(update={"options": {"fail": "midway"}})
    await world.cluster.replace(midway)
    async with world.client() as client:
        text = (await client.post(CHAT, json=said("one two", model="multimoe/parrot", stream=True))).text
        whole = await client.post(CHAT, json=said("one two", model="multimoe/parrot"))
    assert '"content":"one"' in text
    assert '"error"' in text.strip().splitlines()[-1]
    assert "[DONE]" not in text
    assert (whole.status_code, "choices" in whole.json()) == (502, False)


async def test_a_gateway_that_is_stopped_ends_what_it_is_answering_and_takes_nothing_new(world: Gateway) -> None:
    slow = world.catalog.experts[0].model_copy(update={"options": {"delay_s": 0.1}})
    await world.cluster.replace(slow)
    async with world.client(timeout=30) as client:
        assert (await client.get("/ready")).status_code == 200
        body = said("one two three", model="multimoe/parrot")
        asked = [asyncio.create_task(client.post(CHAT, json=body | {"stream": i % 2 == 0})) for i in range(6)]
        while world.services.drain.under_way < 6:
            await asyncio.sleep(0.01)
        assert world.services.drain.begin() == 6
        ready, refused, alive = [await client.get(p) for p in ("/ready", "/v1/models", "/health")]
        assert (ready.status_code, refused.status_code, alive.status_code) == (503, 503, 200)
        assert all("retry-after" in one.headers for one in (ready, refused))
        assert refused.json()["error"]["code"] == "stopping"
        done = await asyncio.gather(*asked)
    assert {one.status_code for one in done} == {200}
    assert all("three" in one.text for one in done)
    assert world.services.drain.begin() == 0


async def test_an_expert_is_upgraded_in_place(world: Gateway) -> None:
    entry = world.catalog.experts[0].model_dump(mode="json", exclude_unset=True)
    url = "/v1/experts/parrot"
    async with world.client() as client:
        done = await client.put(url, json=entry | {"card": {"description": "Better."}})
        assert (done.status_code, done.json()["description"]) == (200, "Better.")
        other_kind = await client.put(url, json=entry | {"output": "labels"})
        other_name = await client.put(url, json=entry | {"name": "eye"})
        nobody = await client.put("/v1/experts/nobody", json=entry | {"name": "nobody"})
        broken = await client.put(url, json=entry | {"options": {"no such": 1}})
        assert (await client.post(CHAT, json=said("hi", model="multimoe/parrot"))).status_code == 200
    assert [one.status_code for one in (other_kind, other_name, nobody, broken)] == [409, 400, 404, 400]


class Wrong(Expert):
    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        yield Delta(text="something else", finish="stop")


@pytest.mark.parametrize(("backend", "outcome"), [("experts.echo:Echo", "ok"), ("test_faults:Wrong", "wrong")])
def test_the_drills_load_tells_a_right_body_from_a_wrong_one(tmp_path: Path, backend: str, outcome: str) -> None:
    spec = CATALOG["experts"][0] | {"backend": backend}
    with served(World(tmp_path / "home", experts=[spec])) as url, Load(url.removesuffix("/v1"), 20) as load:
        until(lambda: len(load.seen) > 8, 30)
    assert set(load.outcomes()) == {outcome}
    assert {seen.streamed for seen in load.seen} == {True, False}


@pytest.mark.weights
def test_a_gate_that_is_swapped_while_it_decides_fails_no_decision() -> None:
    (row,) = gate_alone("quick")
    assert row.met, row


async def test_the_drain_counts_nothing_twice(world: Gateway) -> None:
    async with world.client() as client:
        for _ in range(3):
            await client.post(CHAT, json=said("hi", model="multimoe/broken"))
            with pytest.raises((httpx.HTTPError, MultimoeError, TimeoutError)):
                await asyncio.wait_for(client.post(CHAT, json=said("hi", model="multimoe/sloth")), 0.05)
    assert world.services.drain.under_way == 0
