"""Many requests at once against one at a time."""

from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest

from multimoe.config import Strategy
from multimoe.errors import BadInput
from multimoe.routing import Routes, plan, route_batch

B, N = 60, 5
UTILITY = np.random.default_rng(0).random((B, N))
SPREAD = np.random.default_rng(1).uniform(0.02, 0.4, size=(B, N))


def situation(strategy: str, top_k: int, explore: float, spread: np.ndarray | None = SPREAD) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "top_k": top_k,
        "temperature": 0.2,
        "explore": explore,
        "spread": spread,
        "noise": 0.15,
        "groups": np.array([0, 1, 0, 1, 1]),
        "bias": np.array([-0.2, 0.1, 0.0, 0.0, 0.3]),
    }


def drawn(routes: Routes, row: int) -> tuple[int, ...]:
    return tuple(int(i) for i in routes.order[row] if i >= 0)


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("explore", [0.0, 0.4, 1.0])
def test_every_row_has_the_propensity_and_weights_of_its_own_plan(strategy, top_k, explore):
    asked = situation(strategy, top_k, explore)
    routes = route_batch(UTILITY, generator=np.random.default_rng(2), **asked)

    for row in range(B):
        alone, order = plan(UTILITY[row], **{**asked, "spread": SPREAD[row]}), drawn(routes, row)
        assert routes.propensity[row] == pytest.approx(alone.probability(order), abs=1e-8)
        assert routes.weights[row][: len(order)] == pytest.approx(alone.weights(order))
        assert routes.weights[row].sum() == pytest.approx(1)
    assert routes.explored.any() == (explore > 0)


@pytest.mark.parametrize("strategy", get_args(Strategy))
@pytest.mark.parametrize("explore", [0.0, 0.4])
def test_rows_are_drawn_as_often_as_their_propensity_says(strategy, explore):
    b = 1_000 if strategy in ("noisy", "thompson") else 4_000
    asked = situation(strategy, 2, explore, np.repeat(SPREAD[:1], b, axis=0))
    routes = route_batch(np.repeat(UTILITY[:1], b, axis=0), generator=np.random.default_rng(3), **asked)
    orders = [drawn(routes, row) for row in range(b)]

    for order, count in Counter(orders).items():
        p = routes.propensity[orders.index(order)]
        assert abs(count / b - p) <= 4.5 * np.sqrt(p * (1 - p) / b) + 3 / b, order  # rare ones come in ones


def test_without_a_spread_nothing_but_shares_is_explored():
    asked = situation("softmax", 2, 0.5, spread=None)
    routes = route_batch(UTILITY, generator=np.random.default_rng(2), **asked)

    assert routes.propensity[7] == pytest.approx(plan(UTILITY[7], **asked).probability(drawn(routes, 7)))


def test_with_expert_choice_every_expert_has_its_room_and_every_request_an_expert():
    utility = np.random.default_rng(4).random((100, N)) + np.array([1.0, 0, 0, 0, 0])
    routes = route_batch(
        utility, strategy="expert-choice", top_k=N, temperature=0.2, explore=0.0, generator=np.random.default_rng(0)
    )
    load = np.bincount(routes.order[routes.order >= 0], minlength=N)

    assert (routes.order[:, 0] >= 0).all()
    assert load[1:].tolist() == [40, 40, 40, 40]  # 2 x 100 / 5
    assert routes.propensity.tolist() == [1.0] * 100


def test_an_unknown_strategy_is_refused():
    with pytest.raises(BadInput, match="'nope'"):
        route_batch(UTILITY, generator=np.random.default_rng(0), **situation("nope", 1, 0.0))
