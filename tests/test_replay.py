"""Many logged requests at once against one at a time."""

from typing import get_args

import numpy as np
import pytest
from worlds import Town, embed_texts, expert, gate_spec, request

from multimoe.config import Strategy
from multimoe.decision import Policy
from multimoe.embedding import Embedding
from multimoe.examples import Example, read
from multimoe.gate import Gate
from multimoe.replay import joined, replay
from multimoe.routing import every_order

KINDS = ("red", "blue", "green", "grey")
RIGHT = dict(zip(KINDS, "abcd", strict=True))
EXPERTS = [
    expert("a", text=("red",), cost=0.02),
    expert("b", text=("blue",)),
    expert("c", text=("green",), latency_ms=900),
    expert("d", "text", "image", text=("grey",)),
]


def gate(**spec) -> Gate:
    return Gate.from_cards(EXPERTS, embed_texts, gate_spec(**{"top_k": 2, "explore": 0.3, **spec}))


@pytest.fixture(scope="module")
def lived() -> tuple[Example, ...]:
    town = Town(1, RIGHT)
    asked = (Policy(), Policy(top_k=1), Policy(experts=("a", "c", "d")), Policy(preference=0.3, explore=True))
    return read([row for policy in asked for row in town.live(gate(), 20, policy)])


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_every_row_is_what_its_own_plan_says(strategy, lived):
    policy = gate(strategy=strategy, explore=0.2, temperature=0.3)
    sampled = strategy in ("noisy", "thompson")  # the means of two of them; of 64 draws

    replayed = replay(lived, policy)

    for i, example in enumerate(lived):
        asked = example.decision.policy.model_copy(update={"explore": None})
        names, plan = policy.replan(example.embedding, example.decision, asked)
        columns = [["a", "b", "c", "d"].index(name) for name in names]
        quality = policy.qualities(example.embedding, names)
        order = [names.index(choice.expert) for choice in example.decision.chosen]
        assert replayed.quality[i, columns] == pytest.approx(quality, abs=1e-6)
        assert replayed.chances[i] == pytest.approx(plan.probability(order), abs=1e-6)
        orders = [o for length in (1, 2) if length <= len(names) for o in every_order(len(names), length).tolist()]
        expected = sum(plan.probability(o) * (plan.weights(o) @ quality[o]) for o in orders)
        assert replayed.expected(replayed.quality)[i] == pytest.approx(expected, abs=0.03 * sampled + 1e-6)
        assert replayed.parts[i].sum() == pytest.approx(1)
        asked_for = sum(plan.probability(o) * len(o) for o in orders)
        assert replayed.called[i].sum() == pytest.approx(asked_for, abs=1e-6)
        assert replayed.eligible[i].tolist() == [name in names for name in "abcd"]


def test_the_logged_choice_is_predicted_by_its_weights(lived):
    policy = gate()
    replayed = replay(lived, policy)
    chosen = lived[0].decision.chosen
    quality = policy.qualities(lived[0].embedding, [choice.expert for choice in chosen])

    assert replayed.predicted()[0] == pytest.approx(float(np.array([c.weight for c in chosen]) @ quality), abs=1e-6)


def test_the_shares_of_experts_are_of_the_requests_they_may_answer(lived):
    replayed = replay(lived, gate())
    without_b = np.array([i for i, example in enumerate(lived) if example.decision.policy.experts])

    assert replayed.parts[without_b, 1].sum() == 0
    assert replayed.mean_part()[1] == pytest.approx(replayed.parts[:, 1].sum() / (len(lived) - len(without_b)))


def test_a_choice_with_an_expert_that_is_gone_has_no_chance(lived):
    rest = [spec for spec in EXPERTS if spec.name != "a"]
    replayed = replay(lived, gate().with_roster(rest, embed_texts))
    gone = np.array([any(choice.expert == "a" for choice in example.decision.chosen) for example in lived])

    assert (replayed.chances[gone] == 0).all()
    assert (replayed.chances[~gone] > 0).all()


def test_load_at_the_time_is_replayed():
    busy = gate(preference=0.0)
    decision = busy.decide(request(text="green"), Policy(), 1, load={"c": 0.9})
    rows = [example_of(request(text="green"), decision), *read(Town(2, RIGHT).live(busy, 3))]

    assert replay(rows, busy).chances[0] == pytest.approx(decision.propensity, abs=1e-6)


def test_blocks_are_joined_in_order(lived):
    parts = joined([replay(lived[:30], gate()), replay(lived[30:], gate())])

    assert parts.chances == pytest.approx(replay(lived, gate()).chances)


def example_of(embedding: Embedding, decision) -> Example:
    from datetime import UTC, datetime

    return Example("x", datetime(2026, 1, 1, tzinfo=UTC), embedding, decision, (), (), 1.0, None, 1)
