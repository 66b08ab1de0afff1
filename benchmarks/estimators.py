"""Do the off-policy estimators' 95 % intervals cover the truth as often as they say, and do others compute the same?

    python benchmarks/estimators.py    # coverage over 500 worlds of known value, then values beside both oracles'

A world has four experts, ten kinds of requests and ordered choices of one or up to two experts. A gate that explores a
share of its requests logged it; valued is another one, whose rewards are known exactly. The reward model that the
doubly robust estimate is given is wrong by 0.15 on average, the direct method's is right: it has no other defence.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from multimoe.offpolicy import (
    Estimate,
    Log,
    Replay,
    clipped_ips,
    direct_method,
    doubly_robust,
    doubly_robust_gain,
    ips,
    snips,
    snips_gain,
)

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from logged_world import Played, World
from oracles import by_obp, by_wabbit

SIZES = (300, 1000, 4000)
EXPLORED = (0.6, 0.3, 0.1)
TOP_K = (1, 2)

ESTIMATORS: dict[str, Callable[[Log, Replay], Estimate]] = {
    "ips": ips,
    "clipped": clipped_ips,
    "snips": snips,
    "direct": direct_method,
    "robust": doubly_robust,
}
GAINS = {"snips gain": snips_gain, "robust gain": doubly_robust_gain}


@dataclass(frozen=True)
class Cell:
    """What became of every world's interval at one sample size, overlap and length of choices."""

    top_k: int
    explore: float
    n: int
    size: float  # effective sample size, mean
    covered: dict[str, float]
    width: dict[str, float]


def main() -> None:
    arguments = _arguments()
    cells = []
    with Console(stderr=True).status("playing worlds"):
        for cell in coverage(arguments.worlds):
            cells.append(cell)
    Console().print(_table(cells, arguments.worlds))
    if arguments.csv:
        _write(cells, arguments.csv)
    Console().print(_oracles())


def coverage(count: int) -> Iterator[Cell]:
    for top_k in TOP_K:
        for explore in EXPLORED:
            worlds = [World(seed, kinds=10, top_k=top_k, explore=explore) for seed in range(count)]
            for n in SIZES:
                yield _cell(worlds, top_k, explore, n)


def _cell(worlds: list[World], top_k: int, explore: float, n: int) -> Cell:
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in (*ESTIMATORS, *GAINS)}
    sizes = []
    for seed, world in enumerate(worlds):
        played = world.play(n, np.random.default_rng([seed, n]))
        truth, before = world.value(world.candidate), world.value(world.champion)
        for name, estimate in _estimates(world, played).items():
            true = truth - before if name in GAINS else truth
            found[name].append((estimate.low <= true <= estimate.high, estimate.high - estimate.low))
            sizes.append(estimate.effective_sample_size)
    means = {name: np.mean(pairs, axis=0) for name, pairs in found.items()}
    covered = {name: float(mean[0]) for name, mean in means.items()}
    return Cell(top_k, explore, n, float(np.mean(sizes)), covered, {name: float(m[1]) for name, m in means.items()})


def _estimates(world: World, played: Played) -> dict[str, Estimate]:
    policy = world.replay(world.candidates, played)
    right = world.replay(world.candidates, played, world.reward)
    champion = world.replay(world.champions, played)
    values = {name: f(played.log, right if f is direct_method else policy) for name, f in ESTIMATORS.items()}
    return values | {name: f(played.log, policy, champion) for name, f in GAINS.items()}


def _table(cells: list[Cell], count: int) -> Table:
    """Bold where it is not between 93 and 97 %."""
    title = f"intervals that cover the truth, % of {count} worlds; top k, share explored, rows, and what they are worth"
    table = Table("k", "ε", "n", "ESS", *cells[0].covered, title=title, padding=0)
    for cell in cells:
        shares = [_marked(share) for share in cell.covered.values()]
        table.add_row(f"{cell.top_k}", f"{cell.explore}", f"{cell.n}", f"{cell.size:.0f}", *shares)
    return table


def _marked(share: float) -> str:
    return f"{share * 100:.1f}" if 0.93 <= share <= 0.97 else f"[bold]{share * 100:.1f}[/bold]"


def _write(cells: list[Cell], path: Path) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["top_k", "explored", "n", "effective_sample_size", "estimator", "covered", "mean_width"])
        for c in cells:
            for name, share in c.covered.items():
                row = [c.top_k, c.explore, c.n, round(c.size, 1), name, round(share, 4), round(c.width[name], 4)]
                out.writerow(row)


def _oracles() -> Table:
    """Values of a policy with chance beside obp's, of one without beside Vowpal Wabbit's."""
    world = World(0, kinds=10, top_k=2, explore=0.6)
    played = world.play(4000, np.random.default_rng(0))
    policy, wanted = world.replay(world.candidates, played), world.candidates.argmax(axis=1)
    certain = Replay((wanted[played.kinds] == played.choices).astype(float))
    table = Table("estimator", "ours", "theirs", "whose", title="one log of 4000 ordered choices of up to two")
    for name, value in by_obp(world, played, world.candidates).items():
        table.add_row(name, f"{ESTIMATORS[name](played.log, policy).value:.12f}", f"{value:.12f}", "obp 0.4.1")
    wabbit = by_wabbit(world, played, wanted, "ips")
    table.add_row("ips, no chance", f"{ips(played.log, certain).value:.12f}", f"{wabbit:.12f}", "Vowpal Wabbit")
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=500)
    parser.add_argument("--csv", type=Path, help="write the coverage here too, with mean widths")
    return parser.parse_args()


if __name__ == "__main__":
    main()
