"""The closed loop on worlds whose best choices are known: what learners are told, and how they are judged."""

from typing import Any

import numpy as np
import pytest
from bandits import EpsilonGreedy
from test_baselines import world

from multimoe import trials
from multimoe.baselines import ROUTERS
from multimoe.errors import BadInput
from multimoe.evaluation import Evaluation, evaluate, judge
from multimoe.metrics import Held, qualities
from multimoe.outcomes import Features, Float, Int, Table
from multimoe.trials import Played, Settings, play, train, trial

ONE = Settings(seeds=1)


@pytest.fixture(autouse=True)
def no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TIMED_SECONDS", 0.001)


def evaluated(table: Table, embeddings: Features, settings: Settings = ONE, **changes: Any) -> Evaluation:
    return evaluate(table, embeddings, {"gate": EpsilonGreedy}, settings, **changes)


class Lost(EpsilonGreedy):
    """Takes every prompt for another one."""

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        super().__init__(table, np.random.default_rng(seed).permutation(features), seed)


class Witness(EpsilonGreedy):
    """Keeps what it was given."""

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        super().__init__(table, features, seed)
        self.table, self.asked, self.told = table, list[Int](), list[tuple[Int, Int, Float, Float]]()
        self.drawn: dict[int, tuple[int, float]] = {}

    def choose(self, rows: Int) -> tuple[Int, Float]:
        chosen, propensities = super().choose(rows)
        self.asked.append(rows)
        self.drawn |= {r: (c, p) for r, c, p in zip(rows.tolist(), chosen.tolist(), propensities.tolist(), strict=True)}
        return chosen, propensities

    def learn(self, rows: Int, chosen: Int, rewards: Float, propensities: Float) -> None:
        assert {row: self.drawn[row] for row in rows.tolist()} == {
            r: (c, p) for r, c, p in zip(rows.tolist(), chosen.tolist(), propensities.tolist(), strict=True)
        }
        self.told.append((rows, chosen, rewards, propensities))
        super().learn(rows, chosen, rewards, propensities)


def test_a_split_is_whole_and_keeps_rows_of_one_prompt_together() -> None:
    table, _, _ = world(300)
    table = Table(tuple(f"question {i // 2}" for i in range(300)), table.models, table.outcomes)
    one = trial(table, Settings(holdout=0.3), seed=4)
    assert sorted([*one.stream, *one.held_out]) == list(range(300))
    assert len(one.held_out) == 90
    assert not set(table.groups[one.stream]) & set(table.groups[one.held_out])


def test_a_split_depends_on_the_seed_alone() -> None:
    table, _, _ = world(300)
    first, again, other = (trial(table, Settings(flip=0.1), seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.stream, again.stream)
    np.testing.assert_array_equal(first.ratings, again.ratings)
    assert set(first.held_out) != set(other.held_out)


def test_prompts_without_any_outcome_are_not_asked() -> None:
    table, _, _ = world(300)
    table.outcomes[:50] = np.nan
    one = trial(table, ONE, seed=0)
    assert min([*one.stream, *one.held_out]) == 50


def test_as_many_ratings_are_flipped_as_asked_and_judging_knows_the_truth() -> None:
    table, features, _ = world(3000, missing=0.2)
    one = trial(table, Settings(flip=0.1), seed=0)
    known = table.run
    assert np.mean(one.ratings[known] != table.outcomes[known]) == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(np.isnan(one.ratings), ~known)
    results = judge(table, [one], {"best_single": [train(ROUTERS["oracle"], one, table, features)]})
    assert results["best_single"].quality.value == pytest.approx(np.nanmax(table.outcomes[one.held_out], axis=1).mean())


def test_a_learner_is_told_only_what_its_own_choices_were_worth_and_only_after_the_block() -> None:
    table, features, _ = world(300, missing=0.3)
    one = trial(table, Settings(retrain_every=25, flip=0.2), seed=0)
    assert len(one.stream) % 25 != 0
    witness = Witness(table, features, 0)

    played = play(witness, one, table)

    blocks = witness.asked[: len(witness.told)]
    assert {len(block) for block in blocks[:-1]} == {25}
    np.testing.assert_array_equal(np.concatenate(blocks), one.stream)
    for block, (rows, chosen, rewards, _) in zip(blocks, witness.told, strict=True):
        assert set(rows) <= set(block)
        np.testing.assert_array_equal(rewards, one.ratings[rows, chosen])
        assert not np.isnan(rewards).any()
    told = np.concatenate([rows for rows, *_ in witness.told])
    assert 0 < len(told) < len(one.stream)  # some choices had no outcome
    assert played.rewards is not None
    assert np.isnan(played.rewards).sum() == len(one.stream) - len(told)


def test_learners_cannot_look_outcomes_up() -> None:
    table, features, _ = world(100)
    made: list[Witness] = []

    def learner(table: Table, features: Features, seed: int) -> Witness:
        made.append(Witness(table, features, seed))
        return made[-1]

    evaluate(table, features, {"gate": learner}, ONE)
    assert np.isnan(made[0].table.outcomes).all()


def test_a_gate_that_learns_comes_near_those_told_everything_and_one_that_cannot_does_not() -> None:
    table, features, _ = world(1500)
    results = evaluate(table, features, {"gate": EpsilonGreedy, "lost": Lost}, Settings(seeds=2)).results
    assert results["gate"].gain.low > 0.1
    assert results["gate"].quality.value > results["logistic"].quality.value - 0.03
    assert results["lost"].gain.low < 0.02
    assert results["lost"].lead.low > 0.1  # the gate's
    assert results["best_single"].lead == results["gate"].gain
    assert results["gate"].lead.value == 0
    assert results["oracle"].quality.value == max(result.quality.value for result in results.values())
    learning = results["gate"].learning
    assert learning is not None
    assert len(learning) == 20
    assert learning[0] is not None
    assert learning[-1] is not None
    assert learning[-1] > learning[0] + 0.05


def test_flipped_ratings_make_learning_harder_and_leave_the_bounds_as_they_are() -> None:
    table, features, _ = world(600)
    clean, flipped = (evaluated(table, features, Settings(seeds=2, flip=flip)).results for flip in (0.0, 0.45))
    assert flipped["gate"].quality.value < clean["gate"].quality.value - 0.05
    assert flipped["logistic"].quality.value < clean["logistic"].quality.value
    for name in ("random", "oracle"):
        assert flipped[name].quality == clean[name].quality


def test_bounds_are_what_they_say() -> None:
    table, features, _ = world(400, missing=0.2)
    found = evaluated(table, features)
    one = trial(table, ONE, seed=0)
    outcomes = table.outcomes[one.held_out]
    assert found.results["random"].quality.value == pytest.approx(np.nanmean(outcomes, axis=1).mean())
    assert found.results["oracle"].quality.value == pytest.approx(np.nanmax(outcomes, axis=1).mean())
    best = np.nanmean(table.outcomes[one.stream], axis=0).argmax()
    assert found.results["best_single"].name == table.models[best]
    assert found.results["best_single"].gain.value == 0
    missing = np.isnan(outcomes[:, best])
    assert qualities(np.eye(3)[[best] * len(outcomes)], Held(one.held_out, outcomes))[~missing] == pytest.approx(
        outcomes[~missing, best]
    )


def test_measures_come_with_what_the_table_has() -> None:
    table, features, _ = world(400)
    plain = Table(table.prompts, table.models, table.outcomes)
    three = evaluated(plain, features).results
    assert "task_means" not in three
    assert three["gate"].pair is three["gate"].cost is None
    costs = np.tile([1.0, 2.0], (400, 1))
    two = evaluated(Table(table.prompts, ("a", "b"), table.outcomes[:, :2], costs, table.tasks, "t"), features).results
    assert two["task_means"].quality.value > two["best_single"].quality.value
    assert all(result.pair and result.cost for result in two.values())
    assert two["random"].pair
    assert two["random"].pair.apgr is None or two["random"].pair.apgr.value == pytest.approx(0.5)


def test_a_router_that_names_a_model_and_no_more_gets_no_curves() -> None:
    table, features, _ = world(400)
    table = Table(table.prompts, ("a", "b"), table.outcomes[:, :2], np.ones((400, 2)))
    one = trial(table, ONE, seed=0)
    single = train(ROUTERS["best_single"], one, table, features)
    named = Played(np.eye(2)[[0] * len(one.held_out)], 1.0, 1.0, orders=False)
    results = judge(table, [one], {"best_single": [single], "rival": [named]})
    assert results["rival"].pair is results["rival"].cost is None
    assert results["best_single"].pair is not None


def test_the_same_settings_give_the_same_results() -> None:
    table, features, _ = world(200)
    first, again = (evaluated(table, features).results for _ in range(2))
    assert {name: one.quality for name, one in first.items()} == {name: one.quality for name, one in again.items()}


def test_trials_side_by_side_give_what_they_give_in_turn() -> None:
    table, features, _ = world(40)
    settings = Settings(seeds=2)
    told: list[float] = []
    turns = evaluated(table, features, settings).results
    sides = evaluated(table, features, settings, processes=2, report=lambda share, doing: told.append(share)).results
    assert {name: one.quality for name, one in sides.items()} == {name: one.quality for name, one in turns.items()}
    assert told == [0, 0.5, 1]


def test_a_small_table_gets_wide_intervals() -> None:
    table, features, _ = world(50)
    found = evaluated(table.part(models=["a", "b"]), features, Settings(seeds=3))
    assert (found.table.stream, found.table.held_out, found.table.retrain_every) == (35, 15, 10)
    assert all(0.15 < one.quality.high - one.quality.low < 0.9 for one in found.results.values())


def test_the_facts_describe_the_table() -> None:
    table, features, _ = world(100, missing=0.1)
    found = evaluated(table, features).table
    assert (found.prompts, found.different_prompts, found.tasks, found.task_column) == (100, 100, 4, "topic")
    assert found.models[0].quality == max(model.quality for model in found.models)
    assert sum(model.runs for model in found.models) == table.run.sum()
    assert found.missing == pytest.approx(1 - table.run.mean())
    assert found.dimensions == 16


def test_learners_see_the_features_and_told_routers_the_embeddings_alone() -> None:
    table, features, _ = world(200)
    blind = np.zeros_like(features)
    seen = evaluated(table, blind, features=lambda table, embeddings: features).results
    both = evaluated(table, features).results
    assert seen["gate"].quality == both["gate"].quality
    assert seen["logistic"].quality.value < both["logistic"].quality.value - 0.05


def test_progress_is_reported_from_beginning_to_end() -> None:
    table, features, _ = world(60)
    told: list[tuple[float, str]] = []
    evaluated(table, features, Settings(seeds=2), report=lambda share, doing: told.append((share, doing)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert told[0][1] == "seed 1 of 2: gate"


def test_too_few_to_learn_from_is_refused() -> None:
    table, features, _ = world(30)
    with pytest.raises(BadInput, match=r"3 prompts are left to learn from, 10 are needed; hold out less than 0\.9"):
        evaluated(table, features, Settings(holdout=0.9))


def test_scores_that_are_no_numbers_are_refused() -> None:
    class Broken(EpsilonGreedy):
        def scores(self, rows: Int) -> Float:
            return super().scores(rows) * np.nan

    table, features, _ = world(60)
    with pytest.raises(ValueError, match=r"shape \(18, 3\); \(18, 3\) finite numbers are needed"):
        evaluate(table, features, {"gate": Broken}, ONE)


def test_intervals_hold_what_the_routers_are_truly_worth() -> None:
    held = 0
    for seed in range(30):
        table, features, chances = world(1200, seed)
        known, fresh = table.part(rows=np.arange(200)), np.arange(200, 1200)
        repeated = [trial(known, Settings(), repetition) for repetition in range(5)]
        played, truth = [], []
        for one in repeated:
            router = ROUTERS["knn"](table, features, 0)
            router.fit(one.stream, one.ratings[one.stream])
            played.append(Played(router.scores(one.held_out), 0.0, 0.0))
            truth.append(qualities(router.scores(fresh), Held(fresh, chances[fresh])).mean())
        quality = judge(known, repeated, {"best_single": played})["best_single"].quality
        held += quality.low <= np.mean(truth) <= quality.high
    assert held >= 26
