"""What hostile ratings do to the gate, with the defences and without (RELIABILITY.md, T27).

    python benchmarks/poison.py --out build/poison                      # everything, about 40 minutes on one core
    python benchmarks/poison.py --seeds 1 --attacks trigger --fractions 0.05

A city of a hundred honest people rates 4,000 answers of a gate whose cards are wrong; hostile ratings are put in
between, so that they are a fraction of all. Each log goes through a whole retraining, screen and judge included, and
what serves afterwards is tried on requests nobody has rated, whose truth is known.

Without defences: the same ratings by nobody in particular. Then nobody can be capped, screened or left out, and the
judge takes every rating for another person's.

Writes poison.csv, a row a run, and poison.svg: how many points of what honest people think of the answers are lost
against the log without attackers (a cross: the version was not promoted, so the one before goes on serving), and the
share of honest requests that the trigger phrase sends where the attackers want.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from multimoe.checkpoint import Registry
from multimoe.retrain import retrain

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from worlds import ATTACKS, City, Rows, attacked, unnamed

RATINGS = 4000
EXPLORED = 0.5  # of requests; enough for a clean log to teach what there is to know, so that losses are the attack's
FRACTIONS = (0.01, 0.05, 0.1, 0.2)
NOW = datetime(2026, 12, 9, tzinfo=UTC)


@dataclass(frozen=True)
class Run:
    """`value` is what honest people think of what serves afterwards, in points of 100; `candidate` of the new version,
    promoted or not. `trigger` is a share of requests. `left_out` counts ratings of attackers and of honest people."""

    seed: int
    attack: str
    fraction: float
    defended: bool
    promoted: bool
    value: float
    candidate: float
    lost: float
    trigger: float
    left_out: int
    reason: str


def runs(seed: int, attacks: Sequence[str], fractions: Sequence[float]) -> Iterator[Run]:
    city = City(seed, explore=EXPLORED)
    clean = {defended: served(city, seed, "nothing", 0.0, defended) for defended in (True, False)}
    yield from clean.values()
    for attack in attacks:
        for fraction in fractions:
            for defended in (True, False):
                yield served(city, seed, attack, fraction, defended, clean[defended].value)


def served(
    city: City, seed: int, attack: str, fraction: float, defended: bool, clean: float | None = None
) -> Run:  # fmt: skip
    rows = attacked(city, attack if fraction else "promote", fraction, RATINGS, seed + 1)
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder))
        manifest = retrain(
            Rows(rows if defended else unnamed(rows)),
            registry,
            city.gate,
            now=NOW,
            seed=0,
            progress=lambda share, doing: None,
        )
        new = city.gate.with_learned(registry.load(manifest.version), manifest.version)
    serving = new if manifest.proven else city.gate
    value = 100 * city.value(serving)
    return Run(
        seed=seed,
        attack=attack,
        fraction=fraction,
        defended=defended,
        promoted=manifest.proven,
        value=value,
        candidate=100 * city.value(new),
        lost=0.0 if clean is None else clean - value,
        trigger=city.sent_by_trigger(serving),
        left_out=sum(count for reason, count in manifest.counts.items() if reason.startswith("quarantined")),
        reason=manifest.reason,
    )


def table(found: Sequence[Run]) -> Table:
    shown = Table(
        "attack", "of ratings", "lost, defended", "lost, undefended", "trigger, defended", "trigger, undefended",
        "promoted, defended", "undefended", title="points of 100 lost against the clean log; means over worlds",
    )  # fmt: skip
    for attack in dict.fromkeys(run.attack for run in found):
        for fraction in sorted({run.fraction for run in found if run.attack == attack}):
            cells = [[r for r in found if (r.attack, r.fraction, r.defended) == (attack, fraction, on)]
                     for on in (True, False)]  # fmt: skip
            lost = [f"{np.mean([r.lost for r in cell]):.1f}" for cell in cells]
            trigger = [f"{np.mean([r.trigger for r in cell]):.0%}" for cell in cells]
            promoted = [f"{sum(r.promoted for r in cell)} of {len(cell)}" for cell in cells]
            shown.add_row(attack, f"{fraction:.0%}", *lost, *trigger, *promoted)
    return shown


def plot(found: Sequence[Run], path: Path) -> None:
    attacks = [attack for attack in dict.fromkeys(run.attack for run in found) if attack != "nothing"]
    figure, panels = plt.subplots(2, len(attacks), figsize=(2.4 * len(attacks), 5), sharex=True, sharey="row")
    for attack, (loss, trigger) in zip(attacks, np.reshape(panels, (2, -1)).T, strict=True):
        loss.set_title(attack)
        for defended, colour in ((True, "tab:blue"), (False, "tab:red")):
            mine = [r for r in found if r.attack in (attack, "nothing") and r.defended == defended]
            at = sorted({r.fraction for r in mine})
            for axes, name in ((loss, "lost"), (trigger, "trigger")):
                means = [np.mean([getattr(r, name) for r in mine if r.fraction == f]) for f in at]
                axes.plot(np.array(at) * 100, means, color=colour, marker="o", markersize=3,
                          label="with defences" if defended else "without")  # fmt: skip
            refused = [r for r in mine if not r.promoted]
            loss.plot([100 * r.fraction for r in refused], [r.lost for r in refused], "x", color=colour)
        trigger.set_xlabel("hostile ratings, %")
        loss.axhline(1, color="grey", linewidth=0.5)
    panels[0, 0].set_ylabel("points lost")
    panels[1, 0].set_ylabel("sent by the trigger")
    panels[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("build/poison"))
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--attacks", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    arguments.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS)
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[Run] = []
    with (options.out / "poison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Run.__dataclass_fields__))
        writer.writeheader()
        for seed in range(options.seeds):
            for run in runs(seed, options.attacks, options.fractions):
                writer.writerow(asdict(run))
                file.flush()
                found.append(run)
    plot(found, options.out / "poison.svg")
    Console(width=150).print(table(found))


if __name__ == "__main__":
    main()
