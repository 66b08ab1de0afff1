"""Which choices the log can say anything about: how likely each expert was to be drawn where it could have been."""

from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from multimoe.report.history import History
from multimoe.report.plot import BLUE, ORANGE, Look, Plot, bare, nothing
from multimoe.report.routes import NO_REQUESTS

Float = NDArray[np.float64]

FEWEST_DRAWN = 5.0  # times that an expert must be expected first in the whole log, for anything to be known of it
PER_DECADE = 3  # bars


def overlap(history: History) -> Plot:
    """How likely every eligible expert, and the serving gate's own first choice, was to be drawn first."""
    name, title = "overlap", "What the log can answer: propensities"
    requests = history.requests
    if not requests:
        return nothing(name, title, NO_REQUESTS)
    chances = np.array([c.probability for request in requests for c in request.decision.considered])
    own = np.array([_own_first_choice(history, i) for i in range(len(requests))])
    blind = min(1.0, FEWEST_DRAWN / len(requests))
    edges = _edges(blind)
    counts, own_counts = _counts(chances, edges), _counts(own, edges)
    never = float((own < blind).mean())
    rows = [
        (float(low), float(high), int(n), int(m), "no" if high <= blind * (1 + 1e-9) else "yes")
        for low, high, n, m in zip(edges[:-1], edges[1:], counts, own_counts, strict=True)
    ]

    def draw(figure: Figure, look: Look) -> None:
        axes = bare(figure.subplots(), look)
        at = np.arange(len(counts))
        axes.bar(at - 0.2, counts / counts.sum(), 0.4, color=BLUE, label="every expert that could have answered")
        axes.bar(
            at + 0.2, own_counts / own_counts.sum(), 0.4, color=ORANGE, label="whom the serving gate would ask first"
        )
        zone = sum(high <= blind * (1 + 1e-9) for high in edges[1:]) - 0.5
        axes.axvspan(-0.6, zone, color=look.soft, alpha=0.18, linewidth=0)
        axes.text(-0.5, axes.get_ylim()[1] * 0.97, "not identifiable", va="top", color=look.ink)
        axes.set_xticks(at, [_range(low, high) for low, high in pairwise(edges)], rotation=30)
        axes.set(xlim=(-0.6, len(counts) - 0.4), xlabel="probability of being drawn first", ylabel="share of cases")
        axes.legend()

    return Plot(
        name,
        title,
        f"The chance that an expert was drawn first, as logged with every decision. Below {blind:.2g} it is expected "
        f"first in fewer than {FEWEST_DRAWN:g} of {len(requests)} requests: what it is worth there cannot be told from "
        "this log, whatever the estimator (shaded). Whom the serving gate would ask first lies in there for "
        f"{never:.0%} of requests. More exploration (gate.explore) moves cases to the right.",
        f"Histogram of propensities with the zone below {blind:.2g} shaded as not identifiable; "
        f"{(chances < blind).mean():.0%} of all experts' cases and {never:.0%} of the serving gate's own choices are "
        "in that zone.",
        ("from", "to", "experts' cases", "gate's first choices", "identifiable"),
        tuple(rows),
        draw,
    )


def _own_first_choice(history: History, number: int) -> float:
    """How likely the log was to draw first whom the serving gate would now."""
    request = history.requests[number]
    names, plan = history.gate.replan(request.embedding, request.decision)
    first = names[plan.greedy[0]]
    return next(c.probability for c in request.decision.considered if c.expert == first)


def _edges(blind: float) -> Float:
    """0, then what is not identifiable, then bars of equal factors up to 1."""
    bars = max(1, round(-np.log10(blind) * PER_DECADE))
    return np.concatenate([[0.0], np.geomspace(blind, 1.0, bars + 1) if blind < 1 else [1.0]])


def _counts(values: Float, edges: Float) -> Float:
    """How many lie in each bar; a value on an edge belongs to the bar above, 1 to the last."""
    at = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(at, minlength=len(edges) - 1).astype(np.float64)


def _range(low: float, high: float) -> str:
    return f"{low:.2g}–{high:.2g}"
