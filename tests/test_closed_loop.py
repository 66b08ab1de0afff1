"""The gate on a table of outcomes: learns from its own choices alone, and replaces only what is proven worse."""

import numpy as np
import pytest

from multimoe.closed_loop import GateLearner

MODELS = ["good at left", "good at right", "never"]


def world(n: int, seed: int, chance: tuple[float, float] = (0.2, 0.9)) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 12) and outcomes (n, 3): which model is right depends on the sign of the first feature."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(n, 12)).astype(np.float32)
    right = np.column_stack([features[:, 0] < 0, features[:, 0] >= 0, np.zeros(n, dtype=bool)])
    return features, (draw.random((n, 3)) < np.where(right, chance[1], chance[0])).astype(float)


def lived(outcomes: np.ndarray, features: np.ndarray, blocks: int = 8, **settings: object) -> GateLearner:
    gate = GateLearner(features, MODELS, 0, **settings)
    for rows in np.array_split(np.arange(len(outcomes)), blocks):
        chosen, propensities = gate.choose(rows)
        gate.learn(rows, chosen, outcomes[rows, chosen], propensities)
    return gate


def test_learns_from_its_own_choices_who_is_right_when():
    features, outcomes = world(2400, 0)
    gate = lived(outcomes, features)
    right = np.where(features[:, 0] < 0, 0, 1)

    assert (gate.scores(np.arange(2400)).argmax(axis=1) == right).mean() > 0.9
    assert gate.champion is not None


def test_starts_by_drawing_everybody_alike_and_draws_the_better_more_often_later():
    features, outcomes = world(2400, 1)
    rows = np.arange(2400)
    first, _ = GateLearner(features, MODELS, 0).choose(rows)
    later, _ = lived(outcomes, features).choose(rows)

    assert np.bincount(first, minlength=3) / 2400 == pytest.approx(np.full(3, 1 / 3), abs=0.04)
    assert (later == 2).mean() < 0.08


def test_propensities_are_frequencies():
    features, outcomes = world(600, 2)
    gate = lived(outcomes, features)
    rows = np.zeros(20_000, np.intp)
    chosen, propensities = gate.choose(rows)

    for model in set(chosen.tolist()):
        assert (chosen == model).mean() == pytest.approx(propensities[chosen == model][0], abs=0.015)


def test_ratings_that_are_pure_chance_prove_nothing():
    proven = 0
    for seed in range(10):
        features, outcomes = world(600, 10 + seed, chance=(0.5, 0.5))
        proven += lived(outcomes, features, blocks=2).champion is not None

    assert proven <= 1


def test_every_version_serves_where_no_proof_is_asked():
    features, outcomes = world(400, 3)

    assert lived(outcomes, features, blocks=4, promotion="always").promotions == 4
