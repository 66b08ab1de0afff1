"""RouteLLM's measures of a router between a weak and a strong model (Ong et al. 2024, arXiv 2406.18665, section 3.3).

PGR, the performance gap recovered, is 0 where all prompts go to the weak model and 1 where all go to the strong one. A
router is the curve of PGR over the share of strong calls, spent where it scores the strong one's lead highest.
"""

from collections.abc import Sequence

import numpy as np

from multimoe.metrics import CONFIDENCE, Held
from multimoe.outcomes import Float, Int
from multimoe.outputs import Frozen

FRACTIONS = 10  # steps of the share of strong calls
GRID = np.linspace(0, 1, 1001)  # shares of strong calls at which the exact curve is looked at
RESAMPLES = 400  # of prompts, for intervals


class Ratio(Frozen):
    """Without an interval where the strong model's lead, by which it is divided, may be nothing."""

    value: float
    low: float | None = None
    high: float | None = None


class Pair(Frozen):
    """`apgr` is the mean of PGR; `cpt50` and `cpt80` the percentages of strong calls at which it reaches 50 and 80 %.

    These are interpolated between ten steps as RouteLLM's own code does it, which is sound only where the curve rises
    throughout; `cpt50_exact` and `cpt80_exact` are where it first gets there. All None where the model that was better
    in training is not better on the held-out prompts.
    """

    strong: str
    apgr: Ratio | None = None
    cpt50: Ratio | None = None
    cpt80: Ratio | None = None
    cpt50_exact: float | None = None
    cpt80_exact: float | None = None


def pair(scores: Sequence[Float], held: Sequence[Held], models: Sequence[str], strong: int) -> Pair:
    """Scores (h, 2) in each repetition; `strong` is the number of the model that was better in training.

    Only prompts on which both were run count. Intervals are of prompts drawn again (bootstrap).
    """
    both = [_both_run(one, part, strong) for one, part in zip(scores, held, strict=True)]
    sums = _sums([(groups, gap, calls(lead)) for groups, gap, lead in both if len(gap)])
    if sums[:, 1].sum() <= 0:
        return Pair(strong=models[strong])
    intervals = zip(_measures(sums.sum(axis=0, keepdims=True))[0].tolist(), *_intervals(sums), strict=True)
    apgr, cpt50, cpt80 = (Ratio(value=value, low=low, high=high) for value, low, high in intervals)
    curve = _exact_curve([(gap, lead) for _, gap, lead in both if len(gap)])
    crossings = {"cpt50_exact": first_crossing(curve, 0.5), "cpt80_exact": first_crossing(curve, 0.8)}
    return Pair(strong=models[strong], apgr=apgr, cpt50=cpt50, cpt80=cpt80, **crossings)


def calls(lead: Float) -> Float:
    """Which of (b,) prompts go to the strong model at each of the thresholds, from none to all, (b, 11).

    Thresholds are the deciles of the score, as RouteLLM's `evaluate` has them; prompts of one score go together.
    """
    thresholds = np.quantile(lead, np.linspace(1, 0, FRACTIONS + 1))
    called = lead[:, None] >= thresholds
    called[:, 0] = lead > thresholds[0]
    return called.astype(np.float64)


def first_crossing(curve: Float, level: float) -> float | None:
    """Percentage of strong calls at which `curve` over GRID first reaches `level`."""
    reached = np.flatnonzero(curve >= level - 1e-9)
    if not len(reached):
        return None
    before = max(int(reached[0]) - 1, 0)
    return 100 * float(np.interp(level, curve[before : before + 2], GRID[before : before + 2]))


def _both_run(scores: Float, held: Held, strong: int) -> tuple[Int, Float, Float]:
    """Where both models were run: prompts, the strong one's lead in outcome, and in score, all (b,)."""
    both = ~np.isnan(held.outcomes).any(axis=1)
    gap, lead = (matrix[both, strong] - matrix[both, 1 - strong] for matrix in (held.outcomes, scores))
    return held.groups[both], gap, lead


def _sums(parts: Sequence[tuple[Int, Float, Float]]) -> Float:
    """A row a prompt: how often held out, its gap, and at each threshold calls and gap called, (p, 2 + 2 * 11)."""
    if not parts:
        return np.zeros((1, 4 + 2 * FRACTIONS))
    groups, gap, called = (np.concatenate(column) for column in zip(*parts, strict=True))
    _, groups = np.unique(groups, return_inverse=True)
    columns = np.column_stack([np.ones(len(gap)), gap, called, called * gap[:, None]])
    return np.stack([np.bincount(groups, column) for column in columns.T], axis=1)


def _measures(sums: Float) -> Float:
    """APGR, CPT50 and CPT80 of each row of added up `_sums`, (k, 3): areas by trapezoids, `numpy.interp`, as there."""
    share = sums[:, 2 : 3 + FRACTIONS] / sums[:, :1]  # both from 0 to 1, (k, 11)
    recovered = sums[:, 3 + FRACTIONS :] / sums[:, 1:2]
    area = np.trapezoid(recovered, share, axis=1)
    crossings = [np.interp([0.5, 0.8], pgr, calls) for pgr, calls in zip(recovered, share, strict=True)]
    return np.column_stack([area, 100 * np.array(crossings)])


def _intervals(sums: Float) -> tuple[list[float | None], list[float | None]]:
    """Low and high of each measure; None where the gap is not surely above 0. Resamples are Poisson's (Hanley 2006)."""
    generator = np.random.default_rng(0)
    drawn = np.stack([generator.poisson(1.0, len(sums)).astype(np.float64) @ sums for _ in range(RESAMPLES)])
    tail = (1 - CONFIDENCE) / 2
    if np.quantile(drawn[:, 1], tail) <= 0:
        return [None] * 3, [None] * 3
    low, high = np.quantile(_measures(drawn[drawn[:, 1] > 0]), [tail, 1 - tail], axis=0).tolist()
    return low, high


def _exact_curve(parts: Sequence[tuple[Float, Float]]) -> Float:
    """PGR at each share of GRID from gaps and scores (b,), every prompt a step, over all repetitions."""
    recovered, total = np.zeros_like(GRID), 0.0
    for gap, lead in parts:
        order = np.argsort(-lead, kind="stable")
        last = np.flatnonzero(np.append(np.diff(lead[order]) != 0, True))  # of each run of ties, called in equal shares
        steps, shares = np.cumsum(gap[order])[last], (last + 1) / len(lead)
        recovered += np.interp(GRID, np.append(0.0, shares), np.append(0.0, steps))
        total += float(gap.sum())
    return recovered / total
