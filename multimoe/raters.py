"""What kinds of people rate: who rates as the others do, and who pushes one expert, buries one or contradicts all.

A mixture of kinds fitted by EM (after Dawid & Skene 1979). What "the others" say of an expert on a topic is learned
from whoever is honest so far, and how common each kind is from how many already seem to be of it; so fifty colluders
with a few ratings each convict one another. Ratings go in, names come out; it knows no gate and throws nothing away.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multimoe.examples import Example, Label, Win

Float = NDArray[np.float64]
Int = NDArray[np.intp]
Hostile = Mapping[tuple[int, str | None], str]  # number of an example and rater -> why this rater is not heard on it

STINT = 60  # rated answers of one rater that are looked at together: who was honest for long may not be so now
BLOCK = 1500  # answers of one time, so that a change of taste is no hostility
VOICE = 2.0  # ratings of an expert on a topic that one rater counts for at most in what "the others" say
DOUBT = 6.0  # ratings that an expert's mean over all topics counts for in each of them
SLIP = 0.07  # how often somebody hostile departs from the pattern
LEANING = 1.0  # logits by which a lenient or strict rater differs
SURE = 0.03  # nothing the others say is surer than this from 0 or 1
CONSTANT, LEANS, HOSTILE = 0.06, 0.10, 0.01  # how common kinds are believed to be; the rest rate as the others do
BELIEF = 50.0  # stints that this belief counts for
ROUNDS = 50
SETTLED = 0.01

# Honest: as the others, more leniently, more strictly, always well, always badly. Then the hostile ones; each of the
# last four about one expert.
HONEST = 5
REASONS = ("contradicts the others", *["pushes one expert"] * 3, "buries one expert")


def hostile(examples: Sequence[Example], about: Sequence[int]) -> Hostile:
    """Who is more likely hostile than honest, and where. Examples in the order of time, each `about` a topic.

    Unnamed raters count among the others and are never found hostile.
    """
    said = _said(examples, about)
    stints = int(said.stint.max(initial=-1)) + 1
    trust = np.ones(stints)
    believed = common = _believed(said.experts)
    for _ in range(ROUNDS):
        likelihood = _explained(said, _as_the_others(said, trust), stints) + np.log(common)  # (stints, kinds)
        kinds = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
        kinds /= kinds.sum(axis=1, keepdims=True)
        common = (BELIEF * believed + kinds.sum(axis=0)) / (BELIEF + stints)
        before, trust = trust, kinds[:, :HONEST].sum(axis=1)
        if np.abs(trust - before).max(initial=0.0) < SETTLED:
            break
    which = (kinds[:, HONEST:].argmax(axis=1) + said.experts - 1) // said.experts
    found = {stint: REASONS[which[stint]] for stint in np.flatnonzero(trust < 0.5).tolist()}
    rows = np.flatnonzero(np.isin(said.stint, list(found))).tolist()
    return {(int(said.at[k]), said.rater[k]): found[int(said.stint[k])] for k in rows}


@dataclass(frozen=True, eq=False)
class _Said:
    """What was said, as arrays. Row k, a label or a comparison of example `at[k]`, is of stint `stint[k]`, or of -1.

    It has a `score` and a `weight`; a comparison (`compared[k]`) scores 1, since the sides of its stakes say the rest.
    Stake t is an expert's in row `row[t]`: `pull[t]` is 1 for a label's, a share for a winner's, minus a share for a
    loser's. `cell[t]` is that expert on that topic at that time, `voice[t]` is one rater's part of the cell.
    Side m tells that expert `who[m]` gains (`gains[m]`) or loses by row `where[m]`.
    """

    rater: Sequence[str | None]
    stint: Int
    at: Int
    score: Float
    weight: Float
    compared: NDArray[np.bool_]
    row: Int
    pull: Float
    cell: Int
    voice: Int
    where: Int
    who: Int
    gains: NDArray[np.bool_]
    experts: int


def _as_the_others(said: _Said, trust: Float) -> Float:
    """How likely a good score was for each row, by what all but its rater say of those experts on that topic."""
    value = np.where(said.pull > 0, said.score[said.row], 1 - said.score[said.row])
    heard = np.append(trust, 1.0)[said.stint]  # unnamed ones in full
    mass = np.abs(said.pull) * (said.weight * heard)[said.row]
    mass = mass * np.minimum(1, VOICE / np.maximum(_sums(said.voice, mass), 1e-9))[said.voice]
    expert = said.cell % said.experts
    overall = (_sums(expert, mass * value) + 1) / (_sums(expert, mass) + 2)

    def others(of: Float) -> Float:
        return _sums(said.cell, of)[said.cell] - _sums(said.voice, of)[said.voice]

    mean = (others(mass * value) + DOUBT * overall[expert]) / (others(mass) + DOUBT)
    return _probability(_sums(said.row, said.pull * _logit(mean)))


def _explained(said: _Said, expected: Float, stints: int) -> Float:
    """Log-likelihood of each stint under each kind of rater, (stints, kinds); `expected` (rows,) is as the others."""

    def log(likely: Float, k: Int | slice = slice(None)) -> Float:
        good = np.clip(likely, 1e-3, 1 - 1e-3)
        each: Float = said.weight[k] * (said.score[k] * np.log(good) + (1 - said.score[k]) * np.log(1 - good))
        return each

    def by_stint(each: Float) -> Float:
        return _sums(said.stint + 1, each, stints + 1)[1:]

    def by_expert(idle: Float, taking_part: Float) -> Float:
        """A good score is as likely as `idle` (rows,) where the expert is not, else as `taking_part` (sides,)."""
        difference = log(taking_part, said.where) - log(idle[said.where], said.where)
        place = (said.stint[said.where] + 1) * said.experts + said.who
        table = _sums(place, difference, (stints + 1) * said.experts).reshape(-1, said.experts)[1:]
        return by_stint(log(idle))[:, None] + table

    leaning = _logit(expected) + LEANING * np.where(said.compared, 0, [[1], [-1]])  # (2, rows)
    constant = np.where(said.compared, 0.5, [[1 - SLIP], [SLIP]])
    wished = np.where(said.gains, 1 - SLIP, SLIP)
    idle = constant[1]  # of who pushes an expert that is not there
    return np.hstack(
        [
            *[by_stint(log(likely))[:, None] for likely in (expected, *_probability(leaning), *constant, 1 - expected)],
            by_expert(idle, wished),
            by_expert((idle + expected) / 2, (wished + expected[said.where]) / 2),
            by_expert(expected, wished),
            by_expert(expected, 1 - wished),
        ]
    )


def _believed(experts: int) -> Float:
    """How common each kind is before anything was said."""
    honest = [1 - LEANS - CONSTANT - HOSTILE, *[LEANS / 2] * 2, *[CONSTANT / 2] * 2]
    kinds = 1 + 4 * experts
    return np.array([*honest, *[HOSTILE / kinds] * kinds])


def _said(examples: Sequence[Example], about: Sequence[int]) -> _Said:
    names = {name: i for i, name in enumerate(sorted({n for e in examples for n in _experts(e)}))}
    blocks = max(1, len(examples) // BLOCK)
    stints = _stints(examples)
    table = _Table()
    for i, example in enumerate(examples):
        first_cell = (about[i] * blocks + i * blocks // len(examples)) * len(names)
        statements: tuple[Label | Win, ...] = (*example.labels, *example.wins)
        for said in statements:
            table.add(said, example, i, stints.get((i, said.rater), -1), names, first_cell)
    return table.said(len(names))


class _Table:
    """Collects rows, stakes and sides."""

    def __init__(self) -> None:
        self.rater: list[str | None] = []
        self.rows: list[tuple[int, int, float, float, bool]] = []
        self.stakes: list[tuple[int, float, int]] = []
        self.sides: list[tuple[int, int, bool]] = []

    def add(
        self, said: Label | Win, example: Example, at: int, stint: int, names: Mapping[str, int], cell: int
    ) -> None:
        row = len(self.rows)
        self.rater.append(said.rater)
        if isinstance(said, Label):
            self.rows.append((stint, at, said.score, said.part, False))
            self.stakes.append((row, 1.0, cell + names[said.expert]))
            self.sides += [(row, names[expert], True) for expert in _together(said, example)]
        else:
            self.rows.append((stint, at, 1.0, 1.0, True))
            for sign, shares in ((1, said.winners), (-1, said.losers)):
                self.stakes += [(row, sign * share, cell + names[expert]) for expert, share in shares]
                self.sides += [(row, names[expert], sign > 0) for expert, _ in shares]

    def said(self, experts: int) -> _Said:
        stint, at, score, weight, compared = zip(*self.rows, strict=True)
        row, pull, cell = zip(*self.stakes, strict=True)
        where, who, gains = zip(*self.sides, strict=True)
        raters = [f"r{self.rater[k]}" if self.rater[k] is not None else k for k in row]
        voices = {pair: i for i, pair in enumerate(dict.fromkeys(zip(raters, cell, strict=True)))}
        return _Said(
            rater=self.rater,
            stint=np.array(stint, dtype=np.intp),
            at=np.array(at, dtype=np.intp),
            score=np.array(score),
            weight=np.array(weight),
            compared=np.array(compared),
            row=np.array(row, dtype=np.intp),
            pull=np.array(pull),
            cell=np.array(cell, dtype=np.intp),
            voice=np.array([voices[pair] for pair in zip(raters, cell, strict=True)], dtype=np.intp),
            where=np.array(where, dtype=np.intp),
            who=np.array(who, dtype=np.intp),
            gains=np.array(gains),
            experts=experts,
        )


def _stints(examples: Sequence[Example]) -> dict[tuple[int, str | None], int]:
    """The number of the stint that a named rater's word on an example belongs to."""
    counted: dict[str, int] = {}
    numbers: dict[tuple[str, int], int] = {}
    of: dict[tuple[int, str | None], int] = {}
    for i, example in enumerate(examples):
        for rater in example.raters:
            if rater is not None:
                counted[rater] = counted.get(rater, 0) + 1
                of[i, rater] = numbers.setdefault((rater, (counted[rater] - 1) // STINT), len(numbers))
    return of


def _together(label: Label, example: Example) -> Iterator[str]:
    """The experts that one rating was about: all of an answer that was rated as a whole."""
    if label.part == 1:
        return iter((label.expert,))
    return (other.expert for other in example.labels if other.rater == label.rater and other.part < 1)


def _experts(example: Example) -> Iterator[str]:
    yield from (label.expert for label in example.labels)
    yield from (expert for win in example.wins for side in (win.winners, win.losers) for expert, _ in side)


def _sums(group: Int, each: Float, groups: int = 0) -> Float:
    sums: Float = np.bincount(group, each, groups).astype(np.float64)
    return sums


def _logit(likely: Float) -> Float:
    bounded = np.clip(likely, SURE, 1 - SURE)
    logits: Float = np.log(bounded / (1 - bounded))
    return logits


def _probability(logits: Float) -> Float:
    likely: Float = np.clip(1 / (1 + np.exp(-logits)), SURE, 1 - SURE)
    return likely
