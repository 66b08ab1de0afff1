import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as mixtral_loss
from transformers.models.nllb_moe.modeling_nllb_moe import load_balancing_loss_func as nllb_loss
from transformers.models.switch_transformers.modeling_switch_transformers import (
    load_balancing_loss_func,
    router_z_loss_func,
)

from multimoe.losses import balance_loss, expected_load, importance_loss, load_loss, mixture_loss, posteriors, z_loss

N, E, D = 12, 5, 3


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def top(logits: torch.Tensor, k: int) -> torch.Tensor:
    return logits.topk(k, dim=1).indices


def test_the_balance_loss_is_switch_transformers():
    logits = normal(N, E)
    theirs = load_balancing_loss_func(logits.softmax(dim=1)[None], top(logits, 1)[None])

    assert balance_loss(logits, top(logits, 1)).item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("published", [mixtral_loss, nllb_loss])
def test_the_balance_loss_of_several_experts_is_mixtrals_and_nllb_moes(published, k):
    logits = normal(N, E).detach()

    assert balance_loss(logits, top(logits, k)).item() == pytest.approx(published((logits,), E, k).item(), rel=1e-6)


def test_the_balance_loss_counts_no_expert_where_there_is_none():
    logits = normal(2, E)
    one, none = torch.tensor([[0, 1], [2, -1]]), torch.tensor([[-1, -1], [-1, -1]])

    assert balance_loss(logits, none) == 0
    assert balance_loss(logits, one).item() == pytest.approx(
        sum(balance_loss(logits, torch.tensor([[a], [b]])).item() for a, b in ((0, 2), (1, -1)))
    )


def test_even_routing_has_the_least_balance_loss():
    even = torch.eye(E).double() * 5
    crowded = torch.eye(E).double()[[0] * E] * 5

    assert balance_loss(even, top(even, 1)).item() == pytest.approx(1)
    assert balance_loss(crowded, top(crowded, 1)).item() > 4


def test_the_z_loss_is_switch_transformers():
    logits = normal(N, E)

    assert z_loss(logits).item() == pytest.approx(router_z_loss_func(logits[None]).item())


def test_importance_is_even_where_all_experts_have_equal_weight_in_all():
    assert importance_loss(torch.eye(E)).item() == pytest.approx(0)
    assert importance_loss(torch.eye(E)[[0, 0, 0]]).item() == pytest.approx(E - 1)  # CV^2 of one in e


def test_the_expected_load_is_how_often_an_expert_would_be_among_the_largest_with_new_noise():
    clean, sd = normal(1, E).detach(), torch.full((1, E), 0.7, dtype=torch.float64)
    noisy = clean + sd * normal(1, E, seed=1).detach()
    n, k = 20_000, 2
    load = expected_load(clean, noisy, sd, k)

    for i in range(E):
        again = noisy.repeat(n, 1)
        again[:, i] = clean[0, i] + 0.7 * normal(n, seed=2).detach()
        often = (top(again, k) == i).any(dim=1).double().mean().item()
        assert load[i].item() == pytest.approx(often, abs=0.02)


def test_gradients_of_the_balancing_losses_are_their_finite_differences():
    logits, noise = normal(N, E), normal(N, E, seed=1).detach()
    chosen = top(logits, 2)
    raw = normal(N, E, seed=2)

    assert gradcheck(lambda x: importance_loss(x.softmax(dim=1)), logits)
    assert gradcheck(lambda x: balance_loss(x, chosen), logits)
    assert gradcheck(z_loss, logits)
    assert gradcheck(lambda x, w: load_loss(x, x + noise * w.exp(), w.exp(), 2), (logits, raw))


def test_balancing_losses_pull_towards_balance():
    for loss in (
        lambda x: balance_loss(x, top(x, 1)),
        lambda x: importance_loss(x.softmax(dim=1)),
        lambda x: load_loss(x, x + 0.3 * normal(200, E, seed=3).detach(), torch.full_like(x, 0.3), 1),
    ):
        shift = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64, requires_grad=True)
        loss(normal(200, E).detach() + shift).backward()
        assert shift.grad is not None
        assert shift.grad[0] > 0


def test_the_mixture_losses_gradients_are_those_of_1991():
    logits, outputs, target = normal(N, E), normal(N, E, D, seed=1), normal(N, D, seed=2)
    h = posteriors(logits, outputs, target)

    (N * mixture_loss(logits, outputs, target)).backward()

    assert torch.allclose(outputs.grad, -h[:, :, None] * (target[:, None] - outputs))  # eq. 1.5
    assert torch.allclose(logits.grad, logits.softmax(dim=1) - h)
    assert gradcheck(mixture_loss, (logits, outputs, target))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_responsibilities_sum_to_one_and_favour_who_is_near(seed):
    logits, outputs, target = torch.zeros(N, E).double(), normal(N, E, D, seed=seed), normal(N, D, seed=seed + 1)
    h = posteriors(logits, outputs, target)

    assert torch.allclose(h.sum(dim=1), torch.ones(N).double())
    nearest = (target[:, None] - outputs).norm(dim=2).argmin(dim=1)
    assert (h.argmax(dim=1) == nearest).all()


def test_experts_that_share_a_mixture_loss_specialise_where_a_common_error_makes_them_average():
    """Targets lie at -3 and 3: one constant expert each, instead of two at 0 (the point of the 1991 paper)."""
    target = torch.tensor([[-3.0], [3.0]]).repeat(20, 1).double()
    outputs = torch.tensor([[-0.1], [0.1]], dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(40, 2).double()
    step = torch.optim.SGD([outputs], lr=0.5)
    for _ in range(200):
        step.zero_grad()
        mixture_loss(logits, outputs[None].expand(40, 2, 1), target).backward()
        step.step()

    assert sorted(outputs.detach().ravel().tolist()) == pytest.approx([-3, 3], abs=0.01)
