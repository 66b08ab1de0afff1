"""Every estimator against worlds of known value: ordered choices of up to two of four experts, drawn as a gate does."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
from logged_world import World, plans
from oracles import by_obp, by_wabbit

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

KINDS, EXPERTS = 5, 4


@dataclass(frozen=True)
class Lived:
    log: Log
    candidate: Replay
    champion: Replay


def lived(world: World, n: int, generator: np.random.Generator | int) -> Lived:
    played = world.play(n, np.random.default_rng(generator))
    return Lived(played.log, world.replay(world.candidates, played), world.replay(world.champions, played))


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [World(seed, kinds=10, top_k=1 + seed % 2, explore=(0.6, 0.3)[seed // 2 % 2]) for seed in range(200)]


def test_the_world_draws_every_ordered_choice_with_its_logged_probability():
    assert World(kinds=KINDS).logging.sum(axis=1) == pytest.approx(np.ones(KINDS))


@pytest.mark.parametrize("estimator", [ips, clipped_ips, snips, doubly_robust])
def test_the_value_is_recovered_and_the_interval_covers_it_as_often_as_it_says(estimator, worlds):
    """Of 200 worlds 95 % are 190; fewer than 182 or more than 199 come once in 200 runs of a right estimator."""
    truths = np.array([world.value(world.candidate) for world in worlds])
    estimates = [estimator(at.log, at.candidate) for at in (lived(w, 1000, s) for s, w in enumerate(worlds))]
    misses = np.array([estimate.value for estimate in estimates]) - truths
    covered = sum(e.low <= truth <= e.high for e, truth in zip(estimates, truths, strict=True))

    assert abs(misses.mean()) < 4 * misses.std() / np.sqrt(len(worlds)) + (0.01 if estimator is clipped_ips else 0)
    assert 182 <= covered <= 199


def test_the_direct_method_covers_the_truth_as_often_as_it_says_where_its_model_is_right(worlds):
    covered = 0
    for seed, world in enumerate(worlds):
        played = world.play(1000, np.random.default_rng(seed))
        estimate = direct_method(played.log, world.replay(world.candidates, played, world.reward))
        covered += estimate.low <= world.value(world.candidate) <= estimate.high

    assert 182 <= covered <= 199


@pytest.mark.parametrize("gain", [snips_gain, doubly_robust_gain])
def test_the_gain_is_recovered_and_its_interval_covers_it_at_least_as_often_as_it_says(gain, worlds):
    truths = np.array([world.value(world.candidate) - world.value(world.champion) for world in worlds])
    logs = (lived(world, 1000, seed) for seed, world in enumerate(worlds))
    estimates = [gain(at.log, at.candidate, at.champion) for at in logs]
    misses = np.array([estimate.value for estimate in estimates]) - truths
    too_high = sum(e.low > truth for e, truth in zip(estimates, truths, strict=True))

    assert abs(misses.mean()) < 4 * misses.std() / np.sqrt(len(worlds))
    assert sum(e.low <= truth <= e.high for e, truth in zip(estimates, truths, strict=True)) >= 182
    assert too_high <= 10


def test_intervals_without_their_corrections_would_cover_too_little(worlds):
    """The negative control: the textbook's mean plus and minus 1.96 standard errors, on few and unequal rows."""
    covered = 0
    for seed, world in enumerate(worlds):
        at = lived(world, 100, seed)
        terms = at.candidate.chances / at.log.propensities * at.log.rewards
        radius = 1.96 * terms.std(ddof=1) / np.sqrt(len(terms))
        covered += abs(terms.mean() - world.value(world.candidate)) <= radius

    assert covered < 182


def test_an_interval_that_hangs_on_few_rows_is_wide_enough():
    world, generator = World(3), np.random.default_rng(2)
    world.logger = plans(np.random.default_rng(11).uniform(0, 1, size=(KINDS, EXPERTS)), 0.6)
    world.logging = world.chances(world.logger)
    truth = world.value(world.candidate)
    logs = [lived(world, 150, generator) for _ in range(400)]
    estimates = [snips(at.log, at.candidate) for at in logs]

    assert np.mean([e.effective_sample_size for e in estimates]) < 30
    assert np.mean([e.low <= truth for e in estimates]) >= 0.95


def test_snips_and_doubly_robust_are_narrower_than_ips():
    at = lived(World(3), 5000, 1)
    width = {f: f(at.log, at.candidate).high - f(at.log, at.candidate).low for f in (doubly_robust, snips, ips)}

    assert width[snips] < width[ips]
    assert width[doubly_robust] < width[ips]


def test_the_direct_method_inherits_its_models_error():
    world = World(3)
    world.guess = np.clip(world.reward + 0.3, 0, 1)
    at = lived(world, 20_000, 1)
    truth = world.value(world.candidate)

    assert direct_method(at.log, at.candidate).low > truth
    assert doubly_robust(at.log, at.candidate).value == pytest.approx(truth, abs=0.03)


def test_what_clipping_leaves_out_is_allowed_for():
    world, generator = World(3), np.random.default_rng(4)
    truth = world.value(world.candidate)
    logs = [lived(world, 500, generator) for _ in range(300)]
    clipped = [clipped_ips(at.log, at.candidate, cap=2.0) for at in logs]

    assert np.mean([estimate.value for estimate in clipped]) < truth - 0.03
    assert np.mean([estimate.low <= truth for estimate in clipped]) >= 0.975
    assert np.mean([estimate.high >= truth for estimate in clipped]) >= 0.93


def test_a_cap_that_no_weight_reaches_clips_nothing():
    at = lived(World(3), 500, 0)

    assert clipped_ips(at.log, at.candidate, cap=1e6) == ips(at.log, at.candidate)


def test_judging_the_logger_itself_gives_the_mean_reward():
    log = lived(World(2), 1000, 0).log
    itself = Replay(log.propensities)

    assert ips(log, itself).value == pytest.approx(log.rewards.mean())
    assert effective_size(log, itself) == pytest.approx(1000)


def test_a_policy_gains_nothing_over_itself():
    at = lived(World(2), 500, 0)

    assert doubly_robust_gain(at.log, at.candidate, at.candidate).value == 0
    assert doubly_robust_gain(at.log, at.candidate, at.candidate).high == 0


def test_what_two_policies_share_does_not_widen_the_interval_of_their_gain():
    at = lived(World(0, far=0.02), 2000, 0)
    gain, value = doubly_robust_gain(at.log, at.candidate, at.champion), doubly_robust(at.log, at.candidate)

    assert gain.high - gain.low < 0.8 * (value.high - value.low)


def test_ratings_that_one_rater_repeats_do_not_narrow_the_interval():
    at = lived(World(3), 400, 0)
    once = doubly_robust(at.log, at.candidate)
    ten = lambda values: np.repeat(values, 10)  # noqa: E731
    repeated = Log(
        ten(at.log.rewards), ten(at.log.propensities), ten(at.log.predicted), groups=np.repeat(np.arange(400), 10)
    )

    estimate = doubly_robust(repeated, Replay(ten(at.candidate.chances), ten(at.candidate.expected)))

    assert estimate.high - estimate.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_what_never_was_drawn_is_not_better_than_what_was_however_bad():
    """Of two experts the second was offered with 1 in 1000 and never drawn; the first one's answers were all bad."""
    n, rare = 300, 0.001
    log = Log(np.zeros(n), np.full(n, 1 - rare), np.zeros(n), options=np.tile([1 - rare, rare], (n, 1)))
    log = replace(log, rewards=(np.arange(n) % 4 == 0).astype(float))
    champion = Replay(np.full(n, 0.99), np.full(n, 0.26), np.tile([0.99, 0.01], (n, 1)))
    candidate = Replay(np.full(n, 0.01), np.full(n, 0.9), np.tile([0.01, 0.99], (n, 1)))

    assert doubly_robust_gain(log, candidate, champion).low < 0
    assert doubly_robust_gain(replace(log, options=None), candidate, champion).low > 0  # what rows alone would say


def test_ten_liked_answers_do_not_prove_that_all_will_be():
    generator = np.random.default_rng(0)
    agreed = np.arange(200) < 10
    rewards = np.where(agreed, 1.0, generator.random(200) < 0.6)

    estimate = snips(Log(rewards, np.full(200, 0.5)), Replay(agreed * 0.5))

    assert estimate.value == 1.0
    assert estimate.low < 0.75


def test_rows_without_votes_do_not_count():
    at = lived(World(3), 600, 0)
    log, candidate = at.log, at.candidate
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


def test_obp_computes_the_same_values():
    world = World(0, kinds=10)
    played = world.play(2000, np.random.default_rng(0))
    policy = world.replay(world.candidates, played)
    with warnings.catch_warnings(action="ignore"):
        theirs = by_obp(world, played, world.candidates)
    ours = {"ips": ips, "snips": snips, "direct": direct_method, "robust": doubly_robust}

    assert {name: f(played.log, policy).value for name, f in ours.items()} == pytest.approx(theirs, abs=1e-9)


def test_vowpal_wabbit_computes_the_same_values():
    world = World(0, kinds=10)
    played = world.play(4000, np.random.default_rng(0))
    wanted = world.candidates.argmax(axis=1)
    policy = world.replay(np.eye(len(world.orders))[wanted], played)
    robust = doubly_robust(played.log, policy)

    assert ips(played.log, policy).value == pytest.approx(by_wabbit(world, played, wanted, "ips"), abs=1e-6)
    assert robust.low < by_wabbit(world, played, wanted, "dr") < robust.high
