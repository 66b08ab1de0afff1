"""The published routers against transformers' own on the same logits, and against what their papers promise."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.nllb_moe.configuration_nllb_moe import NllbMoeConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router
from transformers.models.switch_transformers.configuration_switch_transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersTop1Router

from multimoe.strategies.batch import balancing_bias
from multimoe.strategies.choices import every_order
from multimoe.strategies.normal import Normals, in_order_by_row
from multimoe.strategies.routers import (
    Assignment,
    capacity,
    expert_choice,
    gshard_top_2,
    gumbel_top_k,
    hierarchical_top_k,
    jitter,
    loss_free_top_k,
    noisy_logits,
    noisy_top_k,
    softmax_top_k,
    switch_top_1,
    update_bias,
)

N, E, WIDTH = 64, 8, 16
BATCHES = arrays(np.float64, st.tuples(st.integers(2, 12), st.integers(2, 6)), elements=st.floats(-30, 30))


def hidden(seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=(N, WIDTH)), dtype=torch.float32)


def with_weights(router: Any, seed: int = 1) -> Any:
    """Random weights in place of none."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return router.eval()


def table(chosen: torch.Tensor, weights: torch.Tensor) -> np.ndarray:
    """(n, e) of a router that lists its experts in no particular order."""
    return torch.zeros(N, E).scatter_(1, chosen, weights).numpy()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_softmax_top_k_is_mixtrals_router(k):
    config = MixtralConfig(hidden_size=WIDTH, num_local_experts=E, num_experts_per_tok=k)
    with torch.no_grad():
        logits, weights, chosen = with_weights(MixtralTopKRouter(config))(hidden())

    ours = softmax_top_k(logits.double().numpy(), k)

    assert (ours.experts == chosen.numpy()).all()
    assert ours.weights == pytest.approx(weights.numpy(), abs=1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 8.0])
def test_switch_top_1_is_switch_transformers_router(factor):
    room = capacity(N, E, factor)
    config = SwitchTransformersConfig(hidden_size=WIDTH, num_experts=E, expert_capacity=room)
    with torch.no_grad():
        dispatch, share, logits = with_weights(SwitchTransformersTop1Router(config))(hidden()[None])

    ours = switch_top_1(logits[0].double().numpy(), room)

    assert (ours.combine(E) > 0).tolist() == (dispatch[0].numpy() > 0).tolist()
    assert ours.weights == pytest.approx(share[0].numpy(), abs=1e-6)
    assert ours.kept.all() == (factor == 8.0)


def nllb(logits: np.ndarray, room: int, policy: str, before: bool) -> np.ndarray:
    config = NllbMoeConfig(
        hidden_size=WIDTH,
        num_experts=E,
        expert_capacity=room,
        second_expert_policy=policy,
        normalize_router_prob_before_dropping=before,
        moe_eval_capacity_token_fraction=-1.0,
    )
    router = NllbMoeTop2Router(config).eval()
    with torch.no_grad():
        return router.route_tokens(torch.tensor(logits), torch.float64)[1].numpy()


@pytest.mark.parametrize("room", [4, 16, N])
def test_gshard_top_2_is_nllb_moes_router(room):
    logits = np.random.default_rng(3).normal(size=(N, E))

    ours = gshard_top_2(logits, np.full(N, -1.0), room)  # every second expert is kept

    assert ours.combine(E) == pytest.approx(nllb(logits, room, "all", before=True), abs=1e-6)


@pytest.mark.parametrize("room", [4, 16, N])
def test_gshards_second_expert_by_chance_is_nllb_moes(room, monkeypatch):
    """Theirs compares chance with twice the second's own share, the paper with its part of both; weights after that."""
    logits, chance = np.random.default_rng(3).normal(size=(N, E)), np.random.default_rng(4).random(N)
    shares = np.sort(torch.softmax(torch.tensor(logits), dim=1).numpy(), axis=1)
    monkeypatch.setattr(torch, "rand_like", lambda _: torch.tensor(chance))
    theirs = nllb(logits, room, "random", before=False)

    ours = gshard_top_2(logits, chance / shares[:, -2:].sum(axis=1), room).combine(E)

    assert (ours > 0).tolist() == (theirs > 0).tolist()
    assert 0 < (ours > 0).sum() < 2 * N
    total = ours.sum(axis=1, keepdims=True)
    assert np.divide(ours, total, where=total > 0, out=ours) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(("groups", "best"), [(1, 1), (4, 2), (2, 1)])
def test_loss_free_top_k_is_deepseek_v3s_router(groups, best):
    config = DeepseekV3Config(
        hidden_size=WIDTH,
        n_routed_experts=E,
        num_experts_per_tok=2,
        n_group=groups,
        topk_group=best,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
    )
    bias = np.random.default_rng(5).normal(scale=0.3, size=E)
    router = with_weights(DeepseekV3TopkRouter(config))
    router.e_score_correction_bias.copy_(torch.tensor(bias))
    with torch.no_grad():
        logits, weights, chosen = router(hidden())

    ours = loss_free_top_k(logits.double().numpy(), bias, 2, groups, best)

    assert ours.combine(E) == pytest.approx(table(chosen, weights), abs=1e-6)
    unmoved = loss_free_top_k(logits.double().numpy(), np.zeros(E), 2, groups, best)
    assert (unmoved.combine(E) > 0).tolist() != (ours.combine(E) > 0).tolist()


@settings(max_examples=40, deadline=None)
@given(BATCHES, st.integers(1, 12), st.integers(0, 9))
def test_no_expert_takes_more_than_it_has_room_for_nor_less_than_it_is_asked(logits, room, seed):
    chance = np.random.default_rng(seed).random(len(logits))
    switch, gshard = switch_top_1(logits, room), gshard_top_2(logits, chance, room)
    second = 2 * gshard.weights[:, 1] > chance
    asked = [switch.experts.ravel(), np.concatenate([gshard.experts[:, 0], gshard.experts[second, 1]])]

    for routed, experts in zip((switch, gshard), asked, strict=True):
        wanted, taken = (np.bincount(e, minlength=logits.shape[1]) for e in (experts, routed.experts[routed.kept]))
        assert taken.tolist() == np.minimum(wanted, room).tolist()


@settings(max_examples=40, deadline=None)
@given(BATCHES, st.data())
def test_expert_choice_is_balanced_and_takes_the_tokens_each_expert_likes_best(logits, data):
    room = data.draw(st.integers(1, len(logits)))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)

    tokens, weights = expert_choice(logits, room)

    assert tokens.shape == weights.shape == (logits.shape[1], room)
    for e, (taken, liked) in enumerate(zip(tokens, weights, strict=True)):
        assert len(set(taken.tolist())) == room
        assert liked == pytest.approx(np.sort(shares[:, e])[::-1][:room])


def routed_by_each(logits: np.ndarray, k: int) -> list[Assignment]:
    noise = np.random.default_rng(0).random(logits.shape)
    return [
        softmax_top_k(logits, k),
        noisy_top_k(logits, noise, noise, k),
        loss_free_top_k(logits, noise[0], k),
        gumbel_top_k(logits, noise, k)[0],
        hierarchical_top_k(logits[:, :2], logits[:, None, :].repeat(2, axis=1), 2, k),
    ]


@settings(max_examples=40, deadline=None)
@given(BATCHES)
def test_weights_of_the_kept_sum_to_one(logits):
    for routed in routed_by_each(logits, 2):
        assert (routed.weights * routed.kept).sum(axis=1) == pytest.approx(np.ones(len(logits)))


def test_noise_has_the_learned_scale():
    clean, raw = np.zeros((20_000, 2)), np.full((20_000, 2), -1.0)
    noisy = noisy_logits(clean, raw, np.random.default_rng(0).normal(size=clean.shape))

    assert noisy.std() == pytest.approx(np.log1p(np.exp(-1.0)), rel=0.02)


def test_jitter_stays_within_epsilon():
    inputs = np.full((1000, 3), 2.0)
    moved = jitter(inputs, np.random.default_rng(0).random(inputs.shape), epsilon=0.1)

    assert moved.min() == pytest.approx(1.8, abs=0.01)
    assert moved.max() == pytest.approx(2.2, abs=0.01)


def test_two_levels_weigh_by_the_product_of_their_gates():
    primary = np.log(np.array([[0.7, 0.3]]))
    secondary = np.log(np.array([[[0.5, 0.3, 0.2], [0.9, 0.1, 1.0]]]))
    secondary[0, 1, 2] = -np.inf  # the second group has two experts

    all_of_both = hierarchical_top_k(primary, secondary, groups=2, k=3)
    best_of_best = hierarchical_top_k(primary, secondary, groups=1, k=1)

    assert all_of_both.combine(6)[0] == pytest.approx([0.35, 0.21, 0.14, 0.27, 0.03, 0.0])
    assert (best_of_best.experts.tolist(), best_of_best.weights.tolist()) == ([[0]], [[1.0]])


def test_gumbel_draws_come_as_often_as_their_probability_says():
    n = 20_000
    logits = np.tile(np.array([1.0, 0.0, -1.0]), (n, 1))
    routed, chances = gumbel_top_k(logits, np.random.default_rng(0).gumbel(size=logits.shape), 2)

    for pair in {tuple(row) for row in routed.experts.tolist()}:
        drawn = (routed.experts == pair).all(axis=1)
        p = chances[drawn][0]
        assert abs(drawn.mean() - p) < 4.5 * np.sqrt(p * (1 - p) / n)


def test_the_bias_moves_towards_an_even_load():
    logits = np.random.default_rng(0).normal(size=(4000, 6)) + np.array([2.0, 1.0, 0, 0, -1.0, -2.0])
    bias = np.zeros(6)
    load = lambda bias: np.bincount(loss_free_top_k(logits, bias, 2).experts.ravel(), minlength=6) / 8000  # noqa: E731

    for _ in range(300):
        bias = update_bias(bias, load(bias), rate=0.01)

    assert load(np.zeros(6)).max() > 0.35
    assert load(bias).max() < 0.19


def test_the_bias_of_a_log_balances_among_those_that_could_have_been_chosen():
    """Two experts for text, two for pictures, one of each far better; three requests of four are text."""
    generator = np.random.default_rng(0)
    utility = np.array([0.8, 0.6, 0.8, 0.6]) + generator.normal(scale=0.05, size=(4000, 4))
    text = generator.random(4000) < 0.75
    utility[text, 2:], utility[~text, :2] = -np.inf, -np.inf

    bias = balancing_bias(utility, temperature=0.12, k=1, rate=0.01)

    assert bias[1] - bias[0] == pytest.approx(bias[3] - bias[2], abs=0.1)
    assert 0.3 < bias[1] - bias[0] < 0.9


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=2, max_size=4))
def test_the_chance_of_an_order_of_normals_is_the_integral_of_its_definition(normals):
    mean, sd = np.array(normals).T
    x = np.linspace(-10, 10, 100_001)
    slow = norm.pdf(x, mean[1], sd[1]) * norm.sf(x, mean[0], sd[0])
    for others in range(2, len(mean)):
        slow *= norm.cdf(x, mean[others], sd[others])

    assert Normals(mean, sd, 2).in_order(np.array([[0, 1]]))[0] == pytest.approx(np.trapezoid(slow, x), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(1e-4, 1)), min_size=1, max_size=5))
def test_every_variable_is_the_largest_as_often_as_the_orders_that_begin_with_it(normals):
    mean, sd = np.array(normals).T
    n, whole = len(mean), every_order(len(mean), len(mean))
    chances = Normals(mean, sd, n).in_order(whole)
    first = Normals(mean, sd, 1).largest()

    assert first == pytest.approx([chances[whole[:, 0] == i].sum() for i in range(n)], abs=1e-8)
    alone = in_order_by_row(np.tile(mean, (n, 1)), np.tile(sd, (n, 1)), np.arange(n)[:, None])
    assert alone == pytest.approx(first, abs=1e-8)


@pytest.mark.parametrize("n", [2, 10, 30])
@pytest.mark.parametrize("widest", [1, 3, 20])
@pytest.mark.parametrize("k", [1, 2])
def test_the_few_nodes_of_normals_err_by_less_than_a_billionth(n, widest, k):
    chance = np.random.default_rng(n)
    mean, sd = 0.3 * chance.normal(size=(8, n)), 0.1 * widest ** chance.random(size=(8, n))
    orders = np.argsort(-(mean + sd * chance.normal(size=(8, n))), axis=1)[:, :k]
    exact = np.array([by_many_nodes(*row) for row in zip(mean, sd, orders, strict=True)])

    alone = [Normals(m, s, k).in_order(order[None])[0] for m, s, order in zip(mean, sd, orders, strict=True)]
    assert np.abs(alone - exact).max() < 1e-9
    assert np.abs(in_order_by_row(mean, sd, orders) - exact).max() < 1e-9


def by_many_nodes(mean: np.ndarray, sd: np.ndarray, order: np.ndarray) -> float:
    """That `order` (1 or 2,) is the largest of normal variables: twenty times as many nodes as are ever used."""
    x = np.arange((mean - 9 * sd).min(), (mean + 9 * sd).max(), sd.min() / 50)
    others = np.delete(np.arange(len(mean)), order)
    last = norm.pdf(x, mean[order[-1]], sd[order[-1]])
    first = norm.sf(x, mean[order[0]], sd[order[0]]) if len(order) == 2 else 1.0
    return np.trapezoid(last * first * norm.cdf(x[:, None], mean[others], sd[others]).prod(axis=1), x)


def test_the_chance_of_a_longer_order_of_normals_is_how_often_it_comes():
    mean, sd, n = np.array([0.5, 0.45, 0.4, 0.0]), np.array([0.02, 0.3, 0.1, 0.5]), 200_000
    draws = mean + sd * np.random.default_rng(0).normal(size=(n, 4))
    came = (np.argsort(-draws, axis=1) == [1, 0, 2, 3]).all(axis=1).mean()

    for order in ([1, 0, 2], [1, 0, 2, 3]):
        p = Normals(mean, sd, len(order)).in_order(np.array([order]))[0]
        assert abs(came - p) < 4.5 * np.sqrt(p * (1 - p) / n)
