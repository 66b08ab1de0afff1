"""How good a router is on prompts it did not learn from: its mean quality, and what that costs.

A router is the scores (h, m) that it gives m models for h held-out prompts; it picks the best-scored model among those
that were run on the prompt, and a tie counts as an equal chance of each. Intervals are 95 %. They treat rows of one
prompt, in whichever repetition it was held out, as one observation. They are about routers that learned from this very
table: in simulated worlds of 200 to 1,000 prompts they held the true worth of those on new prompts in 92 to 99 of 100
tables, but the mean worth of routers from other tables of the same world only in 81 to 97.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student  # type: ignore[import-untyped]  # it ships no types

from multimoe.outcomes import Float, Int
from multimoe.outputs import Frozen

CONFIDENCE = 0.95
PREFERENCES = np.array([0.0, *np.logspace(-3, 2, 41), 1e6])  # price of one unit of the dearest model's mean cost


class Figure(Frozen):
    value: float
    low: float
    high: float


class Curve(Frozen):
    """Mean cost a prompt and mean quality from quality alone (first) to cost alone (last), and RouterBench's AIQ."""

    points: tuple[tuple[float, float], ...]
    aiq: float


@dataclass(frozen=True, eq=False)
class Held:
    """One repetition's held-out part: outcomes (h, m) with NaN where not run, `groups` (h,) numbering its prompts.

    `usual_costs` (m,) is what a call of each model cost on average in training, `costs` (h, m) what it really cost.
    """

    groups: Int
    outcomes: Float
    costs: Float | None = None
    usual_costs: Float | None = None


def picks(scores: Float, run: NDArray[np.bool_]) -> Float:
    """The chance (h, m) of each model: all for the best-scored of those run, shared where several are."""
    masked = np.where(run, scores, -np.inf)
    best = run & (masked == masked.max(axis=1, keepdims=True))
    return np.asarray(best / best.sum(axis=1, keepdims=True), np.float64)


def qualities(scores: Float, held: Held) -> Float:
    """What the router's pick was worth on each prompt, (h,)."""
    return np.asarray((picks(scores, ~np.isnan(held.outcomes)) * np.nan_to_num(held.outcomes)).sum(axis=1))


def mean(groups: Sequence[Int], values: Sequence[Float]) -> Figure:
    """Mean of values in [0, 1] over repetitions, each with its prompts' `groups` (h,) and `values` (h,)."""
    return _mean(groups, values, pseudo=(0.0, 0.0, 1.0, 1.0), bounds=(0.0, 1.0))


def mean_difference(groups: Sequence[Int], values: Sequence[Float]) -> Figure:
    """The same for paired differences in [-1, 1]."""
    return _mean(groups, values, pseudo=(-1.0, 1.0), bounds=(-1.0, 1.0))


def _mean(
    groups: Sequence[Int], values: Sequence[Float], pseudo: tuple[float, ...], bounds: tuple[float, float]
) -> Figure:
    """Two-way clustered (Cameron, Gelbach & Miller 2011): prompts may be hard, and a repetition may have learned badly.

    `pseudo` prompts are added (Agresti & Coull 1998; for pairs Bonett & Price 2012), so that twenty right answers of
    twenty do not prove that all will be.
    """
    flat, repetition = np.concatenate(values), np.repeat(np.arange(len(values)), [len(v) for v in values])
    _, prompt = np.unique(np.concatenate(groups), return_inverse=True)
    each = len(flat) / (prompt.max() + 1)  # rows a prompt
    total = len(flat) + each * len(pseudo)
    centre = float((flat.sum() + each * sum(pseudo)) / total)
    residual = flat - centre
    pseudo_sums = [each * (number - centre) for number in pseudo]
    prompts, between_prompts = _spread(np.append(np.bincount(prompt, residual), pseudo_sums))
    repetitions, between_repetitions = _spread(np.bincount(repetition, flat - flat.mean()))
    luck = max(0.0, between_repetitions - float(residual @ residual))  # beyond what its prompts explain
    variance = between_prompts + luck
    freedom = variance**2 / (between_prompts**2 / prompts + luck**2 / max(repetitions, 1))  # Satterthwaite
    radius = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance) / total
    low, high, value = max(centre - radius, bounds[0]), min(centre + radius, bounds[1]), float(flat.mean())
    return Figure(value=value, low=min(low, value), high=max(high, value))


def _spread(sums: NDArray[Any]) -> tuple[int, float]:
    """Degrees of freedom, and the variance of the sum of independent sums (k,)."""
    return len(sums) - 1, len(sums) / max(len(sums) - 1, 1) * float(sums @ sums)


def curve(scores: Sequence[Float], held: Sequence[Held], singles: Float) -> Curve:
    """Sweep the price of cost. `singles` (m, 2) are the mean costs and qualities of the models themselves."""
    dearest = max(float(np.max(part.usual_costs)) for part in held if part.usual_costs is not None)
    spent, earned, count = np.zeros(len(PREFERENCES)), np.zeros(len(PREFERENCES)), 0
    for one, part in zip(scores, held, strict=True):
        if part.costs is None or part.usual_costs is None:
            raise ValueError("a cost curve needs costs")
        run = ~np.isnan(part.outcomes)
        for i, price in enumerate(PREFERENCES):
            chances = picks(one - price * part.usual_costs / max(dearest, 1e-300), run)
            spent[i] += float((chances * part.costs).sum())
            earned[i] += float((chances * np.nan_to_num(part.outcomes)).sum())
        count += len(one)
    points = np.column_stack([spent, earned]) / count
    return Curve(points=tuple(map(tuple, points.tolist())), aiq=aiq(points, singles))


def aiq(points: Float, singles: Float) -> float:
    """RouterBench's average improvement in quality (Hu et al. 2024, arXiv 2403.12031).

    The mean height of the hull of (cost, quality) points (k, 2) between the cheapest and the dearest single model.
    """
    low, high = float(singles[:, 0].min()), float(singles[:, 0].max())
    if high <= low:
        return float(points[:, 1].max())
    costs = np.linspace(low, high, 2001)
    return float(np.trapezoid(hull(points, costs), costs) / (high - low))


def hull(points: Float, costs: Float) -> Float:
    """The quality that mixing between `points` (k, 2) buys at each of `costs`; more money never buys less."""
    upper: list[tuple[float, float]] = []
    for x, y in sorted(map(tuple, points.tolist()), key=lambda point: (point[0], -point[1])):
        if upper and (x == upper[-1][0] or y <= upper[-1][1]):
            continue  # dearer and no better
        while len(upper) > 1 and _below(upper[-2], upper[-1], (x, y)):
            upper.pop()
        upper.append((x, y))
    xs, ys = zip(*upper, strict=True)
    return np.asarray(np.interp(costs, xs, ys))


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Is b on or under the line from a to c?"""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
