from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from worlds import embed_texts, expert, gate_spec, request

from multimoe.contest import challenger_answers, contest, defaulted
from multimoe.decision import Decision, Policy
from multimoe.gate import Gate
from multimoe.quality import Learned

EXPERTS = [expert(name) for name in ("a", "b", "c")]
ASKED = request(text="sum")


def gate(version: int, **bias: float) -> Gate:
    """One that likes experts by `bias`."""
    learned = Learned().rows([spec.name for spec in EXPERTS])
    learned = replace(learned, own=np.array([[bias.get(spec.name, 0.0), 0, 0, 0] for spec in EXPERTS]))
    return Gate.from_cards(EXPERTS, embed_texts, gate_spec(top_k=2)).with_learned(learned, version)


def contested(champion: Gate, challenger: Gate, share: float, policy: Policy, seed: int) -> Decision:
    ours, theirs = (g.decide(ASKED, policy, seed) for g in (champion, challenger))
    return contest(ours, theirs, champion, challenger, ASKED, share)


def names(decision: Decision) -> tuple[str, ...]:
    return tuple(choice.expert for choice in decision.chosen)


CHAMPION, CHALLENGER = gate(1, a=1.5), gate(2, b=1.5)


@pytest.mark.parametrize("policy", [Policy(), Policy(explore=True), Policy(explore=False), Policy(strategy="noisy")])
def test_every_choice_comes_as_often_as_its_propensity_says(policy):
    draws = 800
    made = [contested(CHAMPION, CHALLENGER, 0.3, policy, seed) for seed in range(draws)]
    propensity = {names(decision): decision.propensity for decision in made}
    for decision in made:  # whoever made it
        assert decision.propensity == pytest.approx(propensity[names(decision)])
    for choice, count in Counter(map(names, made)).items():
        p = propensity[choice]
        assert abs(count / draws - p) <= 4 * (p * (1 - p) / draws) ** 0.5 + 1e-9, choice
    first = {c.expert: c.probability for c in made[0].considered}
    assert sum(first.values()) == pytest.approx(1)
    for name, count in Counter(names(decision)[0] for decision in made).items():
        p = first[name]
        assert abs(count / draws - p) <= 4 * (p * (1 - p) / draws) ** 0.5 + 1e-9, name


def test_the_propensity_is_the_mixture_of_both_chances():
    for seed in range(40):
        decision = contested(CHAMPION, CHALLENGER, 0.2, Policy(explore=True), seed)
        both = decision.contest
        assert both.champion_chance == pytest.approx(CHAMPION.choice_probability(ASKED, decision))
        assert both.challenger_chance == pytest.approx(CHALLENGER.choice_probability(ASKED, decision))
        assert decision.propensity == pytest.approx(0.8 * both.champion_chance + 0.2 * both.challenger_chance)


def test_the_version_that_answers_says_so_and_answers_its_share():
    made = [contested(CHAMPION, CHALLENGER, 0.25, Policy(explore=False), seed) for seed in range(600)]
    share = np.mean([decision.gate_version == 2 for decision in made])
    assert share == pytest.approx(0.25, abs=0.05)
    for decision in made:
        both = decision.contest
        assert names(decision) == (both.challenger_choice if decision.gate_version == 2 else both.champion_choice)
        assert (both.champion, both.challenger) == (1, 2)


def test_who_answers_does_not_depend_on_what_is_drawn():
    explored = [
        (challenger_answers(seed, 0.5), CHAMPION.decide(ASKED, Policy(), seed).explored) for seed in range(3000)
    ]
    rates = [np.mean([e for answers, e in explored if answers is side]) for side in (True, False)]
    assert rates[0] == pytest.approx(rates[1], abs=0.04)


def test_in_shadow_the_champion_answers_as_if_nobody_watched():
    for seed in range(50):
        alone = CHAMPION.decide(ASKED, Policy(), seed)
        beside = contested(CHAMPION, CHALLENGER, 0.0, Policy(), seed)
        assert beside.model_copy(update={"contest": None}) == alone


def test_two_gates_that_are_the_same_change_nothing_but_the_name():
    same = gate(2, a=1.5)
    for seed in range(20):
        decision = contested(CHAMPION, same, 0.5, Policy(explore=True), seed)
        alone = CHAMPION.decide(ASKED, Policy(explore=True), seed)
        assert (names(decision), decision.contest.gain) == (names(alone), 0.0)
        assert decision.propensity == pytest.approx(alone.propensity)


def test_the_challenger_expects_more_of_its_own_choice():
    assert contested(CHAMPION, CHALLENGER, 0.0, Policy(explore=False, top_k=1), 3).contest.gain > 0.1


def test_a_challenger_that_cannot_decide_leaves_the_champion_s_decision_and_its_chance():
    ours = CHAMPION.decide(ASKED, Policy(), 5)
    decision = defaulted(ours, 2, 0.5, "boom")
    assert decision.propensity == ours.propensity
    assert (decision.gate_version, decision.contest.error, decision.contest.challenger_chance) == (1, "boom", 0.0)


def test_a_decision_of_before_there_were_contests_can_still_be_read():
    old = CHAMPION.decide(ASKED, Policy(), 5).model_dump(exclude={"contest"}, mode="json")
    assert Decision.model_validate(old).contest is None
