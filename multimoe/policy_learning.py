"""Learn the choice itself, not only what each expert is worth: a tilt of utilities that raises the log's own estimate.

The policy is softmax((quality + z . tilt) / temperature) over the experts that were eligible. Its value by importance
weighting or by the doubly robust estimate is differentiable in the tilt and is raised from zero, where nothing changes,
against a decay that holds it there; balance and z losses can be added as in training a sparse model. Only answers of
one expert are learned from: a blend's rating is not that of its first expert alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimoe.config import GateSpec, LearningSpec
from multimoe.examples import Example, eligible
from multimoe.losses import balance_loss, importance_loss, load_loss, z_loss
from multimoe.strategies.plan import NOISE

Float = NDArray[np.float64]
Single = NDArray[np.float32]

CAP = 20.0  # of importance weights: a choice drawn that rarely says too little to be believed
LEAST = 1e-6  # of summed weights: a policy that never does what was logged has no value
STEPS = 60
FARTHEST = 1e3  # below every utility: where an expert stands that may not answer
COLDEST = 0.01  # temperature; below it gradients vanish


@dataclass(frozen=True, eq=False)
class Drawn:
    """n logged choices of one among e experts: `z` (n, q), predicted `quality` (n, e), who was `eligible` (n, e),
    `chosen` (n,), its `reward` in [0, 1] and `propensity`, both (n,)."""

    z: Tensor
    quality: Tensor
    eligible: Tensor
    chosen: Tensor
    reward: Tensor
    propensity: Tensor


def tilted(examples: Sequence[Example], z: Single, quality: Float, column: Mapping[str, int], spec: GateSpec) -> Float:
    """The tilt (e, q) by the objective of `spec`; zero where no answer was drawn by chance and rated.

    `z` (n, q) and the predicted `quality` (n, e) are the examples', `column` says which expert stands in which column.
    """
    drawn = _drawn(examples, z, quality, column)
    if drawn is None:
        return np.zeros((quality.shape[1], z.shape[1]))
    return fit_tilt(drawn, spec.learning, spec.temperature, spec.noise)


def fit_tilt(drawn: Drawn, spec: LearningSpec, temperature: float, noise: float = NOISE) -> Float:
    """Raise the policy's estimated value by L-BFGS; (e, q). Deterministic."""
    tilt = torch.zeros(drawn.quality.shape[1], drawn.z.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([tilt], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(tilt, drawn, spec, temperature, noise)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return tilt.detach().numpy().astype(np.float64)


def objective(tilt: Tensor, drawn: Drawn, spec: LearningSpec, temperature: float, noise: float = NOISE) -> Tensor:
    """Minus the policy's estimated value, plus decay and the losses of `spec`; a scalar.

    `ips` is self-normalised (Swaminathan & Joachims 2015): plain importance weighting rises when the policy only avoids
    what was logged. `doubly-robust` is Dudík et al. 2011 with `quality` as the reward model.
    """
    utility = drawn.quality + drawn.z @ tilt.T
    logits = (utility / max(temperature, COLDEST)).masked_fill(~drawn.eligible, -torch.inf)
    chances = logits.softmax(dim=1)  # (n, e)
    at = torch.arange(len(drawn.chosen))
    weights = (chances[at, drawn.chosen] / drawn.propensity).clamp(max=CAP)
    if spec.objective == "ips":
        value = (weights * drawn.reward).sum() / weights.sum().clamp(min=LEAST)
    else:
        missed = drawn.reward - drawn.quality[at, drawn.chosen]
        value = ((chances * drawn.quality).sum(dim=1) + weights * missed).mean()
    loss = spec.decay * tilt.square().sum() - value
    if spec.balance_loss:
        loss = loss + spec.balance_loss * balance_loss(logits, logits.argmax(dim=1, keepdim=True))
    if spec.importance_loss:
        loss = loss + spec.importance_loss * importance_loss(chances)
    if spec.load_loss and utility.shape[1] > 1:
        loss = loss + spec.load_loss * _load_loss(utility.masked_fill(~drawn.eligible, -FARTHEST), noise)
    if spec.z_loss:
        loss = loss + spec.z_loss * z_loss(logits)
    return loss


def _load_loss(utility: Tensor, noise: float) -> Tensor:
    """Of one expert chosen for each request after noise of this standard deviation, the same at every step."""
    normal = torch.randn(utility.shape, dtype=utility.dtype, generator=torch.Generator().manual_seed(0))
    return load_loss(utility, utility + noise * normal, torch.full_like(utility, noise), 1)


def _drawn(examples: Sequence[Example], z: Single, quality: Float, column: Mapping[str, int]) -> Drawn | None:
    rows, chosen, rewards, propensities = [], [], [], []
    for i, example in enumerate(examples):
        decision = example.decision
        if decision is None or example.reward is None or len(decision.chosen) > 1 or not 0 < decision.propensity < 1:
            continue
        if decision.chosen[0].expert in column:
            rows.append(i)
            chosen.append(column[decision.chosen[0].expert])
            rewards.append(example.reward)
            propensities.append(decision.propensity)
    if not rows:
        return None
    return Drawn(
        z=torch.as_tensor(z[rows], dtype=torch.float64),
        quality=torch.as_tensor(quality[rows], dtype=torch.float64),
        eligible=torch.as_tensor(eligible(examples, column)[rows]),
        chosen=torch.tensor(chosen),
        reward=torch.tensor(rewards, dtype=torch.float64),
        propensity=torch.tensor(propensities, dtype=torch.float64),
    )
