"""Do our full-information routers reach what others measured on the same tables? Five folds, no gate, no bandit.

    python benchmarks/full_information.py --data FOLDER [--only POOL ...]

FOLDER as for closed_loop.py. Prints Markdown: quality in %, for a pair of models RouteLLM's APGR.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pools import MEASURED_BEFORE, Pool, pools

from multimoe.evaluation import Result, judge
from multimoe.trials import Trial, training


def cross_validated(pool: Pool, folds: int = 5) -> dict[str, Result]:
    """Routers that are told everything, each prompt judged once by one that has not seen it."""
    table = pool.table
    fold = np.random.default_rng(0).permutation(table.groups.max() + 1)[table.groups] % folds
    trials = [
        Trial(k, np.flatnonzero(fold != k), np.flatnonzero(fold == k), table.outcomes, every=1) for k in range(folds)
    ]
    runners = training(table, pool.vectors)
    return judge(table, trials, {name: [run(one) for one in trials] for name, run in runners.items()})


def beside_measured(name: str, results: Mapping[str, Result]) -> str:
    """Quality, or for a pair APGR, beside what others measured."""
    before = MEASURED_BEFORE.get(name, {})
    lines = [f"### {name}, five folds\n", "| router | here | measured before |", "|---|---|---|"]
    for router, result in results.items():
        figure = f"{100 * result.quality.value:.2f} ({100 * result.quality.low:.2f} to {100 * result.quality.high:.2f})"
        if result.pair is not None and result.pair.apgr is not None:
            figure = f"APGR {result.pair.apgr.value:.3f} ({result.pair.apgr.low:.3f} to {result.pair.apgr.high:.3f})"
        lines.append(f"| {router} | {figure} | {before.get(router, '')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--only", nargs="*", help="pools, as the headings name them")
    options = arguments.parse_args()
    for pool in pools(options.data):
        if not options.only or pool.name in options.only:
            print(beside_measured(pool.name, cross_validated(pool)), flush=True)


if __name__ == "__main__":
    main()
