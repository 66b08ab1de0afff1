from collections import Counter
from dataclasses import replace
from random import Random
from statistics import NormalDist
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from worlds import expert, gate_spec

from multimoe.config import Strategy
from multimoe.decision import Policy
from multimoe.errors import BadInput, UnknownModel
from multimoe.routing import Plan, every_order, ineligible, loads, plan, utilities

STRATEGIES = get_args(Strategy)
UTILITY = np.array([0.7, 0.5, 0.45, 0.1])
SPREAD = np.array([0.05, 0.3, 0.1, 0.2])
GROUPS = np.array([0, 1, 0, 1])


def some_plan(utility=UTILITY, top_k=2, temperature=0.2, explore=0.3, strategy="softmax", **more) -> Plan:
    return plan(np.array(utility), strategy=strategy, top_k=top_k, temperature=temperature, explore=explore, **more)


def full_plan(strategy: str, top_k: int = 2, explore: float = 0.3) -> Plan:
    """With all that a strategy may look at."""
    bias = np.array([-0.2, 0.0, 0.1, 0.2])
    return some_plan(
        top_k=top_k, explore=explore, strategy=strategy, spread=SPREAD, noise=0.15, groups=GROUPS, bias=bias
    )


def all_orders(chances: Plan, top_k: int = 4) -> list[tuple[int, ...]]:
    """Also longer ones than the plan allows."""
    n = len(chances.shares)
    return [tuple(order) for length in range(1, min(top_k, n) + 1) for order in every_order(n, length).tolist()]


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_probabilities_of_all_ordered_choices_sum_to_one(strategy, data):
    n = data.draw(st.integers(1, 5))
    several = lambda *ends: data.draw(st.lists(st.floats(*ends), min_size=n, max_size=n))  # noqa: E731
    chances = some_plan(
        several(-1, 1),
        top_k=data.draw(st.integers(1, 4)),
        temperature=data.draw(st.floats(1e-9, 5)),
        explore=data.draw(st.floats(0, 1)),
        strategy=strategy,
        spread=data.draw(st.none() | st.just(np.array(several(0, 1)))),
        noise=data.draw(st.floats(1e-9, 2)),
        groups=np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))),
        bias=np.array(several(-1, 1)),
    )

    total = sum(chances.probability(order) for order in all_orders(chances))

    assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("explore", [0.0, 0.3])
def test_choices_are_drawn_as_often_as_their_propensity_says(strategy, explore):
    chances, generator, n = full_plan(strategy, explore=explore), Random(1), 8_000

    seen = Counter(chances.draw(generator)[0] for _ in range(n))

    assert set(seen) <= set(all_orders(chances))
    for order in all_orders(chances):
        p = chances.probability(order)
        assert abs(seen[order] / n - p) <= 4.5 * np.sqrt(p * (1 - p) / n), order


def test_chance_may_come_from_numpy_as_well():
    chances, generator, n = full_plan("thompson"), np.random.default_rng(1), 2_000
    likeliest = max(all_orders(chances), key=chances.probability)

    seen = Counter(chances.draw(generator)[0] for _ in range(n))

    assert seen[likeliest] / n == pytest.approx(chances.probability(likeliest), abs=0.05)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_first_drawn_expert_is_as_likely_as_the_choices_that_begin_with_it(strategy, top_k):
    chances = full_plan(strategy, top_k)

    begins = [sum(chances.probability(o) for o in all_orders(chances) if o[0] == i) for i in range(4)]

    assert chances.drawn_first() == pytest.approx(begins)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_of_every_choice_sum_to_one(strategy):
    chances = full_plan(strategy)

    assert [sum(chances.weights(o)) for o in all_orders(chances)] == pytest.approx([1.0] * len(all_orders(chances)))


@pytest.mark.parametrize("strategy", ["softmax", "switch", "hierarchical", "loss-free"])
def test_without_exploration_these_are_certain(strategy):
    chances = full_plan(strategy, explore=0.0)

    assert all(chances.draw(Random(seed)) == (chances.greedy, False) for seed in range(20))
    assert chances.probability(chances.greedy) == 1.0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_exploration_can_reach_every_choice_even_hopeless_ones(strategy):
    spread = np.full(4, 0.01)
    chances = some_plan((1.0, 0.0, 0.0, 0.0), temperature=0.01, explore=0.1, strategy=strategy, spread=spread)

    assert min(chances.probability(order) for order in all_orders(chances, chances.longest)) > 1e-4


def test_what_is_uncertain_is_explored_more_than_what_is_known_to_be_worse():
    utility = (0.7, 0.5, 0.5)
    known = some_plan(utility, explore=1.0, spread=np.array([0.05, 0.05, 0.05])).drawn_first()
    unsure = some_plan(utility, explore=1.0, spread=np.array([0.05, 0.05, 0.4])).drawn_first()

    assert known[1] == pytest.approx(known[2])
    assert unsure[2] > unsure[1] + 0.05


def test_of_two_experts_the_promise_of_each_is_the_chance_that_it_is_the_better():
    chances = some_plan((0.7, 0.5), explore=1.0, spread=np.array([0.3, 0.4]))
    better = NormalDist(0, 0.5).cdf(0.2)

    assert chances.drawn_first() == pytest.approx([0.25 + better / 2, 0.25 + (1 - better) / 2])


def test_impossible_choices_have_no_probability():
    chances = full_plan("thompson", explore=1.0)

    assert [chances.probability(order) for order in [(), (1, 1), (0, 1, 2)]] == [0.0, 0.0, 0.0]


def test_a_certain_choice_leaves_out_experts_with_hopeless_weight():
    assert some_plan((0.9, 0.3), temperature=0.1).greedy == (0,)
    assert some_plan((0.9, 0.85), temperature=0.1).greedy == (0, 1)


def test_weights_are_the_softmax_renormalised_over_the_chosen():
    chances = some_plan((0.7, 0.5, 0.4), temperature=0.2)
    expected = np.exp(np.array([0.5, 0.7]) / 0.2)

    assert chances.weights((1, 0)) == pytest.approx(expected / expected.sum())


def test_weights_stay_finite_when_all_shares_vanish():
    chances = replace(some_plan((0.7, 0.5, 0.4)), shares=[1.0, 0.0, 0.0])

    assert chances.weights((1, 2)) == [0.5, 0.5]


def test_switch_takes_the_best_alone():
    chances = full_plan("switch", top_k=3)

    assert (chances.greedy, chances.longest) == ((0,), 1)


def test_gshard_keeps_the_second_with_twice_its_part_of_both():
    chances = some_plan((0.7, 0.5, 0.1), explore=0.0, strategy="gshard", top_k=2)
    second = chances.shares[1] / (chances.shares[0] + chances.shares[1])

    assert chances.probability((0, 1)) == pytest.approx(2 * second)
    assert chances.probability((0,)) == pytest.approx(1 - 2 * second)


def test_hierarchical_gating_stays_within_the_group_of_the_best():
    assert some_plan((0.7, 0.69, 0.5, 0.6), strategy="hierarchical", groups=GROUPS, explore=0.0).greedy == (0, 2)
    assert some_plan((0.7, 0.69, 0.5, 0.6), strategy="hierarchical", groups=None, explore=0.0).greedy == (0, 1)


def test_a_group_has_no_more_experts_than_it_has():
    assert some_plan((0.7, 0.69, 0.5), top_k=3, strategy="hierarchical", groups=np.array([0, 1, 1])).greedy == (0,)


def test_loss_free_balancing_chooses_by_score_and_bias_and_weighs_by_score():
    even = some_plan((0.7, 0.5, 0.4), strategy="loss-free", top_k=1, explore=0.0)
    moved = some_plan((0.7, 0.5, 0.4), strategy="loss-free", top_k=1, explore=0.0, bias=np.array([-0.5, 0.0, 0.5]))

    assert (even.greedy, moved.greedy) == ((0,), (2,))
    assert moved.weights((0, 2)) == pytest.approx(even.weights((0, 2)))


def test_noise_of_one_scale_ignores_the_spread_that_thompson_follows():
    noisy = some_plan((0.7, 0.5), strategy="noisy", top_k=1, explore=0.0, spread=np.array([0.001, 0.5]))
    thompson = some_plan((0.7, 0.5), strategy="thompson", top_k=1, explore=0.0, spread=np.array([0.001, 0.5]))

    assert noisy.probability((1,)) == pytest.approx(NormalDist(0, np.sqrt(2) * 0.1).cdf(-0.2))
    assert thompson.probability((1,)) == pytest.approx(NormalDist(0, np.hypot(0.001, 0.5)).cdf(-0.2))


def test_preference_trades_quality_for_cost_and_time():
    quality, cost, latency = np.array([0.8, 0.6]), np.array([1.0, 0.1]), np.array([1.0, 0.2])

    assert utilities(quality, cost, latency, 1.0).argmax() == 0
    assert utilities(quality, cost, latency, 0.0).argmax() == 1


def test_a_queue_costs_time_which_counts_as_much_as_time_does():
    quality, cost, latency = np.array([0.8, 0.8]), np.zeros(2), np.array([0.5, 0.5])
    load = np.array([0.0, 1.0])

    assert utilities(quality, cost, latency, 1.0, load).tolist() == [0.8, 0.8]
    assert utilities(quality, cost, latency, 0.0, load) == pytest.approx([0.55, 0.3])


def test_an_experts_load_is_its_requests_over_the_room_its_replicas_have():
    small = expert("small").model_copy(update={"capacity": 2})
    usual = expert("usual")  # eight requests at once

    load = loads([small, usual], {"small": 3, "usual": 4}, {"small": 1, "usual": 2}, capacity_factor=1.5)

    assert load == {"small": pytest.approx(1.0), "usual": pytest.approx(4 / 24)}


def test_an_expert_without_a_replica_has_room_for_those_that_wake_it():
    assert loads([expert("asleep")], {"asleep": 4}, {"asleep": 0}, capacity_factor=1.0) == {"asleep": 0.5}


def test_every_objection_says_why_in_words():
    experts = [expert("a"), expert("b"), expert("c", "image"), expert("d", cost=2.0), expert("e", latency_ms=900)]
    policy = Policy(exclude=("b",), max_cost=1.0, max_latency_ms=500)

    assert ineligible(experts, ["text"], policy, {"a": "no replica is up"}) == {
        "a": "no replica is up",
        "b": "excluded by the request",
        "c": "reads image, the request has text",
        "d": "costs US$2, the limit is US$1",
        "e": "usually takes 900 ms, the limit is 500 ms",
    }


def test_asking_for_experts_keeps_only_those():
    experts = [expert("a"), expert("b")]

    assert ineligible(experts, ["text"], Policy(experts=("b",)), {}) == {"a": "not among the experts asked for"}


def test_asking_for_an_unknown_expert_names_the_known_ones():
    with pytest.raises(UnknownModel, match="'nope'; there are: a, b"):
        ineligible([expert("a"), expert("b")], ["text"], Policy(experts=("nope",)), {})


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(BadInput, match="'nope'; there are: softmax, noisy"):
        some_plan(strategy="nope")


def test_a_catalog_with_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(ValidationError, match="'softmax', 'noisy', 'thompson'"):
        gate_spec(strategy="sofmax")


def test_expert_choice_for_one_request_says_why_not():
    with pytest.raises(BadInput, match="needs a batch"):
        some_plan(strategy="expert-choice")
