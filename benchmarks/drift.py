"""How well does the gate follow people whose tastes change, and what does forgetting cost where they do not?

    python benchmarks/drift.py --out build/drift            # about 10 minutes on one core

A city of a hundred people rates answers through a month, during which everybody's favourites move to other experts: not
at all, halfway through at once, slowly all month, or halfway and only half as much. The gate is trained seven times in
that month, each time on all ratings so far with one half-life, a part of the time since the first of them, and what
people then think of its answers is counted. `auto` is what the product does: it reads the half-life off the log
(`multimoe.forgetting`). Writes drift.csv, a row a training, and drift.svg.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from multimoe import forgetting, training
from multimoe.examples import Example, read

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from worlds import City, citizens

RATINGS = 4000
BLOCKS = 8  # of a month; after each but the last the gate is trained, for the next
DRIFTS: dict[str, Callable[[float], float]] = {  # how far tastes have moved, from 0 to 1, by the part of the month gone
    "none": lambda at: 0.0,
    "at once": lambda at: float(at > 0.5),
    "slowly": lambda at: at,
    "half": lambda at: 0.5 * (at > 0.5),
}
HALF_LIVES: dict[str, float | None] = {"nothing": None, "1": 1.0, "1/2": 0.5, "1/4": 0.25, "1/8": 0.125, "1/16": 0.0625}


@dataclass(frozen=True)
class Trained:
    """`value` is what people then think of the answers, of `best` that could be, in points of 100."""

    seed: int
    drift: str
    half_life: str
    after: int
    value: float
    best: float


def month(seed: int, drift: str) -> Iterator[Trained]:
    city = City(seed, explore=0.5)
    before, after = city.quality.copy(), city.quality.copy()
    after[:, :-1] = np.roll(before[:, :-1], 1, axis=1)
    rows = []
    for block in range(BLOCKS):
        moved = DRIFTS[drift]((block + 0.5) / BLOCKS)
        city.quality = (1 - moved) * before + moved * after
        if block:
            yield from _trained(city, read(rows), seed, drift, block)
        rows += city.live(citizens(), RATINGS // BLOCKS, 100 * seed + block, since=block / BLOCKS,
                          until=(block + 1) / BLOCKS)  # fmt: skip


def _trained(city: City, examples: Sequence[Example], seed: int, drift: str, block: int) -> Iterator[Trained]:
    span = examples[-1].created - examples[0].created
    best = float(city.popularity @ city.quality.max(axis=1))
    for name in (*HALF_LIVES, "auto"):
        with patch.object(training, "half_life", _fixed(name, span)):
            gate = city.gate.with_learned(training.fit(examples, city.gate), 1)
        yield Trained(seed, drift, name, block * RATINGS // BLOCKS, 100 * city.value(gate), 100 * best)


def _fixed(name: str, span: timedelta) -> Callable[[Sequence[Example]], timedelta | None]:
    if name == "auto":
        return forgetting.half_life
    part = HALF_LIVES[name]
    return lambda examples: part and span * part


def table(found: Sequence[Trained]) -> Table:
    names = [*HALF_LIVES, "auto"]
    shown = Table("tastes move", *names, "best possible", title="points of 100, mean over trainings, by half-life")
    for drift in DRIFTS:
        mine = [one for one in found if one.drift == drift]
        means = [np.mean([one.value for one in mine if one.half_life == name]) for name in names]
        shown.add_row(drift, *(f"{mean:.1f}" for mean in means), f"{np.mean([one.best for one in mine]):.1f}")
    return shown


def plot(found: Sequence[Trained], path: Path) -> None:
    figure, panels = plt.subplots(1, len(DRIFTS), figsize=(3.2 * len(DRIFTS), 3), sharey=True)
    for axes, drift in zip(panels, DRIFTS, strict=True):
        mine = [one for one in found if one.drift == drift]
        at = sorted({one.after for one in mine})
        for name in (*HALF_LIVES, "auto"):
            means = [np.mean([o.value for o in mine if (o.half_life, o.after) == (name, n)]) for n in at]
            axes.plot(at, means, label=name, color="black" if name == "auto" else None,
                      linewidth=2 if name == "auto" else 1)  # fmt: skip
        axes.set(title=f"tastes move: {drift}", xlabel="ratings so far")
    panels[0].set_ylabel("what people think of the answers")
    panels[-1].legend(fontsize=7, title="half-life")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("build/drift"))
    arguments.add_argument("--seeds", type=int, default=3)
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = [one for seed in range(options.seeds) for drift in DRIFTS for one in month(seed, drift)]
    with (options.out / "drift.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Trained.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(one) for one in found)
    plot(found, options.out / "drift.svg")
    Console(width=140).print(table(found))


if __name__ == "__main__":
    main()
