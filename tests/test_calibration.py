"""Predictions that mean what they say, and others that do not."""

import numpy as np
import pytest

from multimoe.calibration import Reliability, calibration_error, equal_counts

PREDICTED = np.repeat([0.2, 0.8], 50)


def test_the_error_is_the_gap_between_promise_and_outcome():
    assert calibration_error(PREDICTED, np.tile([0.0, 0.0, 0.0, 0.0, 1.0], 20)) == pytest.approx(0.3)
    assert calibration_error(PREDICTED, np.repeat([0.2, 0.8], 50)) == pytest.approx(0)


def test_gaps_of_opposite_sign_do_not_make_up_for_each_other():
    assert calibration_error(PREDICTED, np.full(100, 0.5)) == pytest.approx(0.3)
    assert calibration_error(PREDICTED, np.full(100, 0.5), bins=1) == pytest.approx(0)


def test_weights_count_as_if_the_outcome_came_as_often():
    generator = np.random.default_rng(0)
    predicted, scores, times = generator.random(400), generator.random(400), generator.integers(1, 4, 400)
    bins = equal_counts(predicted)

    weighted = calibration_error(predicted, scores, times.astype(float))

    gaps = [abs((np.repeat(predicted - scores, times * (bins == i))).sum()) for i in range(10)]
    assert weighted == pytest.approx(sum(gaps) / times.sum())
    assert weighted != pytest.approx(calibration_error(predicted, scores), abs=1e-6)
    assert Reliability(predicted, scores).error(times.astype(float)) == weighted


@pytest.mark.parametrize("n", [0, 1, 7, 10, 23])
def test_bins_are_of_equal_count_whatever_there_is(n):
    predicted = np.random.default_rng(n).random(n)

    counts = np.bincount(equal_counts(predicted), minlength=10)

    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1
    assert (np.diff(equal_counts(np.sort(predicted))) >= 0).all()
    assert calibration_error(predicted, predicted) == 0
