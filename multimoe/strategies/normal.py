"""Independent normal variables: how likely is each to be the largest, and some to be the largest in a given order?

Drawing one per expert and taking the largest is noisy top-k gating (Shazeer et al. 2017) where all have one scale, and
Thompson sampling where the scale is what is not known about each expert. One-dimensional integrals make the propensity
of such a choice exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

Float = NDArray[np.float64]
Int = NDArray[np.intp]

REACH = 6.3  # standard deviations; beyond them lies 1.5e-10
LEAST_TAIL = 1e-18  # a distribution function is never less, so that products of 16 can be divided by their factors
NEGLIGIBLE = 1e-10  # probability
STEP = 0.8  # of even nodes, in scales of the largest
MOST_EVEN = 200  # nodes; beyond, panels that are narrow only where they must be are quicker
NODES = 10  # a panel
PANEL = 2.0  # widest panel, in standard deviations of the narrowest variable that varies there
AT_ONCE = 20_000  # numbers in one array that fits the cache


@dataclass(frozen=True, eq=False)
class Normals:
    """n >= 1 variables of which the `k` largest are asked for; `mean` and `sd` > 0 are (n,).

    All that is integrated is so over the same nodes x, where the k-th largest may lie. Absolute error under 1e-9 for up
    to 30 variables.
    """

    mean: Float
    sd: Float
    k: int

    def largest(self) -> Float:
        """Probability (n,) of each being the largest."""
        chances: Float = (self._density / self._below) @ self._all_below
        return np.clip(chances, 0.0, 1.0)

    def in_order(self, orders: Int) -> Float:
        """Probability (choices,) that the columns of each of `orders` (choices, k) are the k largest, in that order.

        P(X_a > X_b > all others) is the integral of f_b(x) (1 - F_a(x)) prod_j F_j(x) over x; longer orders nest
        further integrals of the same kind, each from x upwards.
        """
        below, density = self._below, self._density
        chances = self._all_below / below[orders].prod(axis=1)  # (choices, nodes): of all others
        if self.k > 1:
            above = 1 - below[orders[:, 0]]  # of those before being larger than x and in order
            for column in orders.T[1:-1]:
                above = _integrals_from(above * density[column], self._nodes[2])
            chances *= above
        whole: Float = (chances * density[orders[:, -1]]).sum(axis=1)
        return np.clip(whole, 0.0, 1.0)

    @cached_property
    def _nodes(self) -> tuple[Float, Float, Float]:
        if self.k > 2:
            return _panels(self.mean, self.sd, self.k)
        return _nodes(self.mean, self.sd, self.k)

    @cached_property
    def _away(self) -> Float:
        """How far nodes are from means, in standard deviations (n, nodes)."""
        away: Float = (self._nodes[0] - self.mean[:, None]) / self.sd[:, None]
        return away

    @cached_property
    def _below(self) -> Float:
        """Distribution functions (n, nodes)."""
        tails: Float = np.maximum(ndtr(self._away), LEAST_TAIL)
        return tails

    @cached_property
    def _all_below(self) -> Float:
        """The product of all distribution functions, times the nodes' weights, (nodes,)."""
        product: Float = self._below.prod(axis=0) * self._nodes[1]
        return product

    @cached_property
    def _density(self) -> Float:
        """(n, nodes)."""
        densities: Float = np.exp(-0.5 * self._away * self._away) / (self.sd[:, None] * np.sqrt(2 * np.pi))
        return densities


def in_order_by_row(mean: Float, sd: Float, orders: Int) -> Float:
    """Probability (b,) that in each row of `mean` and `sd` (b, n) the k columns of `orders` (b, k), k at most 2, are
    the k largest, in that order: `Normals.in_order` of many, to about 1e-9.

    Rows in which standard deviations differ much take longer.
    """
    low, high = _ends_by_row(mean, sd, orders)
    nodes = 2 + ((high - low) / _step(sd)).astype(np.intp)
    begin, length = (low[:, None] - mean) / sd, (high - low)[:, None] / sd  # (b, n), in standard deviations
    chances = np.zeros(len(mean))
    for rows in _alike(nodes, mean.shape[1]):
        at, first, last = np.arange(len(rows)), orders[rows, 0], orders[rows, -1]
        way = np.linspace(0, 1, nodes[rows].max())
        z = length[rows, :, None] * way  # (rows, n, nodes)
        z += begin[rows, :, None]
        if orders.shape[1] == 2:
            z[at, first] *= -1  # this one is above where the last of the order is, all others are below
        density = np.exp(-0.5 * z[at, last] ** 2)
        ndtr(z, out=z)
        z[at, last] = density
        scale = length[rows, last] / (np.sqrt(2 * np.pi) * (len(way) - 1))
        chances[rows] = np.trapezoid(z.prod(axis=1), axis=1) * scale
    return np.clip(chances, 0.0, 1.0)


def _ends_by_row(mean: Float, sd: Float, orders: Int) -> tuple[Float, Float]:
    """Between them (b,) the last of each of `orders` (b, k) lies, if those are the k largest: beyond, there is no
    chance of it, or of all others being below."""
    last, first = orders[:, -1:], orders[:, :1]
    middle, reach = (np.take_along_axis(a, last, axis=1)[:, 0] for a in (mean, REACH * sd))
    high = np.minimum(middle + reach, np.take_along_axis(mean + REACH * sd, first, axis=1)[:, 0])
    below = mean
    if orders.shape[1] == 2:
        below = mean.copy()
        np.put_along_axis(below, first, -np.inf, axis=1)
    low = np.maximum(_lowest(below, sd), middle - reach)
    return np.minimum(low, high), high


def _lowest(mean: Float, sd: Float) -> Float:
    """Below it (b,) the largest of each row of variables (b, n) never lies: of m of them each would have to be where it
    is with probability NEGLIGIBLE^(1/m)."""
    n = mean.shape[1]
    counts = [m for m in (1, 2, 4, 8, 16) if m <= n]
    bounds = [np.partition(mean + sd * ndtri(NEGLIGIBLE ** (1 / m)), n - m, axis=1)[:, n - m] for m in counts]
    lowest: Float = np.max(bounds, axis=0)
    return lowest


def _nodes(mean: Float, sd: Float, k: int) -> tuple[Float, Float, Float]:
    """Nodes and weights (nodes,) for integrals over all x where the k-th largest may lie, and the widths of panels.

    Even ones are best: the error of the trapezoidal rule vanishes for such integrals once its step is short enough.
    """
    low, high = _support(mean, sd, k)
    count = 2 + int((high - low) / _step(sd))
    if count > MOST_EVEN:
        return _panels(mean, sd, k)
    x = np.linspace(low, high, count)
    return x, np.full(count, (high - low) / (count - 1)), np.zeros(0)


def _step(sd: Float) -> Float:
    """The distance of even nodes, (...) for (..., n).

    The largest of m alike varies over about sd / sqrt(2 log m), the scale of its limiting extreme value distribution,
    for which the trapezoidal rule errs by exp(-pi^2 scale / step). Normal variables are smoother than their limit: for
    up to 30, alike or not, 1e-10 is the most that is measured. Here the m narrowest count as if alike.
    """
    steps: Float = STEP * (np.sort(sd, axis=-1) * _narrowing(sd.shape[-1])).min(axis=-1)
    return steps


@lru_cache(maxsize=64)
def _narrowing(n: int) -> Float:
    """1 / sqrt(2 log m) of m = 1, ..., n."""
    narrowing: Float = 1 / np.sqrt(2 * np.log(np.maximum(3, np.arange(1, n + 1))))
    return narrowing


def _support(mean: Float, sd: Float, k: int) -> tuple[float, float]:
    """Below it, more than k variables would be larger."""
    return float(np.sort(mean - REACH * sd)[-k]), float((mean + REACH * sd).max())


def _panels(mean: Float, sd: Float, k: int) -> tuple[Float, Float, Float]:
    """Gauss-Legendre nodes and weights, both (panels * NODES,), and the widths (panels,) of their panels.

    Panels are narrow where narrow variables vary: their edges lie evenly on an axis stretched by the steepest of them,
    so one that begins before a narrow variable does may reach `PANEL` of its standard deviations into it.
    """
    low, high = mean - (REACH + PANEL) * sd, mean + (REACH + PANEL) * sd
    ends = np.unique(np.clip(np.concatenate([low, high]), *_support(mean, sd, k)))
    middle = (ends[1:] + ends[:-1]) / 2
    varies = (low[:, None] < middle) & (middle < high[:, None])  # (n, stretches)
    steepness = (varies / sd[:, None]).max(axis=0)
    stretched = np.concatenate([[0.0], np.cumsum(steepness * np.diff(ends))])
    panels = int(np.ceil(stretched[-1] / PANEL)) + 1
    edges = np.interp(np.linspace(0, stretched[-1], panels + 1), stretched, ends)
    nodes, weights, _ = _legendre()
    widths = np.diff(edges)
    x = edges[:-1, None] + widths[:, None] * nodes  # (panels, NODES)
    return x.ravel(), (widths[:, None] * weights).ravel(), widths


def _integrals_from(values: Float, widths: Float) -> Float:
    """Integral of `values` (rows, nodes) from each node upwards, (rows, nodes)."""
    _, weights, inside = _legendre()
    panels = values.reshape(len(values), len(widths), NODES) * widths[:, None]
    whole = panels @ weights  # (rows, panels)
    later = np.cumsum(whole[:, ::-1], axis=1)[:, ::-1] - whole
    upwards: Float = (later[:, :, None] + panels @ inside.T).reshape(values.shape)
    return np.maximum(upwards, 0.0)


def _alike(nodes: Int, n: int) -> Iterator[Int]:
    """Rows that need about as many nodes, a part at a time."""
    order = np.argsort(nodes, kind="stable")
    while len(order):
        size = max(1, AT_ONCE // int(n * nodes[order[-1]]))
        yield order[-size:]
        order = order[:-size]


@lru_cache(maxsize=1)
def _legendre() -> tuple[Float, Float, Float]:
    """Nodes and weights (NODES,) on [0, 1], and `inside` (NODES, NODES): values -> integrals from a node to 1."""
    raw, raw_weights = np.polynomial.legendre.leggauss(NODES)
    vandermonde = np.polynomial.legendre.legvander(raw, NODES - 1)
    primitives = [np.polynomial.legendre.legint(np.eye(NODES)[p]) for p in range(NODES)]
    upper = [np.polynomial.legendre.legval(1.0, c) - np.polynomial.legendre.legval(raw, c) for c in primitives]
    inside = np.stack(upper, axis=1) @ np.linalg.inv(vandermonde) / 2
    return (raw + 1) / 2, raw_weights / 2, inside
