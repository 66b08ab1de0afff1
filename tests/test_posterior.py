"""The hierarchical posterior: held against a brute-force optimum, and against worlds whose truth is known."""

import numpy as np
import pytest
from scipy.optimize import minimize  # type: ignore[import-untyped]

from multimoe.posterior import SLOPE_VARIANCE, Posterior, Prior, Statements, fit, labels, sigmoid

PRIOR = Prior(np.array([0, 1, 1]), common=np.array([1.0, 0.5]), own=np.array([0.4, 0.3]), slope=0.6)


def world(n: int, seed: int, experts: int = 3, own: float = 1.0) -> tuple[Statements, np.ndarray]:
    """Labels of experts whose true weights are also returned, (experts, 3)."""
    draw = np.random.default_rng(seed)
    z = np.hstack([np.ones((n, 1)), draw.normal(size=(n, 2))]).astype(np.float32)
    truth = draw.normal(size=3) + own * draw.normal(size=(experts, 3))
    expert = draw.integers(experts, size=n)
    score = (draw.random(n) < sigmoid((z * truth[expert]).sum(axis=1))).astype(float)
    return labels(z, np.arange(n), expert, score, experts), truth


def compared(wins: int, seed: int) -> Statements:
    """Expert 0 is preferred to expert 1 where the second feature is positive, and the other way round."""
    draw = np.random.default_rng(seed)
    z = np.hstack([np.ones((wins, 1)), draw.normal(size=(wins, 2))]).astype(np.float32)
    winner = np.where(z[:, 1] > 0, 0, 1)
    at, pair = np.repeat(np.arange(wins), 2), np.repeat(np.arange(wins), 2)
    expert = np.stack([winner, 1 - winner], axis=1).ravel()
    share = np.tile([1.0, -1.0], wins)
    cards = np.zeros((wins, 3), np.float32)
    return Statements(z, cards, at, expert, np.ones(2 * wins), np.zeros(2 * wins), pair, share)


def logits(found: Posterior, z: np.ndarray) -> np.ndarray:
    return z @ (found.common + found.own).T


def test_one_round_finds_the_brute_force_maximum():
    said, _ = world(300, 0)
    said = Statements(**{**vars(said), "cards": np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)})

    def loss(x: np.ndarray) -> float:
        common, slope, own = x[:3], x[3], x[4:].reshape(3, 3)
        logit = (said.z * (common + own[said.expert])).sum(axis=1) + slope * said.cards[said.at, said.expert]
        likelihood = (np.logaddexp(0, logit) - said.score * logit).sum()
        spread = PRIOR.common[PRIOR.block], PRIOR.own[PRIOR.block]
        prior = (common**2 / spread[0]).sum() + (own**2 / spread[1]).sum() + (slope - PRIOR.slope) ** 2 / SLOPE_VARIANCE
        return float(likelihood + prior / 2)

    best = minimize(loss, np.zeros(13), method="BFGS", options={"gtol": 1e-6})
    found = fit(said, PRIOR, rounds=1)
    ours = np.concatenate([found.common, [found.slope], found.own.ravel()])

    assert loss(ours) == pytest.approx(best.fun, abs=1e-3)
    assert ours == pytest.approx(best.x, abs=0.02)


def test_the_covariance_is_the_inverse_curvature_of_an_experts_own_weights():
    said, _ = world(400, 2)
    found = fit(said, PRIOR, rounds=1)
    rows = said.expert == 1
    z = said.z[rows].astype(float)
    p = sigmoid(logits(found, z)[:, 1])
    curvature = (z * (p * (1 - p))[:, None]).T @ z + np.diag(1 / PRIOR.own[PRIOR.block])

    assert found.covariance[1] == pytest.approx(np.linalg.inv(curvature), rel=0.01)


@pytest.mark.parametrize("own", [0.1, 1.5])
def test_variances_are_learned_from_how_much_experts_differ(own):
    """Blocks of many weights: 20 experts that are alike, and 20 that are not."""
    said, truth = world(8000, 3, experts=20, own=own)
    found = fit(said, PRIOR)
    between = ((truth - truth.mean(axis=0))[:, 1:] ** 2).mean()

    assert (between > 1) == (own > 1)
    assert (found.variance[1] > 2 * PRIOR.own[1]) == (own > 1)
    assert (found.variance[1] < 0.6 * PRIOR.own[1]) == (own < 1)


def test_true_weights_lie_in_the_posterior_as_often_as_it_says():
    inside = []
    for seed in range(12):
        said, truth = world(2000, 10 + seed)
        found = fit(said, PRIOR)
        ours, sd = found.common + found.own, np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
        inside += (np.abs(ours - truth) < 2.2 * sd).ravel().tolist()

    assert np.mean(inside) > 0.9


def test_comparisons_move_both_sides_apart_and_nobody_else():
    found = fit(compared(200, 4), PRIOR)
    here = logits(found, np.array([[1.0, 1.5, 0.0], [1.0, -1.5, 0.0]]))

    assert here[0, 0] > here[0, 1] + 1
    assert here[1, 1] > here[1, 0] + 1
    assert found.own[2] == pytest.approx(np.zeros(3), abs=1e-9)


def test_a_weight_of_two_is_two_statements():
    said, _ = world(200, 5)
    twice = Statements(**{k: v if k in ("z", "cards") else np.tile(v, 2) for k, v in vars(said).items()})
    heavy = Statements(**{**vars(said), "weight": np.full(200, 2.0)})

    assert fit(heavy, PRIOR).own == pytest.approx(fit(twice, PRIOR).own, abs=1e-3)
