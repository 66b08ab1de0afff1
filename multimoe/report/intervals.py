"""95 % intervals of shares."""

import math
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Of a share of n > 0 (Wilson 1927); for scores between 0 and 1 it is wider than need be."""
    share, room = successes / n, Z**2 / n
    middle = (share + room / 2) / (1 + room)
    half = Z / (1 + room) * math.sqrt(share * (1 - share) / n + room / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)
