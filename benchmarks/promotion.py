"""How often is a gate promoted that is no better, and how many ratings does it take to promote one that is?

    python benchmarks/promotion.py --out build/promotion            # everything, about an hour on one core
    python benchmarks/promotion.py --only chance --logs 50          # a part of it, sooner

`chance`: logs in which every rating is a coin's. What is learned from them is worth nothing, so every promotion is a
false one. Beside the product's rule stand two others by the same intervals: one hold-out of the last 30 %, and
five-fold cross-validation.

`judge`: logs of a gate that is right on nine kinds of requests of ten; on the tenth another expert is liked 30 points
more. A candidate that knows it is given, worth 3 points on average: how often does the judge see that?

`loop`: the same logs, but the candidate has to be learned from them first.

Requests are 384 numbers around ten directions, four experts may answer each, one does; ratings are 0 or 1, each person
gives ten. A promotion counts where intervals and all checks say so; without one rater nothing is tried again.
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from multimoe.checks import refusals
from multimoe.config import Card, EncoderSpec, ExpertSpec, GateSpec
from multimoe.decision import Choice, Considered, Decision, Policy
from multimoe.embedding import CONCEPT, Embedding, Vector
from multimoe.examples import Example, Label
from multimoe.gate import Gate
from multimoe.holdouts import learn_in_turn
from multimoe.judge import Holdout, judge, proven
from multimoe.offpolicy import Log, Replay
from multimoe.quality import HEAD, Axes, Learned
from multimoe.training import fit
from multimoe.verdict import Verdict

KINDS, EXPERTS = 10, 4
POOL = 20_000  # requests there are; a log holds none twice
NOISE = 0.8  # of a request, beside its kind
RATINGS = 10  # a person gives
EXPLORED = (0.05, 0.1, 0.3)
JUDGED = (300, 1000, 3000, 10_000, 20_000)
LEARNED = (1000, 3000, 10_000)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

Rule = Callable[[Sequence[Example], Gate], Verdict]


class World:
    """Requests of ten kinds, a gate that knows the cards alone, and what each expert is worth, `quality` (kinds, e)."""

    def __init__(self, quality: np.ndarray, explore: float, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.quality = quality
        self.directions = _unit(generator.normal(size=(KINDS, CONCEPT)))
        self.kinds = generator.integers(KINDS, size=POOL)
        noise = NOISE * _unit(generator.normal(size=(POOL, CONCEPT)))
        features = _unit(self.directions[self.kinds] + noise).astype(np.float32)
        self.pool = [Embedding({"text": Vector(row, row)}, {"text": "t"}) for row in features]
        self.gate = Gate.from_cards(_experts(), self._embed, _spec(explore))
        self.drawn = self.chances(self.gate)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """A card's sentence is the name of a kind; anything else means nothing."""
        lost = _unit(np.random.default_rng(1).normal(size=(1, CONCEPT)))[0]
        found = [self.directions[int(text)] if text.isdigit() else lost for text in texts]
        return np.array(found, dtype=np.float32)

    def chances(self, gate: Gate) -> np.ndarray:
        """Of each expert on every request there is, (POOL, e)."""
        found = np.zeros((POOL, EXPERTS))
        for begin in range(0, POOL, 4000):
            plans, _ = gate.replans(self.pool[begin : begin + 4000], NAMES, Policy())
            for order, chances in plans.choices():
                found[np.arange(begin, begin + len(order)), order[:, 0]] += chances
        return found

    def play(self, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Requests asked, experts drawn by the gate, and whether their answers were liked; all (n,)."""
        at = generator.choice(POOL, size=n, replace=False)
        cumulative = self.drawn[at].cumsum(axis=1)
        experts = (generator.random((n, 1)) > cumulative).sum(axis=1).clip(max=EXPERTS - 1)
        return at, experts, generator.random(n) < self.quality[self.kinds[at], experts]

    def live(self, n: int, generator: np.random.Generator) -> list[Example]:
        """n rated answers as the product logs them."""
        at, experts, liked = self.play(n, generator)
        rows = zip(at.tolist(), experts.tolist(), liked.tolist(), strict=True)
        return [self._example(i, *row, rater=f"u{i % max(1, n // RATINGS)}") for i, row in enumerate(rows)]

    def _example(self, number: int, request: int, expert: int, liked: bool, rater: str) -> Example:
        first = self.drawn[request].tolist()
        decision = Decision.model_construct(
            chosen=(Choice.model_construct(expert=NAMES[expert], probability=first[expert], quality=0.5, weight=1.0),),
            considered=[Considered.model_construct(expert=e, probability=p) for e, p in zip(NAMES, first, strict=True)],
            propensity=first[expert],
            policy=Policy(),
            load={},
        )
        label = Label(NAMES[expert], float(liked), 1.0, rater)
        created = BEGAN + timedelta(minutes=number)
        return Example(f"c{number}", created, self.pool[request], decision, (label,), (), float(liked), rater, 1)

    def worth(self, gate: Gate) -> float:
        """What it is truly worth, exploring as it does."""
        return float((self.chances(gate) * self.quality[self.kinds]).sum(axis=1).mean())

    def knowing(self) -> Gate:
        """The gate that sends every kind where it is liked best, and knows by about how much."""
        axes = {"text": Axes(self.directions.T.astype(np.float32), np.zeros(KINDS, np.float32))}
        own = np.zeros((EXPERTS, HEAD + KINDS))
        along = float(np.hypot(1, NOISE))  # a request's kind is so much less than all of it
        own[:, HEAD:] = along * np.log(self.quality / (1 - self.quality)).T
        blank = Learned(
            axes=axes, slope=0.0, common=np.zeros(HEAD + KINDS), variance=np.full(HEAD + KINDS, 0.01),
            tilt=np.zeros((0, HEAD + KINDS)), own=np.zeros((0, HEAD + KINDS)),
            covariance=np.zeros((0, HEAD + KINDS, HEAD + KINDS), np.float32),
        )  # fmt: skip
        return self.gate.with_learned(replace(blank.rows(NAMES), own=own), 1)


NAMES = [f"e{i}" for i in range(EXPERTS)]


def better_on_one_kind() -> np.ndarray:
    """What the cards promise, and 30 points more elsewhere on one kind of ten: 3 points of all."""
    quality = np.full((KINDS, EXPERTS), 0.4)
    quality[np.arange(KINDS), np.arange(KINDS) % EXPERTS] = 0.7
    quality[0, :2] = 0.45, 0.75
    return quality


def progressive(examples: Sequence[Example], gate: Gate) -> Verdict:
    """The product's rule."""
    holdouts = learn_in_turn(examples, gate, 1, None, lambda share, doing: None)
    return judge(holdouts, gate).weighed(refusals(holdouts, gate, examples, ()))


def hold_out(examples: Sequence[Example], gate: Gate) -> Verdict:
    at = int(0.7 * len(examples))
    return judge([Holdout(examples[at:], gate.with_learned(fit(examples[:at], gate), 1))], gate)


def five_fold(examples: Sequence[Example], gate: Gate) -> Verdict:
    cuts = np.linspace(0, len(examples), 6).astype(int)
    folds = [(examples[a:b], [*examples[:a], *examples[b:]]) for a, b in pairwise(cuts)]
    return judge([Holdout(fold, gate.with_learned(fit(rest, gate), 1)) for fold, rest in folds], gate)


RULES: dict[str, Rule] = {"progressive": progressive, "hold-out": hold_out, "five-fold": five_fold}


@dataclass(frozen=True)
class Row:
    """Of `logs` logs, `promoted` were, and `refused` though they were better by the intervals alone.

    `gain` is what candidates were truly worth more, on average.
    """

    study: str
    rule: str
    explore: float
    ratings: int
    logs: int
    promoted: int
    gain: float
    refused: int = 0

    @property
    def share(self) -> float:
        return self.promoted / self.logs

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by Wilson (1927)."""
        n, p, z = self.logs, self.share, 1.96
        middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return float(max(0, (middle - half) / (1 + z * z / n))), float(min(1, (middle + half) / (1 + z * z / n)))


def chance(logs: int) -> Iterator[Row]:
    for level, explore, n in ((0.5, 0.3, 300), (0.5, 0.1, 1000), (0.8, 0.1, 1000), (0.5, 0.3, 3000)):
        world = World(np.full((KINDS, EXPERTS), level), explore)
        for name, rule in RULES.items():
            found = [rule(world.live(n, np.random.default_rng([seed, n])), world.gate) for seed in range(logs)]
            yield Row(f"chance {level}", name, explore, n, logs, sum(v.better for v in found), 0.0)
    world = World(better_on_one_kind(), 0.1)
    same = [
        judge([Holdout(world.live(1000, np.random.default_rng(seed)), world.gate)], world.gate) for seed in range(logs)
    ]
    yield Row("the same gate", "progressive", 0.1, 1000, logs, sum(v.better for v in same), 0.0)


def judge_alone(logs: int) -> Iterator[Row]:
    for explore in EXPLORED:
        world = World(better_on_one_kind(), explore)
        candidate = world.knowing()
        drawn, quality = world.chances(candidate), candidate.table(world.pool)
        gain = world.worth(candidate) - world.worth(world.gate)
        for n in JUDGED:
            found = 0
            for seed in range(logs):
                at, experts, liked = world.play(n, np.random.default_rng([seed, n]))
                log = Log(liked.astype(float), world.drawn[at, experts], quality[at, experts], options=world.drawn[at])
                old, new = (
                    Replay(chances[at, experts], (chances * quality)[at].sum(axis=1), chances[at])
                    for chances in (world.drawn, drawn)
                )
                found += proven(log, new, old).better
            yield Row("judge", "progressive", explore, n, logs, found, gain)


def loop(logs: int) -> Iterator[Row]:
    for explore in (0.1, 0.3):
        world = World(better_on_one_kind(), explore)
        before = world.worth(world.gate)
        for n in LEARNED:
            for name in RULES:
                outcomes, gains = [], []
                for seed in range(logs):
                    rows = world.live(n, np.random.default_rng([seed, n]))
                    outcomes.append(RULES[name](rows, world.gate).outcome)
                    learned = fit(rows[: int(0.86 * n)], world.gate)
                    gains.append(world.worth(world.gate.with_learned(learned, 1)) - before)
                counts = outcomes.count("better"), outcomes.count("refused")
                yield Row("loop", name, explore, n, logs, counts[0], float(np.mean(gains)), counts[1])


STUDIES: dict[str, Callable[[int], Iterator[Row]]] = {"chance": chance, "judge": judge_alone, "loop": loop}
LOGS = {"chance": 200, "judge": 200, "loop": 40}


def main() -> None:
    arguments = _arguments()
    rows, told = [], Console(stderr=True)
    for name in arguments.only or STUDIES:
        for row in STUDIES[name](arguments.logs or LOGS[name]):
            rows.append(row)
            told.print(f"{row.study}, {row.rule}, {row.explore:.0%}, {row.ratings}: {row.promoted} of {row.logs}")
    Console().print(_table(rows))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        _write(rows, arguments.out / "promotion.csv")
        _plot(rows).savefig(arguments.out / "promotion.svg")


def _experts() -> list[ExpertSpec]:
    cards = [tuple(str(kind) for kind in range(KINDS) if kind % EXPERTS == i) for i in range(EXPERTS)]
    return [
        ExpertSpec(
            name=name, backend="experts.echo:Echo", inputs=frozenset({"text"}), output="text",
            card=Card(description="anything", text=kinds),
        )
        for name, kinds in zip(NAMES, cards, strict=True)
    ]  # fmt: skip


def _spec(explore: float) -> GateSpec:
    encoder = EncoderSpec(backend="multimoe.encoder:TextEncoder", revision="t")
    return GateSpec(top_k=1, explore=explore, encoders={"text": encoder})


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("logs", "rule", "explored", "ratings", "promoted", "95 %", "refused", "true gain")
    for row in rows:
        low, high = row.interval
        told = (f"{row.promoted} of {row.logs}", f"{low:.1%} to {high:.1%}", f"{row.refused}", f"{row.gain:+.3f}")
        table.add_row(row.study, row.rule, f"{row.explore:.0%}", f"{row.ratings}", *told)
    return table


def _write(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(
            ["study", "rule", "explored", "ratings", "logs", "promoted", "low", "high", "refused", "true_gain"]
        )
        for r in rows:
            told = [*(round(value, 4) for value in r.interval), r.refused, round(r.gain, 4)]
            out.writerow([r.study, r.rule, r.explore, r.ratings, r.logs, r.promoted, *told])


def _plot(rows: Sequence[Row]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    lines = dict.fromkeys((r.study, r.rule, r.explore) for r in rows if r.study in ("judge", "loop"))
    for study, rule, explore in lines:
        line = [r for r in rows if (r.study, r.rule, r.explore) == (study, rule, explore)]
        shares, bounds = np.array([r.share for r in line]), np.array([r.interval for r in line])
        label = f"{explore:.0%} explored, " + ("candidate given" if study == "judge" else f"learned, {rule}")
        style = "o-" if study == "judge" else ("s--" if rule == "progressive" else "^:")
        spread = np.abs(bounds.T - shares)
        axes.errorbar([r.ratings for r in line], shares, yerr=spread, fmt=style, capsize=2, label=label)
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="ratings in the log", ylabel="share of logs promoted")
    axes.set_title("Promoting a gate that is truly 3 points better")
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(fontsize=8)
    return figure


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(STUDIES), help="one study, or several")
    parser.add_argument("--logs", type=int, help=f"logs a point; default {LOGS}")
    parser.add_argument("--out", type=Path, help="a folder for promotion.csv and promotion.svg")
    return parser.parse_args()


if __name__ == "__main__":
    main()
