"""The full-information routers on a world whose best choices are known."""

import numpy as np
import pytest

from multimoe.baselines import ROUTERS, BestSingle, Knn, Mlp, Probability, averages, cross_entropy
from multimoe.outcomes import Features, Float, Table

LEARNERS = ["knn", "logistic", "mlp"]


def world(n: int, seed: int = 0, missing: float = 0.0, fractions: bool = False) -> tuple[Table, Features, Float]:
    """Four topics, three models: `a` is good at two topics, `b` at the others, `c` always middling. Chances (n, 3)."""
    generator = np.random.default_rng(seed)
    topic = generator.integers(0, 4, n)
    centres = np.random.default_rng(99).normal(size=(4, 16))
    vectors = centres[topic] + 0.5 * generator.normal(size=(n, 16))
    chances = np.array([[0.9, 0.3, 0.65], [0.9, 0.3, 0.65], [0.3, 0.9, 0.65], [0.3, 0.9, 0.65]])[topic]
    if fractions:
        scores = np.clip(chances + generator.normal(0, 0.1, chances.shape), 0, 1)
    else:
        scores = (generator.random(chances.shape) < chances).astype(float)
    scores[generator.random(scores.shape) < missing] = np.nan
    prompts = tuple(f"{i} " + "long " * int(5 * t) for i, t in enumerate(topic))
    table = Table(prompts, ("a", "b", "c"), scores, tasks=tuple(map(str, topic)), task_column="topic")
    return table, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), chances


def value(name: str, table: Table, features: Features, chances: Float, trained: int) -> float:
    """True mean chance of a right answer by the router's choices on the rows after the first `trained`."""
    router = ROUTERS[name](table, features, 0)
    rows, held = np.arange(trained), np.arange(trained, len(table))
    router.fit(rows, table.outcomes[rows])
    scores = router.scores(held)
    assert scores.shape == (len(held), len(table.models))
    return float(chances[held, scores.argmax(axis=1)].mean())


@pytest.mark.parametrize("kind", ["whole", "with gaps", "fractions"])
@pytest.mark.parametrize("name", [*LEARNERS, "task_means", "length"])
def test_a_router_finds_who_is_good_at_what(name: str, kind: str) -> None:
    made = world(1200, missing=0.4 if kind == "with gaps" else 0.0, fractions=kind == "fractions")
    assert value(name, *made, trained=800) > 0.85  # of 0.9


@pytest.mark.parametrize("name", LEARNERS)
def test_a_router_finds_nothing_where_vectors_say_nothing(name: str) -> None:
    table, features, chances = world(1200)
    shuffled = features[np.random.default_rng(1).permutation(len(features))]
    assert value(name, table, shuffled, chances, trained=800) < 0.7


def test_the_best_single_model_is_the_one_best_on_average() -> None:
    table, features, chances = world(1200)
    assert value("best_single", table, features, chances, trained=800) == pytest.approx(0.65)


def test_the_oracle_is_never_beaten_and_chance_prefers_nobody() -> None:
    table, features, _ = world(200, missing=0.2)
    rows = np.arange(200)
    best = ROUTERS["oracle"](table, features, 0).scores(rows).argmax(axis=1)
    known = table.run.any(axis=1)
    np.testing.assert_array_equal(
        np.nan_to_num(table.outcomes[rows, best])[known], np.nanmax(table.outcomes[known], axis=1)
    )
    assert np.ptp(ROUTERS["random"](table, features, 0).scores(rows)) == 0


def test_nearest_prompts_are_those_of_greatest_cosine() -> None:
    table, features, _ = world(300, missing=0.3)
    router = Knn(table, features, 0)
    router.fit(np.arange(200), table.outcomes[:200])
    for row in (200, 299):
        nearest = np.argsort(-(features[:200] @ features[row]))[:50]
        np.testing.assert_allclose(router.scores(np.array([row]))[0], np.nanmean(table.outcomes[nearest], axis=0))


def test_a_model_hardly_run_is_not_the_best_by_luck() -> None:
    scores = np.full((500, 3), np.nan)
    scores[:, 0], scores[:, 2] = np.arange(500) % 10 < 8, np.arange(500) % 10 < 3
    scores[:3, 1] = 1.0
    assert averages(scores).argmax() == 0
    assert averages(scores)[0] == pytest.approx(0.8, abs=1e-2)


def test_a_fraction_is_learned_as_so_much_right_and_so_much_wrong() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(4000, 2)).astype(np.float32)
    chance = 1 / (1 + np.exp(-features @ np.array([1.5, -0.5])))
    guess = Probability(features, chance, penalty=1e4, usual=0.5)(features)
    np.testing.assert_allclose(guess, chance, atol=0.01)


def test_a_model_that_is_always_right_is_expected_to_be() -> None:
    features = np.eye(20, dtype=np.float32)
    assert Probability(features, np.ones(20), 1.0, usual=0.9)(features) == pytest.approx(np.full(20, 0.9))
    outcomes = np.column_stack([np.ones(20), np.zeros(20)])
    table = Table(tuple(map(str, range(20))), ("a", "b"), outcomes)
    for name in LEARNERS:
        assert value(name, table, features, outcomes, trained=15) == 1.0


def test_cross_entropy_leaves_out_what_was_not_run() -> None:
    truth, guess = np.array([[1.0, np.nan], [0.0, 1.0]]), np.full((2, 2), 0.5)
    assert cross_entropy(truth, guess) == pytest.approx(np.log(2))


def test_what_is_learned_depends_on_the_seed_alone() -> None:
    table, features, _ = world(300)
    rows = np.arange(300)

    def fitted(seed: int) -> Float:
        router = Mlp(table, features, seed)
        router.fit(rows, table.outcomes)
        return router.scores(rows)

    np.testing.assert_array_equal(fitted(1), fitted(1))
    assert not np.array_equal(fitted(1), fitted(2))


def test_tasks_unseen_in_training_fall_back_to_the_models_means() -> None:
    table, features, _ = world(100)
    rows = np.array([i for i, task in enumerate(table.tasks or ()) if task != "2"])
    router, single = ROUTERS["task_means"](table, features, 0), BestSingle(table, features, 0)
    for one in (router, single):
        one.fit(rows, table.outcomes[rows])
    unseen = np.array([next(i for i, task in enumerate(table.tasks or ()) if task == "2")])
    np.testing.assert_allclose(router.scores(unseen), single.scores(unseen))
