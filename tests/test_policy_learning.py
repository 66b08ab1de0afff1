"""Learning the choice itself from logged ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import Town, embed_texts, expert, gate_spec

from multimoe.config import LearningSpec
from multimoe.examples import read
from multimoe.gate import Gate
from multimoe.policy_learning import Drawn, fit_tilt, objective
from multimoe.training import fit

IPS, DR = LearningSpec(objective="ips", decay=0.01), LearningSpec(objective="doubly-robust", decay=0.01)


def drawn(n: int = 3000, seed: int = 0, told: float = 0.5) -> Drawn:
    """Expert 0 is right where the feature is positive, expert 1 elsewhere, expert 2 never; the quality model says
    `told` of all."""
    draw = np.random.default_rng(seed)
    z = np.column_stack([np.ones(n), draw.normal(size=n)])
    propensities = np.array([0.2, 0.5, 0.3])
    chosen = draw.choice(3, size=n, p=propensities)
    worth = np.array([0.1, 0.9])[((z[:, 1] > 0) == (chosen == 0)).astype(int)] * (chosen < 2)
    return Drawn(
        z=torch.as_tensor(z),
        quality=torch.full((n, 3), told, dtype=torch.float64),
        eligible=torch.ones(n, 3, dtype=torch.bool),
        chosen=torch.as_tensor(chosen),
        reward=torch.as_tensor((draw.random(n) < worth).astype(float)),
        propensity=torch.as_tensor(propensities[chosen]),
    )


def choices(tilt: np.ndarray, at: Drawn) -> np.ndarray:
    return (at.quality.numpy() + at.z.numpy() @ tilt.T).argmax(axis=1)


@pytest.mark.parametrize("spec", [IPS, DR])
def test_learns_to_choose_where_the_quality_model_knows_nothing(spec):
    tilt = fit_tilt(drawn(), spec, 0.12)
    fresh = drawn(seed=1)
    right = np.where(fresh.z[:, 1].numpy() > 0, 0, 1)

    assert (choices(tilt, fresh) == right).mean() > 0.95
    assert (choices(np.zeros((3, 2)), fresh) == right).mean() < 0.6  # without it


def test_the_value_that_is_raised_is_the_true_one():
    at = drawn(20_000)
    loss = objective(torch.zeros(3, 2, dtype=torch.float64), at, DR, 0.12)

    assert -float(loss) == pytest.approx((0.5 + 0.5 + 0.0) / 3, abs=0.02)  # an even policy


def test_gradients_are_those_of_finite_differences():
    at = drawn(60)
    spec = LearningSpec(objective="doubly-robust", decay=0.05, importance_loss=0.1, load_loss=0.1, z_loss=0.01)
    tilt = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    assert torch.autograd.gradcheck(lambda t: objective(t, at, spec, 0.3), (tilt,))


def test_the_load_of_experts_that_may_not_answer_has_a_gradient_too():
    at = drawn(60)
    at = replace(at, eligible=at.eligible & (torch.arange(3) < 2) | (at.chosen == 2)[:, None])
    tilt = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)

    objective(tilt, at, DR.model_copy(update={"load_loss": 1.0}), 0.3).backward()

    assert tilt.grad is not None
    assert tilt.grad.isfinite().all()


def test_decay_holds_the_tilt_at_zero():
    assert np.abs(fit_tilt(drawn(), DR.model_copy(update={"decay": 1e4}), 0.12)).max() < 1e-3


@pytest.mark.parametrize("name", ["importance_loss", "load_loss"])
def test_losses_of_uneven_use_spread_choices(name):
    def largest(spec: LearningSpec) -> float:
        at = drawn()
        logits = (at.quality.numpy() + at.z.numpy() @ fit_tilt(at, spec, 0.12).T) / 0.12
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        return float((chances / chances.sum(axis=1, keepdims=True)).mean(axis=0).max())

    assert largest(DR.model_copy(update={name: 5.0})) < largest(DR) - 0.03


def test_a_gate_learns_by_the_objective_of_its_catalog():
    experts = [expert("a", text=("red",)), expert("b", text=("blue",)), expert("c", text=("green",))]
    spec = gate_spec(top_k=1, explore=0.5)
    gate = Gate.from_cards(experts, embed_texts, spec)
    examples = read(Town(0, {"red": "b", "blue": "c", "green": "a"}).live(gate, 400))
    tilting = Gate.from_cards(experts, embed_texts, spec.model_copy(update={"learning": DR}))

    plain, tilted = fit(examples, gate), fit(examples, tilting)

    assert not plain.tilt.any()
    assert tilted.tilt.any()
    assert replace(tilted, tilt=plain.tilt).own.tobytes() == plain.own.tobytes()
    assert np.abs(tilted.balance).max() > 0
