import numpy as np
import pytest

from multimoe.sequential import bounds, log_wealth, passes


def coins(seed: int, n: int, mean: float) -> np.ndarray:
    """n draws of -1 or 1."""
    return np.where(np.random.default_rng(seed).random(n) < (1 + mean) / 2, 1.0, -1.0)


def test_a_mean_that_only_reaches_the_bar_passes_it_in_at_most_one_run_of_twenty_however_often_one_looks():
    passed = [passes(coins(seed, 2000, 0.0), -np.ones(2000), 0.0) for seed in range(600)]
    assert sum(passed) <= 0.05 * 600


def test_a_mean_that_passes_is_noticed():
    assert all(passes(coins(seed, 600, 0.3), -np.ones(600), 0.0) for seed in range(50))


def test_terms_that_depend_on_what_was_before_mislead_no_one():
    """The next term is bolder after a win, and yet fair."""

    def gamble(seed: int) -> np.ndarray:
        sides = coins(seed, 1000, 0.0)
        stake = np.concatenate([[0.1], np.where(sides[:-1] > 0, 1.0, 0.1)])
        return sides * stake

    assert sum(passes(gamble(seed), -np.ones(1000), 0.0) for seed in range(300)) <= 0.05 * 300


@pytest.mark.parametrize("mean", [-0.6, 0.0, 0.25])
def test_bounds_hold_the_mean(mean):
    held = [bounds(coins(seed, 300, mean), -np.ones(300), np.ones(300)) for seed in range(60)]
    assert sum(b.low <= mean <= b.high for b in held) >= 0.9 * 60


def test_more_terms_make_closer_bounds():
    few, many = (bounds(coins(1, n, 0.2), -np.ones(n), np.ones(n)) for n in (50, 2000))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_nothing_seen_says_nothing():
    nothing = bounds(np.zeros(0), np.zeros(0), np.zeros(0))
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (0.0, -1.0, 1.0, 0)
    assert not passes(np.zeros(0), np.zeros(0), -0.5)


def test_one_term_can_never_bankrupt_the_gambler():
    worst = np.concatenate([np.ones(200), -10 * np.ones(5)])
    assert np.isfinite(log_wealth(worst, -10 * np.ones(205), 0.0)).all()
