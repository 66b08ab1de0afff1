from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import expert

from multimoe.decision import Policy
from multimoe.errors import BadInput, UnknownModel
from multimoe.routing import Plan, blend_weights, every_order, gumbel_top_k, ineligible, plackett_luce, plan, utilities


def some_plan(utility=(0.7, 0.5, 0.4, 0.1), top_k=2, temperature=0.2, explore=0.3) -> Plan:
    return plan(np.array(utility), strategy="softmax", top_k=top_k, temperature=temperature, explore=explore)


def all_orders(chances: Plan) -> list[tuple[int, ...]]:
    lengths = range(1, chances.longest + 1)
    return [tuple(order) for length in lengths for order in every_order(len(chances.shares), length).tolist()]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=5),
    st.integers(1, 6),
    st.floats(1e-9, 5),
    st.floats(0, 1),
)
def test_the_probabilities_of_all_ordered_choices_sum_to_one(utility, top_k, temperature, explore):
    chances = some_plan(utility, top_k, temperature, explore)

    total = sum(chances.probability(order) for order in all_orders(chances))

    assert total == pytest.approx(1, abs=1e-9)


def test_choices_are_drawn_as_often_as_their_propensity_says():
    chances, generator, n = some_plan(), np.random.default_rng(1), 40_000

    seen = Counter(chances.draw(generator)[0] for _ in range(n))

    assert set(seen) <= set(all_orders(chances))
    for order in all_orders(chances):
        p = chances.probability(order)
        assert abs(seen[order] / n - p) < 4.5 * np.sqrt(p * (1 - p) / n), order


def test_gumbel_noise_draws_without_replacement_like_plackett_luce():
    first, generator, n = np.array([0.6, 0.3, 0.1]), np.random.default_rng(2), 20_000

    seen = Counter(gumbel_top_k(first, 3, generator) for _ in range(n))

    for order in every_order(3, 3):
        p = plackett_luce(first, order[None])[0]
        assert abs(seen[tuple(order.tolist())] / n - p) < 4.5 * np.sqrt(p * (1 - p) / n)


def test_plackett_luce_of_a_pair_is_the_textbook_product():
    assert plackett_luce(np.array([0.5, 0.3, 0.2]), np.array([[0, 2]]))[0] == pytest.approx(0.5 * 0.2 / 0.5)


def test_the_first_drawn_expert_is_as_likely_as_the_choices_that_begin_with_it():
    chances = some_plan(top_k=3)

    begins = [sum(chances.probability(o) for o in all_orders(chances) if o[0] == i) for i in range(4)]

    assert chances.drawn_first() == pytest.approx(begins)


def test_without_exploration_the_choice_is_certain():
    chances = some_plan(explore=0.0)

    assert all(chances.draw(np.random.default_rng(seed)) == (chances.greedy, False) for seed in range(20))
    assert chances.probability(chances.greedy) == 1.0


def test_exploration_can_reach_every_choice_even_hopeless_ones():
    chances = some_plan(utility=(1.0, 0.0, 0.0), temperature=0.01, explore=0.1)

    assert min(chances.probability(order) for order in all_orders(chances)) > 1e-4


def test_a_greedy_choice_leaves_out_experts_with_hopeless_weight():
    assert some_plan((0.9, 0.3), temperature=0.1).greedy == (0,)
    assert some_plan((0.9, 0.85), temperature=0.1).greedy == (0, 1)


def test_weights_are_the_softmax_renormalised_over_the_chosen():
    chances = some_plan((0.7, 0.5, 0.4), temperature=0.2)
    expected = np.exp(np.array([0.5, 0.7]) / 0.2)

    assert chances.weights((1, 0)) == pytest.approx(expected / expected.sum())


def test_weights_stay_finite_when_all_shares_vanish():
    assert blend_weights(np.array([1.0, 0.0, 0.0]), np.array([[1, 2]])).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_expected_value_is_the_sum_over_all_choices(top_k):
    chances, values = some_plan(top_k=top_k), np.array([0.9, 0.1, 0.5, 0.3])

    slow = sum(chances.probability(o) * (chances.weights(o) @ values[list(o)]) for o in all_orders(chances))

    assert chances.expected(values) == pytest.approx(slow)


def test_the_expected_value_of_too_many_choices_is_drawn_close_to_the_sum():
    chances, values = some_plan(np.linspace(0, 1, 20), top_k=5, explore=1.0), np.linspace(0, 1, 20)
    generator = np.random.default_rng(5)
    draws = [chances.draw(generator)[0] for _ in range(20_000)]
    truth = np.mean([chances.weights(o) @ values[list(o)] for o in draws])

    assert chances.expected(values) == pytest.approx(truth, abs=0.02)


def test_preference_trades_quality_for_cost_and_time():
    quality, cost, latency = np.array([0.8, 0.6]), np.array([1.0, 0.1]), np.array([1.0, 0.2])

    assert utilities(quality, cost, latency, 1.0).argmax() == 0
    assert utilities(quality, cost, latency, 0.0).argmax() == 1


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
    with pytest.raises(BadInput, match="'nope'; there are: softmax"):
        plan(np.zeros(2), strategy="nope", top_k=1, temperature=1.0, explore=0.0)
