"""Fit what the gate learns from ratings: a logistic model of each expert's quality around its card's prior.

Maximum a posteriori with Gaussian priors (ridge) on everything learned, so an unrated expert stays where its card puts
it and ten ratings move a little. It knows neither log nor files, and does not judge what it has fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from multimoe.embedding import Embedding
from multimoe.errors import TooLittleData
from multimoe.examples import Example, Shares, revisions, split, votes
from multimoe.gate import SLOPE, Gate, Learned
from multimoe.messages import MODALITIES, Modality

Float = NDArray[np.float64]

# Strength of each prior: the inverse variance of the parameter, in logits, before any rating.
RIDGE = 0.5  # residuals, for features of mean square norm 1
BIAS_RIDGE = 1.0
PRESENCE_RIDGE = 2.0
SLOPE_RIDGE = 10.0  # around SLOPE
INTERCEPT_RIDGE = 1.0
WEIGHT_CAP = 10.0  # of 1 / propensity: an answer that is rarely drawn stands for at most so many
STEPS = 100
CALIBRATED_ON = 0.2  # the newest share of examples, once there are
FEWEST_CALIBRATED = 50  # labels in it
PLATT_RIDGE = 5.0  # of the calibration's scale around 1 and shift around 0
LEAST_SCALE = 0.1  # calibration may flatten, not turn predictions round


@dataclass(frozen=True, eq=False)
class Fitted:
    """`learned` is calibrated: `uncalibrated` with its logits multiplied by `scale` and moved by `shift`."""

    learned: Learned
    uncalibrated: Learned
    scale: float = 1.0
    shift: float = 0.0


def fit(examples: Sequence[Example], gate: Gate) -> Fitted:
    """Learn from examples in the order of time; of `gate` only roster and cards count. Deterministic.

    Raises TooLittleData when none of them rates an expert of the roster.
    """
    whole = _fit(examples, gate)
    older, newest = split(examples, 1 - CALIBRATED_ON)
    if len(_raters(newest, gate)) < FEWEST_CALIBRATED:
        return Fitted(whole, whole)
    probe = gate.with_learned(_fit(older, gate), -1)
    predicted, scores = predictions(newest, probe)
    counted = votes(_raters(examples, gate))[-len(scores) :]  # among all ratings: few raters may own the newest
    scale, shift = _platt(predicted, scores, counted)
    return Fitted(_rescaled(whole, scale, shift), whole, scale, shift)


def predictions(examples: Sequence[Example], gate: Gate) -> tuple[Float, Float]:
    """Predicted quality and score of every label about an expert of the roster, both (labels,)."""
    known = {expert.name for expert in gate.experts}
    pairs: list[tuple[float, float]] = []
    for example in examples:
        labels = [label for label in example.labels if label.expert in known]
        if labels:
            predicted = gate.qualities(example.embedding, [label.expert for label in labels]).tolist()
            pairs += zip(predicted, (label.score for label in labels), strict=True)
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def calibration_error(predicted: Float, scores: Float, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017) over bins of equal count; 0 is perfect."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [len(part) * abs(predicted[part].mean() - scores[part].mean()) for part in parts]
    return float(sum(gaps) / max(1, len(order)))


@dataclass(frozen=True, eq=False)
class _Data:
    """Requests (n) and their ratings as tensors; `at` are request numbers, `expert` columns of the roster.

    A comparison has two sides, each a sum over its experts: row k of `shares` (sides, experts) belongs to request
    `side_at[k]`; sides 2j and 2j + 1 are winner and loser of comparison j.
    """

    features: dict[Modality, torch.Tensor]  # (n, d_m), centred, mean square norm 1 where present, else 0
    centre: dict[Modality, Float]  # (d_m,)
    scale: dict[Modality, float]
    present: torch.Tensor  # (n, 3)
    cards: torch.Tensor  # (n, experts)
    at: torch.Tensor
    expert: torch.Tensor
    score: torch.Tensor
    weight: torch.Tensor
    side_at: torch.Tensor
    shares: torch.Tensor
    win_weight: torch.Tensor


class _Model(torch.nn.Module):
    """The gate's logits with its parameters free; all start at the prior's mean."""

    def __init__(self, data: _Data) -> None:
        super().__init__()
        experts = data.cards.shape[1]
        self.bias = torch.nn.Parameter(torch.zeros(experts))
        self.presence = torch.nn.Parameter(torch.zeros(experts, len(MODALITIES)))
        self.residuals = torch.nn.ParameterDict(
            {m: torch.nn.Parameter(torch.zeros(experts, f.shape[1])) for m, f in data.features.items()}
        )
        self.slope = torch.nn.Parameter(torch.tensor(SLOPE))
        self.intercept = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, data: _Data) -> torch.Tensor:
        logits = self.intercept + self.bias + self.slope * data.cards + data.present @ self.presence.T  # (n, experts)
        for m, features in data.features.items():
            logits = logits + features @ self.residuals[m].T
        return logits

    def prior(self) -> torch.Tensor:
        """Minus the log of the prior's density, up to a constant."""
        penalty = BIAS_RIDGE * self.bias.square().sum() + PRESENCE_RIDGE * self.presence.square().sum()
        penalty = penalty + RIDGE * sum((r.square().sum() for r in self.residuals.values()), torch.tensor(0.0))
        penalty = penalty + SLOPE_RIDGE * (self.slope - SLOPE).square() + INTERCEPT_RIDGE * self.intercept.square()
        return penalty / 2

    def loss(self, data: _Data) -> torch.Tensor:
        logits = self(data)
        each = binary_cross_entropy_with_logits(logits[data.at, data.expert], data.score, reduction="none")
        sides = (logits[data.side_at] * data.shares).sum(dim=1)  # winner, loser, winner, loser, ...
        wins = -logsigmoid(sides[0::2] - sides[1::2])  # Bradley-Terry
        return (data.weight * each).sum() + (data.win_weight * wins).sum() + self.prior()


def _fit(examples: Sequence[Example], gate: Gate) -> Learned:
    data = _tensors(examples, gate)
    model = _Model(data)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.loss(data)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return _folded(model, data, examples, gate)


def _tensors(examples: Sequence[Example], gate: Gate) -> _Data:
    column = {expert.name: i for i, expert in enumerate(gate.experts)}
    labels = [(i, label) for i, e in enumerate(examples) for label in e.labels if label.expert in column]
    wins = [
        (e, win) for e in examples for win in e.wins if all(name in column for name, _ in (*win.winners, *win.losers))
    ]
    if not labels and not wins:
        raise TooLittleData("no rating is about an expert that is in the catalog today; rate some answers first")
    requests = [e.embedding for e in examples] + [side for _, win in wins for side in (win.request, win.other)]
    counted = votes([label.rater for _, label in labels] + [win.rater for _, win in wins])
    importance = np.array([_importance(examples[i]) for i, _ in labels] + [_importance(e) for e, _ in wins])
    parts = np.array([label.part for _, label in labels] + [1.0] * len(wins))
    weight = _tensor(counted * parts * importance / importance.mean())
    features, centre, scale = _features(requests)
    return _Data(
        features=features,
        centre=centre,
        scale=scale,
        present=_tensor([[float(m in r.vectors) for m in MODALITIES] for r in requests]),
        cards=_tensor(np.stack([gate.cards.scores(r) for r in requests])),
        at=torch.tensor([i for i, _ in labels], dtype=torch.long),
        expert=torch.tensor([column[label.expert] for _, label in labels], dtype=torch.long),
        score=_tensor([label.score for _, label in labels]),
        weight=weight[: len(labels)],
        side_at=torch.arange(len(examples), len(requests)),
        shares=_shares([side for _, win in wins for side in (win.winners, win.losers)], column),
        win_weight=weight[len(labels) :],
    )


def _features(
    requests: Sequence[Embedding],
) -> tuple[dict[Modality, torch.Tensor], dict[Modality, Float], dict[Modality, float]]:
    """Centred, since a frozen encoder's vectors share a large mean that says nothing about the request."""
    features: dict[Modality, torch.Tensor] = {}
    centre: dict[Modality, Float] = {}
    scale: dict[Modality, float] = {}
    for m in MODALITIES:
        here = [i for i, request in enumerate(requests) if m in request.vectors]
        if not here:
            continue
        raw = np.stack([requests[i].vectors[m].features for i in here]).astype(np.float64)  # (here, d_m)
        centre[m] = raw.mean(axis=0)
        scale[m] = 1 / max(float(np.sqrt(((raw - centre[m]) ** 2).sum(axis=1).mean())), 0.05)
        table = np.zeros((len(requests), raw.shape[1]))
        table[here] = (raw - centre[m]) * scale[m]
        features[m] = _tensor(table)
    return features, centre, scale


def _folded(model: _Model, data: _Data, examples: Sequence[Example], gate: Gate) -> Learned:
    """Parameters for the features as they come: residual . (f - centre) * scale, with the constant in `presence`."""
    presence = _array(model.presence)
    residuals: dict[Modality, Float] = {}
    for m in data.features:
        residuals[m] = _array(model.residuals[m]) * data.scale[m]
        presence[:, MODALITIES.index(m)] -= residuals[m] @ data.centre[m]
    rated = np.bincount(data.expert.numpy(), minlength=len(gate.experts))
    return Learned(
        experts=tuple(expert.name for expert in gate.experts),
        bias=_array(model.bias),
        presence=presence,
        residuals=residuals,
        rated=rated.astype(np.int64),
        intercept=float(model.intercept.detach()),
        slope=float(model.slope.detach()),
        revisions=revisions(example.embedding for example in examples),
    )


def _raters(examples: Sequence[Example], gate: Gate) -> list[str | None]:
    """Of every label about an expert of the roster."""
    known = {expert.name for expert in gate.experts}
    return [label.rater for example in examples for label in example.labels if label.expert in known]


def _importance(example: Example) -> float:
    """1 / propensity, capped: what was rarely drawn stands for all the requests where it was not."""
    return min(WEIGHT_CAP, 1 / max(example.decision.propensity, 1e-9)) if example.decision else 1.0


def _shares(sides: Sequence[Shares], column: dict[str, int]) -> torch.Tensor:
    table = torch.zeros(len(sides), len(column))
    for k, side in enumerate(sides):
        for expert, part in side:
            table[k, column[expert]] = part
    return table


def _platt(predicted: Float, scores: Float, counted: Float) -> tuple[float, float]:
    """Scale and shift of the logits that fit `scores` best (Platt 1999), shrunk towards 1 and 0.

    Newton's steps, halved while they lead uphill: far from the optimum a whole one overshoots.
    """
    logits = np.log(predicted / (1 - predicted))
    design = np.stack([logits, np.ones_like(logits)], axis=1)  # (labels, 2)
    prior = np.array([1.0, 0.0])

    def loss(at: Float) -> float:
        z = design @ at
        each = np.logaddexp(0, z) - scores * z
        return float(counted @ each + PLATT_RIDGE / 2 * ((at - prior) ** 2).sum())

    at = prior
    for _ in range(25):
        p = 1 / (1 + np.exp(-design @ at))
        gradient = design.T @ (counted * (p - scores)) + PLATT_RIDGE * (at - prior)
        curvature = (design * (counted * p * (1 - p))[:, None]).T @ design + PLATT_RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(at - step) > loss(at) and np.abs(step).max() > 1e-6:
            step = step / 2
        at = at - step
    return float(max(at[0], LEAST_SCALE)), float(at[1])


def _rescaled(learned: Learned, scale: float, shift: float) -> Learned:
    return replace(
        learned,
        bias=learned.bias * scale,
        presence=learned.presence * scale,
        residuals={m: table * scale for m, table in learned.residuals.items()},
        intercept=learned.intercept * scale + shift,
        slope=learned.slope * scale,
    )


def _tensor(values: Sequence[float] | Sequence[Sequence[float]] | Float) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def _array(tensor: torch.Tensor) -> Float:
    return tensor.detach().numpy().astype(np.float64)
