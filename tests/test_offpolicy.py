"""Every estimator against worlds of known value: ordered choices of up to two of four experts, drawn as a gate does."""

from dataclasses import replace

import numpy as np
import pytest

from multimoe.errors import TooLittleData
from multimoe.offpolicy import (
    Log,
    Replay,
    clipped_ips,
    direct_method,
    doubly_robust,
    doubly_robust_gain,
    effective_size,
    ips,
    snips,
    snips_gain,
)
from multimoe.routing import Plan, blend_weights, every_order, plan

EXPERTS, CONTEXTS = 4, 5
ORDERS = [tuple(o) for length in (1, 2) for o in every_order(EXPERTS, length).tolist()]  # 4 + 12


def plans(utility: np.ndarray, explore: float) -> list[Plan]:
    return [plan(row, strategy="softmax", top_k=2, temperature=0.3, explore=explore) for row in utility]


class World:
    """Requests of five kinds; an ordered choice's mean reward depends on kind, choice and weights of the logger."""

    def __init__(self, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.quality = generator.uniform(0.1, 0.9, size=(CONTEXTS, EXPERTS))
        base = generator.uniform(0, 1, size=(CONTEXTS, EXPERTS))
        self.logger, self.champion = plans(base, 0.6), plans(base, 0.5)
        self.candidate = plans(base + 0.3 * generator.normal(size=base.shape), 0.5)
        self.reward = np.array([[self._reward(x, order) for order in ORDERS] for x in range(CONTEXTS)])
        self.logging, self.champions, self.candidates = map(self.chances, (self.logger, self.champion, self.candidate))
        self.guess = np.clip(self.reward + generator.normal(0, 0.15, size=self.reward.shape), 0, 1)  # a poor model

    def _reward(self, x: int, order: tuple[int, ...]) -> float:
        return float(blend_weights(self.logger[x].shares, np.array([order]))[0] @ self.quality[x, list(order)])

    def chances(self, policy: list[Plan]) -> np.ndarray:
        return np.array([[p.probability(order) for order in ORDERS] for p in policy])  # (contexts, orders)

    def value(self, policy: list[Plan]) -> float:
        return float((self.chances(policy) * self.reward).sum(axis=1).mean())

    def play(self, n: int, generator: np.random.Generator) -> tuple[Log, Replay, Replay]:
        x = generator.integers(CONTEXTS, size=n)
        cumulative = self.logging.cumsum(axis=1)[x]
        a = (generator.random(n)[:, None] > cumulative).sum(axis=1).clip(max=len(ORDERS) - 1)
        log = Log(
            rewards=(generator.random(n) < self.reward[x, a]).astype(float),
            propensities=self.logging[x, a],
            predicted=self.guess[x, a],
        )
        return log, self.replay(self.candidates, x, a), self.replay(self.champions, x, a)

    def replay(self, chances: np.ndarray, x: np.ndarray, a: np.ndarray) -> Replay:
        return Replay(chances[x, a], (chances * self.guess).sum(axis=1)[x])


def test_the_world_draws_every_ordered_choice_with_its_logged_probability():
    assert World().logging.sum(axis=1) == pytest.approx(np.ones(CONTEXTS))


@pytest.mark.parametrize("estimator", [ips, snips, doubly_robust])
def test_the_value_is_recovered_and_the_interval_covers_it_as_often_as_it_says(estimator):
    world, generator, runs = World(3), np.random.default_rng(8), 800
    truth = world.value(world.candidate)
    estimates = [estimator(*world.play(1000, generator)[:2]) for _ in range(runs)]

    values = np.array([e.value for e in estimates])
    covered = np.mean([e.low <= truth <= e.high for e in estimates])

    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(runs) + 1e-3
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("gain", [snips_gain, doubly_robust_gain])
def test_the_gain_is_recovered_and_its_interval_covers_it_as_often_as_it_says(gain):
    world, generator, runs = World(3), np.random.default_rng(9), 800
    truth = world.value(world.candidate) - world.value(world.champion)
    estimates = [gain(*world.play(1000, generator)) for _ in range(runs)]

    values = np.array([e.value for e in estimates])
    covered = np.mean([e.low <= truth <= e.high for e in estimates])

    assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(runs) + 1e-3
    assert 0.93 <= covered <= 0.97


def test_an_interval_that_hangs_on_few_rows_is_wide_enough():
    world, generator = World(3), np.random.default_rng(2)
    world.logger = plans(np.random.default_rng(11).uniform(0, 1, size=(CONTEXTS, EXPERTS)), 0.6)
    world.logging = world.chances(world.logger)
    truth = world.value(world.candidate)
    estimates = [snips(*world.play(150, generator)[:2]) for _ in range(400)]

    assert np.mean([e.effective_sample_size for e in estimates]) < 30
    assert np.mean([e.low <= truth for e in estimates]) >= 0.95


def test_snips_and_doubly_robust_are_narrower_than_ips():
    log, candidate, _ = World(3).play(5000, np.random.default_rng(1))
    width = {f: f(log, candidate).high - f(log, candidate).low for f in (doubly_robust, snips, ips)}

    assert width[snips] < width[ips]
    assert width[doubly_robust] < width[ips]


def test_the_direct_method_inherits_its_models_error():
    world = World(3)
    world.guess = np.clip(world.reward + 0.3, 0, 1)
    log, candidate, _ = world.play(20_000, np.random.default_rng(1))
    truth = world.value(world.candidate)

    assert direct_method(log, candidate).low > truth
    assert doubly_robust(log, candidate).value == pytest.approx(truth, abs=0.03)


def test_the_clipped_lower_bound_holds_nearly_always():
    world, generator = World(3), np.random.default_rng(4)
    truth = world.value(world.candidate)
    bounds = [clipped_ips(*world.play(200, generator)[:2], cap=5.0).low for _ in range(300)]

    assert np.mean(np.array(bounds) <= truth) >= 0.975


def test_judging_the_logger_itself_gives_the_mean_reward():
    world = World(2)
    log, *_ = world.play(1000, np.random.default_rng(0))
    itself = Replay(log.propensities)

    assert ips(log, itself).value == pytest.approx(log.rewards.mean())
    assert effective_size(log, itself) == pytest.approx(1000)


def test_a_policy_gains_nothing_over_itself():
    log, candidate, _ = World(2).play(500, np.random.default_rng(0))

    assert doubly_robust_gain(log, candidate, candidate).value == 0
    assert doubly_robust_gain(log, candidate, candidate).high == 0


def test_ratings_that_one_rater_repeats_do_not_narrow_the_interval():
    log, candidate, _ = World(3).play(400, np.random.default_rng(0))
    once = doubly_robust(log, candidate)
    ten = lambda values: np.repeat(values, 10)  # noqa: E731
    repeated = Log(ten(log.rewards), ten(log.propensities), ten(log.predicted), groups=np.repeat(np.arange(400), 10))

    estimate = doubly_robust(repeated, Replay(ten(candidate.chances), ten(candidate.expected)))

    assert estimate.high - estimate.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_ten_liked_answers_do_not_prove_that_all_will_be():
    generator = np.random.default_rng(0)
    agreed = np.arange(200) < 10
    rewards = np.where(agreed, 1.0, generator.random(200) < 0.6)

    estimate = snips(Log(rewards, np.full(200, 0.5)), Replay(agreed * 0.5))

    assert estimate.value == 1.0
    assert estimate.low < 0.75


def test_rows_without_votes_do_not_count():
    world = World(3)
    log, candidate, _ = world.play(600, np.random.default_rng(0))
    half = np.arange(600) < 300
    spoiled = replace(log, rewards=np.where(half, log.rewards, 1.0), votes=half.astype(float))
    honest = Log(log.rewards[:300], log.propensities[:300], log.predicted[:300])

    estimate = doubly_robust(spoiled, candidate)

    assert estimate.value == pytest.approx(
        doubly_robust(honest, Replay(candidate.chances[:300], candidate.expected[:300])).value
    )


def test_a_log_without_any_agreement_says_nothing():
    log = Log(np.ones(50), np.full(50, 0.5), np.ones(50))

    with pytest.raises(TooLittleData, match="50 logged choices are worth 0"):
        snips(log, Replay(np.zeros(50)))


def test_an_empty_log_says_nothing():
    with pytest.raises(TooLittleData):
        ips(Log(np.zeros(0), np.zeros(0)), Replay(np.zeros(0)))
