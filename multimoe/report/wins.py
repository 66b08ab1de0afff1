"""Who is preferred to whom: wins and Bradley and Terry's strengths, from comparisons and shared requests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from multimoe.examples import Example, Shares
from multimoe.feedback import Rated
from multimoe.report.history import History
from multimoe.report.intervals import Z
from multimoe.report.plot import Look, Plot, nothing

Float = NDArray[np.float64]

PRIOR = 0.1  # inverse variance of a strength, so that who won every time is not infinitely strong
STEPS = 50


@dataclass(frozen=True, eq=False)
class Strengths:
    """Strengths (n,) in logits, and their covariance (n, n)."""

    values: Float
    covariance: Float

    def beats(self, i: int, j: int) -> tuple[float, float, float]:
        """The chance that i is preferred to j, with its 95 % interval."""
        lead = float(self.values[i] - self.values[j])
        spread = float(self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j])
        error = Z * max(spread, 0.0) ** 0.5
        chance, low, high = (float(1 / (1 + np.exp(-x))) for x in (lead, lead - error, lead + error))
        return chance, low, high


def win_matrix(history: History) -> Plot:
    """For every two experts, how likely the one is preferred to the other, and in how many comparisons that is seen."""
    name, title = "wins", "Who is preferred to whom"
    experts = list(history.experts)
    won = counts(history, experts)
    met = (won + won.T) > 0
    seen = [i for i in range(len(experts)) if met[i].any()]
    if not seen:
        why = (
            "Nobody has compared two experts yet: there is no comparison, and no answer of which two experts' parts "
            'were rated by the same person. Send a rating with target "comparison", or rate experts\' parts one by one.'
        )
        return nothing(name, title, why)
    experts, won = [experts[i] for i in seen], won[np.ix_(seen, seen)]
    strengths = fit(won)
    order = np.argsort(-strengths.values, kind="stable")
    pairs = [(int(i), int(j)) for i in order for j in order if i != j]
    chances = {pair: strengths.beats(*pair) for pair in pairs}
    rows = [(experts[i], experts[j], *chances[i, j], float(won[i, j]), float(won[i, j] + won[j, i])) for i, j in pairs]

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        ramp = LinearSegmentedColormap.from_list("report", ["#D55E00", "#f4f1ea", "#0072B2"])
        for (i, j), (chance, low, high) in chances.items():
            y, x = int(np.flatnonzero(order == i)[0]), int(np.flatnonzero(order == j)[0])
            red, green, blue, _ = ramp(chance)
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=(red, green, blue), edgecolor="none"))
            text = f"{chance:.0%}\n{low:.0%}–{high:.0%}\nof {won[i, j] + won[j, i]:.3g}"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="#ffffff" if dark else "#211f1c")
        n, names = len(experts), [experts[i] for i in order]
        axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), ylabel="preferred …", xlabel="… to")
        axes.set_xticks(range(n), names, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), names)
        axes.tick_params(length=0, labelcolor=look.ink)
        axes.spines[:].set_visible(False)

    best = experts[int(order[0])]
    return Plot(
        name,
        title,
        "How likely the expert of the row is preferred to that of the column (Bradley and Terry 1952), with 95 % "
        "intervals and the number of times the two were compared: by comparisons, and where one person rated both "
        "experts' parts of one answer differently (a tie counts half for each). Pairs never compared are inferred "
        "through others.",
        f"Win matrix of {len(experts)} experts, strongest first: {', '.join(experts[int(i)] for i in order)}. "
        f"{best} is preferred most.",
        ("preferred", "to", "probability", "low", "high", "won", "compared"),
        tuple(rows),
        draw,
        1.4 + 0.55 * len(experts),
    )


def counts(history: History, experts: Sequence[str]) -> Float:
    """How often the expert of a row was preferred to that of a column, (n, n); an answer of several counts by parts."""
    won = np.zeros((len(experts), len(experts)))
    at = {name: i for i, name in enumerate(experts)}
    since = history.since
    compared = [e for e in history.examples if since is None or e.created >= since]
    for winner, loser, weight in (*_comparisons(compared), *_shared(history.recent)):
        if winner in at and loser in at:
            won[at[winner], at[loser]] += weight
    return won


def fit(won: Float) -> Strengths:
    """Maximum a posteriori strengths of wins (n, n) by Newton's steps; their sum is 0."""
    n, met = len(won), won + won.T
    values = np.zeros(n)
    curvature = np.eye(n)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-(values[:, None] - values[None, :])))  # (n, n)
        gradient = (won - met * chance).sum(axis=1) - PRIOR * values
        shared = met * chance * (1 - chance)
        curvature = np.diag(shared.sum(axis=1) + PRIOR) - shared
        step = np.linalg.solve(curvature, gradient)
        values = values + np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    covariance: Float = np.linalg.inv(curvature).astype(np.float64)
    return Strengths(values - values.mean(), covariance)


def _comparisons(examples: Sequence[Example]) -> Iterator[tuple[str, str, float]]:
    for example in examples:
        for win in example.wins:
            yield from _parts(win.winners, win.losers)


def _parts(winners: Shares, losers: Shares) -> Iterator[tuple[str, str, float]]:
    """One comparison, shared out among the experts of both sides; who is on both has not beaten itself."""
    for winner, part in winners:
        for loser, other in losers:
            if winner != loser:
                yield winner, loser, part * other


def _shared(rated: Sequence[Rated]) -> Iterator[tuple[str, str, float]]:
    """Two experts' parts of one answer, rated by the same person."""
    for one in rated:
        by_rater: dict[str | None, dict[str, float]] = {}
        for rating in one.ratings:
            if rating.target == "expert" and rating.expert and rating.score is not None:
                by_rater.setdefault(rating.user, {})[rating.expert] = rating.score
        for scores in by_rater.values():
            for (a, x), (b, y) in combinations(scores.items(), 2):
                yield a, b, 1.0 if x > y else 0.5 if x == y else 0.0
                yield b, a, 1.0 if y > x else 0.5 if x == y else 0.0
