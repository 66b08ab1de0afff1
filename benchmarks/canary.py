"""What becomes of canaries of known worth: how often is a good one called worse, and how soon a bad one?

    python benchmarks/canary.py [--runs 400]

Answers are liked with a probability of 0.7; the canary chooses otherwise on a part of requests and so earns a known
gain. It is looked at after every rating, by the product's own rule and bounds.
"""

import argparse
import math
from collections import Counter
from datetime import UTC, datetime
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from multimoe.config import RolloutSpec
from multimoe.evidence import Look, Seen, advantage, compared
from multimoe.journal import Standing, Trial
from multimoe.offpolicy import Estimate
from multimoe.rollout import Z, next_step
from multimoe.sequential import ERROR, log_wealth

Float = NDArray[np.float64]

LIKED = 0.7
PROOF_ERROR = 0.03  # standard error of the off-policy estimate that put the canary there
NOW = datetime(2026, 11, 1, tzinfo=UTC)
LONG = 20_000  # ratings after which a search for the moment of truth is given up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    spec = RolloutSpec()
    print(
        f"{runs} runs each; promoted or withdrawn at most after {spec.canary_ratings} ratings; median (90 %) of ratings"
    )
    print("share  differ    gain | called worse  unconfirmed  promoted | caught as worse after, without an end")
    for share in (0.1, 0.25, 0.5):
        for differ in (0.3, 1.0):
            for gain in (0.0, -0.05, -0.15, 0.05, 0.15):
                print(row(share, differ, gain, spec, runs), flush=True)


def row(share: float, differ: float, gain: float, spec: RolloutSpec, runs: int) -> str:
    ends = Counter(end_of(seed, share, differ, gain, spec) for seed in range(runs))
    told = "  ".join(
        f"{ends[end] / runs:>{width}.1%}" for end, width in (("worse", 12), ("unconfirmed", 11), ("promoted", 8))
    )
    caught = ""
    if gain < 0:
        after = sorted(caught_after(seed, share, differ, gain) for seed in range(min(runs, 100)))
        caught = f"{after[len(after) // 2]:.0f} ({after[int(0.9 * len(after))]:.0f})"
    return f"{share:5.2f}  {differ:6.1f}  {gain:+6.2f} | {told} | {caught}"


def end_of(seed: int, share: float, differ: float, gain: float, spec: RolloutSpec) -> str:
    """How a canary ends that came with a proof: its off-policy estimate happened to clear zero."""
    generator = np.random.default_rng([seed, 1])
    terms, floors, ceilings = advantage(*play(generator, spec.canary_ratings, share, differ, gain), share)
    worse, no_worse = first(-terms, -ceilings, 0.0), first(terms, floors, -spec.margin)
    if min(worse, no_worse) < math.inf:
        return "worse" if worse < no_worse else "promoted"
    standing = Standing(trial=Trial(version=1, share=share, since=NOW))
    last = Look(standing=standing, seen=Seen(requests=1), canary=compared(terms, floors, ceilings, spec.margin))
    step = next_step(last, spec, proven(generator, gain), NOW)
    return "promoted" if step is not None and step.action == "promoted" else "unconfirmed"


def caught_after(seed: int, share: float, differ: float, gain: float) -> float:
    terms, _, ceilings = advantage(*play(np.random.default_rng([seed, 2]), LONG, share, differ, gain), share)
    return first(-terms, -ceilings, 0.0)


def first(terms: Float, floors: Float, bar: float) -> float:
    """Ratings after which the bar is passed; infinite where it never is."""
    passed = np.flatnonzero(log_wealth(terms, floors, bar) >= math.log(1 / ERROR))
    return float(passed[0] + 1) if len(passed) else math.inf


def play(generator: np.random.Generator, n: int, share: float, differ: float, gain: float) -> tuple[Float, Float]:
    """Scores (n,) and ratios (n,)."""
    other, mine = generator.random(n) < differ, generator.random(n) < share
    liked = generator.random(n) < np.where(other & mine, LIKED + gain / differ, LIKED)
    return liked.astype(float), np.where(other, np.where(mine, 1 / share, -1 / (1 - share)), 0.0)


def proven(generator: np.random.Generator, gain: float) -> Estimate:
    """An off-policy estimate of the gain among those that clear zero: only such versions come this far."""
    wide = Z * PROOF_ERROR
    normal = NormalDist()
    value = gain - PROOF_ERROR * normal.inv_cdf(generator.random() * normal.cdf((gain - wide) / PROOF_ERROR))
    return Estimate(value=value, low=value - wide, high=value + wide, effective_sample_size=100, n=200)


if __name__ == "__main__":
    main()
