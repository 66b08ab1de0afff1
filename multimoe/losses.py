"""Losses that go with the published routers, as functions of a batch's logits and choices. They weigh nothing: the

caller multiplies. n tokens or requests, e experts; every input is a tensor whose gradient is wanted, or a choice.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot, softmax
from torch.special import log_ndtr

EPSILON = 1e-10  # so that a batch nobody was chosen for has a loss


def importance_loss(gates: Tensor) -> Tensor:
    """Squared coefficient of variation of each expert's summed weight (Shazeer et al. 2017, arXiv 1701.06538, eq. 6-7).

    `gates` (n, e) are the weights of each expert in each output, 0 where it was not chosen. Two-level gating (appendix
    B) has the same loss on the products of both levels' gates.
    """
    return _variation(gates.sum(dim=0))


def load_loss(clean: Tensor, noisy: Tensor, sd: Tensor, k: int) -> Tensor:
    """Squared coefficient of variation of each expert's expected load (Shazeer et al. 2017, appendix A, eq. 8-11).

    Smooth where counts are not: the probability that an expert is among the k largest if its own noise alone is drawn
    again. `clean`, `noisy` and the noise's `sd` are (n, e), with k < e.
    """
    return _variation(expected_load(clean, noisy, sd, k))


def expected_load(clean: Tensor, noisy: Tensor, sd: Tensor, k: int) -> Tensor:
    """Load(X) of equation 10, (e,)."""
    best = noisy.topk(k + 1, dim=1).values  # (n, k + 1)
    among = noisy >= best[:, k - 1 : k]
    to_beat = torch.where(among, best[:, k : k + 1], best[:, k - 1 : k])  # k-th largest of the others, (n, e)
    load: Tensor = log_ndtr((clean - to_beat) / sd).exp().sum(dim=0)
    return load


def balance_loss(logits: Tensor, choices: Tensor) -> Tensor:
    """e times the sum over experts of part of tokens times mean probability (Switch, arXiv 2101.03961, eq. 4-6).

    `choices` (n, k) are expert numbers, -1 for none; with k > 1 a token is part of k experts' (as in Mixtral; GShard's
    is this of first choices, over e squared). 1 for even routing to one expert, k for k.
    """
    e = logits.shape[1]
    part = one_hot(choices + 1, e + 1)[:, :, 1:].sum(dim=1).to(logits.dtype).mean(dim=0)  # (e,)
    return e * (part * softmax(logits, dim=1).mean(dim=0)).sum()


def z_loss(logits: Tensor) -> Tensor:
    """Mean squared log of the softmax's denominator: keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return logits.logsumexp(dim=1).square().mean()


def mixture_loss(logits: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    """-log sum_i p_i exp(-|d - o_i|^2 / 2), mean over the batch (Jacobs, Jordan, Nowlan & Hinton 1991, eq. 1.3).

    For experts that are trained along with the gate: the catalog does not offer it, since ours are frozen, and a rating
    says how good an answer was and not what the right one would have been.

    p = softmax(logits) (n, e); `outputs` o (n, e, d); `target` d (n, d). Each expert is drawn to the target as much as
    it is responsible for it: dE/do_i = -h_i (d - o_i), dE/dlogit_i = p_i - h_i, with h of `posteriors`.
    """
    return -_joint(logits, outputs, target).logsumexp(dim=1).mean()


def posteriors(logits: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    """h_i, how probable it is that expert i made the target, (n, e) (same, after eq. 1.5): the E step of EM."""
    return softmax(_joint(logits, outputs, target), dim=1)


def _joint(logits: Tensor, outputs: Tensor, target: Tensor) -> Tensor:
    """log p_i - |d - o_i|^2 / 2, (n, e)."""
    return log_softmax(logits, dim=1) - (target[:, None, :] - outputs).square().sum(dim=2) / 2


def _variation(values: Tensor) -> Tensor:
    return values.var(correction=0) / (values.mean().square() + EPSILON)
