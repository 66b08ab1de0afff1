"""Quality, its intervals, and the cost curve, against worlds and sums that can be checked by hand."""

import numpy as np
import pytest

from multimoe.metrics import Held, aiq, curve, hull, mean, mean_difference, picks, qualities

NAN = np.nan


def test_the_best_scored_model_that_was_run_is_picked_and_ties_are_shared() -> None:
    scores = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 2.0, 1.0]])
    held = Held(np.arange(3), np.array([[0.0, 0.0, 1.0], [0.0, 0.5, NAN], [1.0, 0.0, 0.0]]))
    assert picks(scores, ~np.isnan(held.outcomes)).tolist() == [[0, 0, 1], [0, 1, 0], [0.5, 0.5, 0]]
    assert qualities(scores, held).tolist() == [1.0, 0.5, 0.5]


def test_the_interval_of_one_repetition_is_that_of_a_plain_mean() -> None:
    values = (np.random.default_rng(0).random(4000) < 0.3).astype(float)
    figure = mean([np.arange(4000)], [values])
    radius = 1.96 * values.std() / np.sqrt(4000)
    assert (figure.value, figure.low, figure.high) == pytest.approx(
        (values.mean(), values.mean() - radius, values.mean() + radius), abs=5e-4
    )


def test_holding_the_same_prompts_out_again_narrows_nothing() -> None:
    values = (np.random.default_rng(0).random(400) < 0.3).astype(float)
    once, thrice = mean([np.arange(400)], [values]), mean([np.arange(400)] * 3, [values] * 3)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_repeated_rows_of_a_prompt_count_as_one() -> None:
    values = (np.random.default_rng(0).random(400) < 0.3).astype(float)
    once, again = mean([np.arange(400)], [values]), mean([np.repeat(np.arange(400), 5)], [np.repeat(values, 5)])
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_a_repetition_that_learned_badly_widens_the_interval() -> None:
    generator, groups = np.random.default_rng(0), [np.arange(400)] * 5
    even = mean(groups, [(generator.random(400) < 0.6).astype(float) for _ in range(5)])
    uneven = mean(groups, [(generator.random(400) < p).astype(float) for p in (0.8, 0.4, 0.6, 0.75, 0.45)])
    assert uneven.high - uneven.low > 3 * (even.high - even.low)


def test_twenty_right_of_twenty_do_not_prove_that_all_will_be() -> None:
    figure = mean([np.arange(20)], [np.ones(20)])
    assert figure.value == figure.high == 1.0
    assert 0.75 < figure.low < 0.9
    same = mean_difference([np.arange(20)], [np.zeros(20)])
    assert same.low < -0.05
    assert same.high > 0.05


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    covered = {60: 0, 600: 0}
    for n in covered:
        for _ in range(400):
            chance = generator.beta(2, 1, n)  # some prompts are hard; the mean is 2/3
            held = [generator.permutation(n)[: n // 3] for _ in range(5)]
            outcome = (generator.random(n) < chance).astype(float)
            figure = mean(held, [outcome[rows] for rows in held])
            covered[n] += figure.low <= 2 / 3 <= figure.high
    assert all(0.92 <= count / 400 <= 0.98 for count in covered.values()), covered


def test_a_hull_mixes_neighbours_and_never_falls() -> None:
    points = np.array([[1.0, 0.2], [2.0, 0.3], [3.0, 0.8], [4.0, 0.6], [2.0, 0.1]])
    assert hull(points, np.array([1.0, 2.0, 3.0, 9.0])).tolist() == pytest.approx([0.2, 0.5, 0.8, 0.8])


def test_aiq_of_two_models_mixed_by_chance_is_half_way_between_them() -> None:
    singles = np.array([[1.0, 0.5], [3.0, 0.9]])
    assert aiq(singles, singles) == pytest.approx(0.7)
    assert aiq(np.array([[2.0, 0.4]]), np.array([[2.0, 0.4], [2.0, 0.3]])) == 0.4


def test_a_cost_curve_goes_from_quality_alone_to_cost_alone() -> None:
    outcomes = np.array([[1.0, 1.0], [0.0, 1.0]] * 50)
    costs = np.tile([1.0, 10.0], (100, 1))
    held = Held(np.arange(100), outcomes, costs, np.array([1.0, 10.0]))
    singles = np.array([[1.0, 0.5], [10.0, 1.0]])

    knows = curve([outcomes], [held], singles)
    fixed = curve([np.tile([0.5, 1.0], (100, 1))], [held], singles)

    assert (5.5, 1.0) in [tuple(np.round(point, 9)) for point in knows.points]  # dear only where that helps
    assert knows.points[-1] == fixed.points[-1] == (1.0, 0.5)
    assert fixed.points[0] == (10.0, 1.0)
    assert knows.aiq > fixed.aiq
    assert fixed.aiq == pytest.approx(0.75)


def test_a_cost_curve_needs_costs() -> None:
    with pytest.raises(ValueError, match="needs costs"):
        curve([np.zeros((2, 2))], [Held(np.arange(2), np.ones((2, 2)), None, np.ones(2))], np.ones((2, 2)))
