import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from worlds import Town, embed_texts, expert, gate_spec

from multimoe.decision import Policy
from multimoe.examples import Example, read
from multimoe.gate import Gate
from multimoe.judge import FEWEST_JUDGED, Holdout, judge, proven
from multimoe.offpolicy import Log, Replay
from multimoe.quality import Learned
from multimoe.verdict import Verdict

RIGHT = {"red": "b", "blue": "b", "green": "b"}  # the card of "a" promises what "b" can do
EXPERTS = [expert("a", text=("red", "blue", "green")), expert("b"), expert("c")]


def gate(**spec) -> Gate:
    return Gate.from_cards(EXPERTS, embed_texts, gate_spec(top_k=1, explore=0.5, **spec))


def favouring(name: str) -> Gate:
    own = np.array([[4.0 if e.name == name else -2.0, 0, 0, 0] for e in EXPERTS])
    return gate().with_learned(replace(Learned().rows([e.name for e in EXPERTS]), own=own), 1)


def judged(rows: Sequence[Example], candidate: Gate, champion: Gate) -> Verdict:
    return judge([Holdout(rows, candidate)], champion)


def lived(n: int = 300, policy: Policy | None = None, seed: int = 1) -> tuple[Example, ...]:
    return read(Town(seed, RIGHT).live(gate(), n, policy))


def test_a_better_gate_is_found_better_and_by_how_much():
    verdict = judged(lived(), favouring("b"), gate())

    assert verdict.better
    assert verdict.reason.startswith("better: +")
    assert verdict.metrics["gain_doubly_robust"].low > 0.2
    assert verdict.judged == 300


def test_a_worse_gate_is_not_found_better():
    verdict = judged(lived(), favouring("c"), gate())

    assert not verdict.better
    assert verdict.reason.startswith("not proven better")


def test_a_gate_that_is_hardly_better_is_not_worth_a_change():
    strict = gate(promotion={"least_gain": 0.9})

    verdict = judged(lived(), favouring("b"), strict)

    assert verdict.outcome == "not proven"
    assert verdict.reason.endswith("under +0.900 is not worth a change")
    assert verdict.metrics["gain_doubly_robust"].low > 0


def test_a_gate_is_not_better_than_itself():
    verdict = judged(lived(), gate(), gate())

    assert not verdict.better
    assert verdict.metrics["gain_snips"].value == 0


def test_the_estimated_gain_is_what_living_with_the_candidate_gives():
    candidate, champion = favouring("b"), gate()
    gain = judged(lived(800), candidate, champion).metrics["gain_doubly_robust"]
    town = Town(9, RIGHT)
    truth = np.mean([e.reward for e in read(town.live(candidate, 800))]) - np.mean(
        [e.reward for e in read(town.live(champion, 800))]
    )

    assert gain.low - 0.06 < truth < gain.high + 0.06


def test_choices_that_could_not_have_been_others_prove_nothing():
    verdict = judged(lived(policy=Policy(explore=False)), favouring("b"), gate())

    assert not verdict.better
    assert verdict.reason == f"0 later answers were drawn by chance and rated, {FEWEST_JUDGED} are needed"


def test_a_log_that_hardly_ever_drew_what_the_candidate_would_is_not_enough():
    never = [e for e in lived(400) if e.decision and e.decision.chosen[0].expert != "b"]

    verdict = judged(never, favouring("b"), gate())

    assert not verdict.better


def test_an_expert_that_never_answered_is_not_proven_better_than_one_that_is_bad():
    """Both gates agree on nine requests of ten; on the tenth the candidate would ask whom nobody has heard yet."""
    n, rare = 1000, 0.01
    differ, generator = np.arange(n) % 10 == 0, np.random.default_rng(0)
    rewards = (generator.random(n) < np.where(differ, 0.3, 0.7)).astype(float)
    first = np.tile([1 - rare, rare], (n, 1))
    log = Log(rewards, first[:, 0], np.where(differ, 0.3, 0.7), options=first)
    champion = Replay(first[:, 0], np.where(differ, 0.3, 0.7), first)
    options = np.where(differ[:, None], first[:, ::-1], first)
    candidate = Replay(options[:, 0], np.where(differ, 0.9, 0.7), options)

    assert not proven(log, candidate, champion).better
    assert proven(replace(log, options=None), candidate, champion).better  # what the rows alone would say


def test_experts_that_are_gone_or_new_since_do_not_disturb():
    rest = [e for e in EXPERTS if e.name != "a"] + [expert("new")]
    now = gate().with_roster(rest, embed_texts)

    verdict = judged(lived(), favouring("b").with_roster(rest, embed_texts), now)

    assert verdict.judged == 300
    assert verdict.metrics["candidate_snips"].value == pytest.approx(0.87, abs=0.1)


def test_blocks_are_judged_together_and_the_newest_alone_may_still_refuse():
    rows, town = lived(400), Town(7, dict.fromkeys(RIGHT, "a"))  # tastes change
    changed = read(town.live(gate(), 300))

    both = judge([Holdout(rows[:200], favouring("b")), Holdout(rows[200:], favouring("b"))], gate())
    late = judge([Holdout(lived(900), favouring("b")), Holdout(changed, favouring("b"))], gate())

    assert both.better
    assert (both.judged, both.metrics["gain_snips"].n) == (400, 400)
    assert late.outcome == "refused"
    assert "on the newest 300 answers" in late.reason
    assert late.metrics["gain_doubly_robust"].low > 0


def test_every_block_is_judged_by_its_own_candidate():
    rows = lived(400)

    mixed = judge([Holdout(rows[:200], gate()), Holdout(rows[200:], favouring("b"))], gate())
    alone = judge([Holdout(rows[200:], favouring("b"))], gate())

    gains = [verdict.metrics["gain_doubly_robust"].value for verdict in (mixed, alone)]
    assert gains[0] == pytest.approx(gains[1] / 2, abs=0.03)


def test_ratings_that_are_all_the_same_tell_no_gate_from_another():
    rows = [replace(row, reward=1.0) for row in lived()]

    verdict = judged(rows, favouring("b"), gate())

    assert verdict.outcome == "not proven"
    assert verdict.reason == "all 300 later answers have the same rating, which tells no gate from another"


def test_numbers_that_are_none_prove_nothing():
    log = Log(np.tile([0.0, 1.0], 50), np.full(100, 0.5), np.full(100, np.nan))
    candidate, champion = Replay(np.full(100, 0.9), np.full(100, 0.9)), Replay(np.full(100, 0.5), np.full(100, 0.5))

    assert not proven(log, candidate, champion).better


def test_20_000_answers_are_judged_in_seconds():
    rows = [*lived(1000)] * 20
    began = time.process_time()
    verdict = judged(rows, favouring("b"), gate())

    assert verdict.judged == 20_000
    assert time.process_time() - began < 8
