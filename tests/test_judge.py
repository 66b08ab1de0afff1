import numpy as np
import pytest
from worlds import Town, embed_texts, expert, gate_spec

from multimoe.decision import Policy
from multimoe.examples import Example, read
from multimoe.gate import Gate, Learned
from multimoe.judge import FEWEST_JUDGED, judge

RIGHT = {"red": "b", "blue": "b", "green": "b"}  # the card of "a" promises what "b" can do
EXPERTS = [expert("a", text=("red", "blue", "green")), expert("b"), expert("c")]


def gate(**spec) -> Gate:
    return Gate.from_cards(EXPERTS, embed_texts, gate_spec(top_k=1, explore=0.5, **spec))


def favouring(name: str) -> Gate:
    bias = np.array([4.0 if e.name == name else -2.0 for e in EXPERTS])
    learned = Learned(tuple(e.name for e in EXPERTS), bias, np.zeros((3, 3)), {}, np.ones(3, dtype=np.int64))
    return gate().with_learned(learned, 1)


def lived(n: int = 300, policy: Policy | None = None, seed: int = 1) -> tuple[Example, ...]:
    return read(Town(seed, RIGHT).live(gate(), n, policy))


def test_a_better_gate_is_found_better_and_by_how_much():
    verdict = judge(lived(), favouring("b"), gate())

    assert verdict.better
    assert verdict.reason.startswith("better: +")
    assert verdict.metrics["gain_doubly_robust"].low > 0.2
    assert verdict.judged == 300


def test_a_worse_gate_is_not_found_better():
    verdict = judge(lived(), favouring("c"), gate())

    assert not verdict.better
    assert verdict.reason.startswith("not proven better")


def test_a_gate_is_not_better_than_itself():
    verdict = judge(lived(), gate(), gate())

    assert not verdict.better
    assert verdict.metrics["gain_snips"].value == 0


def test_the_estimated_gain_is_what_living_with_the_candidate_gives():
    candidate, champion = favouring("b"), gate()
    gain = judge(lived(1500), candidate, champion).metrics["gain_doubly_robust"]
    town = Town(9, RIGHT)
    truth = np.mean([e.reward for e in read(town.live(candidate, 1500))]) - np.mean(
        [e.reward for e in read(town.live(champion, 1500))]
    )

    assert gain.low - 0.06 < truth < gain.high + 0.06


def test_choices_that_could_not_have_been_others_prove_nothing():
    verdict = judge(lived(policy=Policy(explore=False)), favouring("b"), gate())

    assert not verdict.better
    assert verdict.reason == f"0 later answers were drawn by chance and rated, {FEWEST_JUDGED} are needed"


def test_a_log_that_hardly_ever_drew_what_the_candidate_would_is_not_enough():
    never = [e for e in lived(400) if e.decision and e.decision.chosen[0].expert != "b"]

    verdict = judge(never, favouring("b"), gate())

    assert not verdict.better


def test_experts_that_are_gone_or_new_since_do_not_disturb():
    rest = [e for e in EXPERTS if e.name != "a"] + [expert("new")]
    now = gate().with_roster(rest, embed_texts)

    verdict = judge(lived(), favouring("b").with_roster(rest, embed_texts), now)

    assert verdict.judged == 300
    assert verdict.metrics["candidate_snips"].value == pytest.approx(0.87, abs=0.1)
