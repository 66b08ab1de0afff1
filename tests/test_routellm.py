"""RouteLLM's measures, against their definition and against a plain transcript of how its evaluation computes them."""

import numpy as np
import pytest

from multimoe.metrics import Held
from multimoe.outcomes import Float
from multimoe.routellm import GRID, Pair, calls, first_crossing, pair

NAMES = ("weak", "strong")


def world(n: int, seed: int = 0) -> tuple[Float, Float]:
    """Outcomes (n, 2), and scores whose lead of the strong model is right more often than not."""
    generator = np.random.default_rng(seed)
    hard = generator.random(n)
    outcomes = np.column_stack([generator.random(n) > hard, generator.random(n) < 0.9]).astype(float)
    return outcomes, np.column_stack([np.zeros(n), hard + 0.3 * generator.normal(size=n)])


def measured(scores: Float, outcomes: Float) -> Pair:
    return pair([scores], [Held(np.arange(len(outcomes)), outcomes)], NAMES, strong=1)


def values(found: Pair) -> list[float]:
    """APGR, CPT50 and CPT80."""
    return [ratio.value for ratio in (found.apgr, found.cpt50, found.cpt80) if ratio is not None]


def plainly(lead: Float, weak: Float, strong: Float) -> tuple[float, float, float]:
    """As RouteLLM's evaluate.py does: eleven thresholds by deciles, areas by trapezoids, numpy.interp for CPT."""
    thresholds = np.quantile(lead, np.linspace(0, 1, 11))
    points = []
    for i, threshold in enumerate(thresholds):
        selected = lead > threshold if i == 10 else lead >= threshold
        points.append((100 * selected.mean(), 100 * np.where(selected, strong, weak).mean()))
    share, accuracy = np.array(sorted(points, key=lambda point: point[0])).T
    low, high = 100 * weak.mean(), 100 * strong.mean()
    area, flat_low, flat_high = (np.trapezoid(y, share / 100) for y in (accuracy, low + 0 * share, high + 0 * share))
    crossings = [np.interp(level * (high - low) + low, accuracy, share) for level in (0.5, 0.8)]
    return float((area - flat_low) / (flat_high - flat_low)), float(crossings[0]), float(crossings[1])


@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_routellms_own_evaluation(seed: int) -> None:
    outcomes, scores = world(500, seed)
    expected = plainly(scores[:, 1], outcomes[:, 0], outcomes[:, 1])
    assert values(measured(scores, outcomes)) == pytest.approx(expected)


def test_scores_that_order_nothing_are_chance() -> None:
    outcomes, _ = world(500)
    found = measured(np.ones((500, 2)), outcomes)
    assert values(found) == pytest.approx([0.5, 50, 80])
    assert (found.cpt50_exact, found.cpt80_exact) == pytest.approx((50, 80))


def test_better_scores_recover_more_with_fewer_calls_and_worse_ones_less() -> None:
    outcomes, scores = world(2000)
    good, bad, best = (measured(ordered, outcomes) for ordered in (scores, -scores, outcomes))
    assert values(bad)[0] < 0.5 < values(good)[0] < values(best)[0]
    assert values(good)[1] < 50 < values(bad)[1]
    assert bad.apgr is not None
    assert bad.apgr.high is not None
    assert bad.apgr.high < 0.5


def test_the_exact_crossing_is_the_first_share_that_gets_there() -> None:
    weak = np.zeros(10)
    strong = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 0.0])  # half of the gap of 4 after 2 calls of 10
    scores = np.column_stack([weak, np.arange(10, 0, -1)])
    found = measured(scores, np.column_stack([weak, strong]))
    assert (found.cpt50_exact, found.cpt80_exact) == pytest.approx((20, 82), abs=0.2)
    assert first_crossing(GRID * 0.3, 0.5) is None


def test_a_curve_that_overshoots_is_crossed_where_it_first_gets_there() -> None:
    weak = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0, 0.0])
    strong = np.array([1, 1, 0, 0, 1, 1, 0, 0, 1, 1.0])
    found = measured(np.column_stack([weak * 0, np.arange(10, 0, -1)]), np.column_stack([weak, strong]))
    assert found.cpt80_exact == pytest.approx(16, abs=0.2)


def test_only_prompts_on_which_both_were_run_count() -> None:
    outcomes, scores = world(500)
    gaps = outcomes.copy()
    gaps[:100, 0], gaps[100:200, 1] = np.nan, np.nan
    assert measured(scores, gaps).apgr == measured(scores[200:], outcomes[200:]).apgr


def test_no_ratio_where_the_strong_model_is_not_stronger() -> None:
    outcomes, scores = world(500)
    found = measured(scores, outcomes[:, ::-1])
    assert (found.apgr, found.cpt50, found.cpt80_exact) == (None, None, None)
    assert measured(scores, np.full((500, 2), np.nan)).apgr is None


def test_no_interval_where_the_lead_may_be_nothing() -> None:
    outcomes = np.array([[0.0, 1.0], [1.0, 0.0]] * 10 + [[0.0, 1.0]])
    found = measured(np.random.default_rng(0).random((21, 2)), outcomes)
    assert found.apgr is not None
    assert (found.apgr.low, found.apgr.high) == (None, None)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    outcomes, scores = world(100_000)
    truth, covered = values(measured(scores, outcomes))[0], 0
    for start in range(0, 100_000, 1000):
        found = measured(scores[start : start + 1000], outcomes[start : start + 1000]).apgr
        assert found is not None
        covered += (found.low or 1) <= truth <= (found.high or 0)
    assert 0.9 <= covered / 100 <= 0.99


def test_thresholds_are_deciles_and_ties_go_together() -> None:
    called = calls(np.array([3.0, 3.0, 3.0, 1.0]))
    assert called[:, 0].tolist() == [0, 0, 0, 0]
    assert called[:, -1].tolist() == [1, 1, 1, 1]
    assert set(map(tuple, called.T.tolist())) == {(0, 0, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1)}
