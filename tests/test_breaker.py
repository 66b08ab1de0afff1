"""Who is passed over, for how long, and who tries out whether it is well again."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from multimoe.breaker import LONGEST, Attempt, Breakers, RetryBudget
from multimoe.config import Autoscaling, Card, Deployment, ExpertSpec, FaultSpec
from multimoe.messages import ChatRequest, ImagePart, Message, TextPart

FAULTS = FaultSpec(eject_after=3, eject_seconds=10, slow_seconds=1)
ASKED = ChatRequest("chatcmpl-1", (Message("user", (TextPart("hi"),)),))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def spec(name: str, **more: object) -> ExpertSpec:
    tree = {"name": name, "backend": "experts.echo:Echo", "inputs": ["text"], "output": "text"}
    return ExpertSpec.model_validate(tree | {"card": Card(description=name), **more})


def fail(breakers: Breakers, name: str, times: int, pool: int = 9) -> None:
    for _ in range(times):
        with breakers.attempt(spec(name), pool) as attempt:
            attempt.failed("failed")


def test_an_expert_that_keeps_failing_is_passed_over_and_the_reason_is_told() -> None:
    breakers = Breakers(FAULTS, Clock())
    fail(breakers, "a", 2)
    assert breakers.why_not("a") == ""
    fail(breakers, "a", 1)
    assert breakers.why_not("a") == "passed over after 3 failures in a row (it failed); it is tried again in 10 s"


def succeed(breakers: Breakers, name: str, times: int = 1) -> None:
    for _ in range(times):
        with breakers.attempt(spec(name), 9) as attempt:
            attempt.succeeded(0.1)


def test_one_failure_now_and_then_keeps_it_in() -> None:
    breakers = Breakers(FAULTS, Clock())
    for _ in range(20):
        fail(breakers, "a", 1)
        succeed(breakers, "a", 6)
    assert breakers.ejected() == []


def test_who_fails_often_though_never_in_a_row_is_passed_over_until_several_trials_went_well() -> None:
    breakers = Breakers(FAULTS, clock := Clock())
    while not breakers.ejected():
        succeed(breakers, "a", 2)
        fail(breakers, "a", 1)
    assert "passed over after 4 failures in 12 answers (it failed)" in breakers.why_not("a")
    clock.now += 10
    succeed(breakers, "a", 2)
    fail(breakers, "a", 1)  # 30 % fail: two trials say little
    assert "again in 20 s" in breakers.why_not("a")
    clock.now += 20
    succeed(breakers, "a", 2)
    assert breakers.ejected() == ["a"]
    succeed(breakers, "a", 1)
    assert breakers.ejected() == []


def test_an_answer_from_before_it_was_passed_over_does_not_bring_it_back() -> None:
    breakers = Breakers(FAULTS, Clock())
    with breakers.attempt(spec("a"), 9) as earlier:
        fail(breakers, "a", 3)
        earlier.succeeded(0.1)
    assert breakers.ejected() == ["a"]


def test_one_request_at_a_time_tries_it_out_and_each_failure_makes_the_wait_longer() -> None:
    breakers = Breakers(FAULTS, clock := Clock())
    fail(breakers, "a", 3)
    for ejections in range(2, LONGEST + 3):
        clock.now += 10 * LONGEST
        with breakers.attempt(spec("a"), 9) as trial:
            assert trial.trial
            assert "it is being tried out" in breakers.why_not("a")
            trial.failed("failed again")
        assert f"again in {10 * min(ejections, LONGEST)} s" in breakers.why_not("a")


def test_a_trial_that_was_given_up_leaves_the_next_one_free() -> None:
    breakers = Breakers(FAULTS, clock := Clock())
    fail(breakers, "a", 3)
    clock.now += 10
    with breakers.attempt(spec("a"), 9) as given_up:
        assert given_up.trial
    assert breakers.why_not("a") == ""
    with breakers.attempt(spec("a"), 9) as trial:
        trial.succeeded(0.1)
    assert breakers.ejected() == []


@pytest.mark.parametrize(("pool", "most"), [(1, 0), (2, 1), (3, 1), (5, 1), (6, 2), (9, 3)])
def test_at_most_a_third_is_passed_over_and_never_the_only_one(pool: int, most: int) -> None:
    breakers = Breakers(FAULTS, Clock())
    for name in "abcdefghi"[:pool]:
        fail(breakers, name, 20, pool)
    assert len(breakers.ejected()) == most


def test_who_is_far_slower_than_usual_has_failed_even_if_the_answer_comes() -> None:
    breakers = Breakers(FAULTS, Clock())
    for _ in range(3):
        with breakers.attempt(spec("a"), 9) as attempt:
            attempt.overdue()
            attempt.succeeded(20.0)
    assert "far slower than usual" in breakers.why_not("a")


def test_who_may_be_asleep_is_not_held_to_be_slow() -> None:
    sleeper = spec("a", serve=Deployment(autoscaling_config=Autoscaling(min_replicas=0)))
    breakers = Breakers(FAULTS, Clock())
    for _ in range(9):
        with breakers.attempt(sleeper, 9) as attempt:
            attempt.overdue()
    assert breakers.ejected() == []
    assert breakers.patience(sleeper, ASKED) > breakers.patience(spec("b"), ASKED)


def test_what_is_usual_is_learned_and_a_card_is_the_least() -> None:
    breakers = Breakers(FAULTS, Clock())
    assert breakers.patience(spec("a", latency_ms=500), ASKED) == 5.0
    for _ in range(9):
        with breakers.attempt(spec("a"), 9) as attempt:
            attempt.succeeded(2.0)
    assert breakers.patience(spec("a", latency_ms=500), ASKED) == 20.0


def test_each_picture_takes_its_time() -> None:
    breakers = Breakers(FAULTS, Clock())
    pictures = ChatRequest("chatcmpl-1", (Message("user", (ImagePart(np.zeros((4, 4, 3), np.uint8)),) * 8),))
    reader, writer = spec("a", inputs=["image"], latency_ms=1500), spec("b", latency_ms=1500)
    assert breakers.patience(reader, pictures) == 8 * breakers.patience(writer, pictures)


def test_no_more_than_a_tenth_of_all_questions_is_repeated() -> None:
    budget = RetryBudget(0.1)
    repeated = 0
    for _ in range(10_000):
        budget.earn()
        repeated += budget.take()
    assert 990 <= repeated <= 1010
    assert not RetryBudget(0.0).take()


class Machine(RuleBasedStateMachine):
    """Any order of questions, ends and waits. The model is what must be true of any breaker, not how this one works."""

    NAMES = "abcde"
    MOST = 1  # a third of five

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breakers = Breakers(FAULTS.model_copy(update={"eject_share": 1.0}), self.clock, self.notice)
        self.waiting: dict[str, list[tuple[object, Attempt]]] = {name: [] for name in self.NAMES}
        self.row = dict.fromkeys(self.NAMES, 0)
        self.told: dict[str, str] = {}

    def notice(self, name: str, what: str) -> None:
        self.told[name] = what

    @rule(name=st.sampled_from(NAMES))
    def ask(self, name: str) -> None:
        if not self.breakers.why_not(name):
            context = self.breakers.attempt(spec(name), len(self.NAMES))
            self.waiting[name].append((context, context.__enter__()))

    @rule(name=st.sampled_from(NAMES), end=st.sampled_from(["ok", "failed", "given up", "late"]))
    def end(self, name: str, end: str) -> None:
        if not self.waiting[name]:
            return
        context, attempt = self.waiting[name].pop(0)
        late = attempt.late
        if end == "late":
            attempt.overdue()
        elif end == "ok":
            attempt.succeeded(0.1)
        elif end == "failed":
            attempt.failed("failed")
        if (end == "late" or end == "failed") and not late:
            self.row[name] += 1
        elif end == "ok" and not late and (attempt.trial or name not in self.breakers.ejected()):
            self.row[name] = 0
            assert name not in self.breakers.ejected()
        context.__exit__(None, None, None)  # type: ignore[attr-defined]

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def few_are_out(self) -> None:
        assert len(self.breakers.ejected()) <= self.MOST

    @invariant()
    def only_who_failed_often_enough_is_out(self) -> None:
        for name in self.breakers.ejected():
            assert self.row[name] >= FAULTS.eject_after
            assert self.told[name] == "ejected"

    @invariant()
    def whoever_is_in_may_be_asked(self) -> None:
        for name in self.NAMES:
            if name not in self.breakers.ejected():
                assert self.breakers.why_not(name) == ""
                assert self.told.get(name) != "ejected"

    @invariant()
    def one_tries(self) -> None:
        for name in self.NAMES:
            trials = [attempt for _, attempt in self.waiting[name] if attempt.trial]
            assert len(trials) <= 1
            if trials and name in self.breakers.ejected():
                assert self.breakers.why_not(name)

    @invariant()
    def the_wait_ends(self) -> None:
        for name in self.breakers.ejected():
            later = self.clock.now + FAULTS.eject_seconds * LONGEST
            breaker = self.breakers._all[name]
            assert breaker.due <= later


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
