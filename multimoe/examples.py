"""What people's ratings say, as examples to learn from: which expert did how well on which request, and by whose word.

Ratings of an answer count for the experts that gave it, by their weight in it; those of one expert for that one alone.
"""

from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from multimoe.decision import Decision
from multimoe.embedding import Embedding
from multimoe.feedback import Interaction, Rated, Rating
from multimoe.messages import Modality

Shares = tuple[tuple[str, float], ...]  # experts of an answer and their part in it, summing to 1

MOST = 20_000  # newest interactions read; with pictures they take about 7 kB each
LIGHTEST = 1e-12  # weight; below it there is nothing to limit
MOST_SHARE = 0.01  # of all weight, what one rater may have among hundreds


@dataclass(frozen=True)
class Label:
    """`rater` gave `expert` this score in [0, 1], with this part of a whole rating."""

    expert: str
    score: float
    part: float
    rater: str | None


@dataclass(frozen=True, eq=False)
class Win:
    """`rater` preferred one side's answer to the other's; the sides may have answered different requests."""

    request: Embedding
    winners: Shares
    other: Embedding
    losers: Shares
    rater: str | None


@dataclass(frozen=True)
class Opinion:
    """What a whole answer was worth to `rater`, in [0, 1]."""

    rater: str | None
    worth: float


@dataclass(frozen=True, eq=False)
class Example:
    """One rated interaction. `reward` in [0, 1] is what its answer was worth; None where only comparisons were given.

    `decision` is None where the asker named the expert: it teaches, but no gate can be judged by it. Where several
    people rated one answer, `reward` is the mean of their `opinions` by votes, and `rater` who counts for most in it.
    """

    id: str
    created: datetime
    embedding: Embedding
    decision: Decision | None
    labels: tuple[Label, ...]
    wins: tuple[Win, ...]
    reward: float | None
    rater: str | None
    ratings: int
    opinions: tuple[Opinion, ...] = ()

    @property
    def raters(self) -> tuple[str | None, ...]:
        """Everybody who said something that teaches, each once."""
        return tuple(dict.fromkeys([label.rater for label in self.labels] + [win.rater for win in self.wins]))


def read(rated: Iterable[Rated], most: int = MOST) -> tuple[Example, ...]:
    """The newest `most` interactions that can teach something, oldest first, all embedded by today's encoders.

    Today's encoder of a modality is that of the newest interaction that has it; a mixture of two would learn nothing.
    """
    newest = deque(_embedded(rated), maxlen=most)
    today = revisions(embedding for _, embedding in newest)
    current = [(one, e) for one, e in newest if all(today[m] == name for m, name in e.revisions.items())]
    sides = {one.interaction.id: (e, parties(one.interaction)) for one, e in current}
    examples = (_example(one, embedding, sides) for one, embedding in current)
    return weighed([example for example in examples if example.ratings])


def revisions(embeddings: Iterable[Embedding]) -> dict[Modality, str]:
    """The encoder of each modality, by the newest of `embeddings` (oldest first) that has it."""
    return {m: name for embedding in embeddings for m, name in embedding.revisions.items()}


def parties(interaction: Interaction) -> Shares:
    """Who gave the answer and with what part in it; the gate's choice where nothing is known of the outcome.

    Who spoke aside, such as the losers of a vote, has no part in what is rated. Where nobody of any weight gave it, it
    is the stand-ins', or of those who broke off: never of one who was not asked.
    """
    gave = [o for o in interaction.outcomes if o.status == "ok" and o.role != "aside"]
    weights = {o.expert: o.weight for o in gave if o.weight > 0}
    if not weights:
        tried = [o for o in interaction.outcomes if o.role == "answer" and o.status != "skipped"]
        weights = dict.fromkeys([o.expert for o in gave or tried], 1.0)
    if not weights and interaction.decision:
        weights = {choice.expert: choice.weight for choice in interaction.decision.chosen}
    total = sum(weights.values())
    return tuple((expert, weight / total) for expert, weight in weights.items()) if total > 0 else ()


def votes(raters: Sequence[str | None], parts: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """How much each rating counts, (n,) in [0, 1]: less where one rater would have too much of all weight.

    With `parts` (n,) in [0, 1] each is that part of a whole rating, as a label is of an answer that several experts
    gave, and counts for no more than its part.

    Nobody has more than `MOST_SHARE` of it, or twice an even share where raters are few. Unnamed raters cannot be told
    apart: theirs count in full. Weights that fell with the root of a rater's count below that limit too were tried:
    over five worlds they cost 0.7 points of utility, and 0.5 where one hostile rater gave a tenth of all ratings.
    """
    whole = np.ones(len(raters)) if parts is None else parts
    number: dict[str | None, int] = {None: 0}
    at = np.array([number.setdefault(rater, len(number)) for rater in raters], dtype=np.intp)
    rest, *named = np.bincount(at, whole, minlength=len(number)).tolist()
    if not named:
        return whole
    each = limited(np.array(named), max(MOST_SHARE, 2 / len(named)), rest)
    return np.concatenate([[1.0], each])[at] * whole


def label_votes(labels: Sequence[Label], wins: Sequence[Win] = ()) -> NDArray[np.float64]:
    """The same for labels, then comparisons, (labels + wins,): a label has the weight of its part in an answer."""
    parts = np.array([label.part for label in labels] + [1.0] * len(wins))
    return votes([*(label.rater for label in labels), *(win.rater for win in wins)], parts)


def limited(mass: NDArray[np.float64], share: float, rest: float = 0.0) -> NDArray[np.float64]:
    """Factors (n,) in (0, 1] for `mass` (n,) so that none has more than `share` of all, `rest` included."""
    each = np.ones(len(mass))
    for _ in range(20):  # cutting one lowers the total that the others are measured by
        each = np.minimum(each, share * (each @ mass + rest) / np.maximum(mass, LIGHTEST))
    return each


def weighed(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The same, with reward and rater by how much each opinion counts among all.

    Somebody who calls everybody's answers bad does not drag each of them down by half. One without opinions stays.
    """
    counted = iter(votes([opinion.rater for example in examples for opinion in example.opinions]).tolist())
    return tuple(_weighed(example, [next(counted) for _ in example.opinions]) for example in examples)


def without(example: Example, unheard: Container[str | None]) -> Example | None:
    """What is left of it when these raters are not heard; None when that is nothing."""
    labels = tuple(label for label in example.labels if label.rater not in unheard)
    wins = tuple(win for win in example.wins if win.rater not in unheard)
    if len(labels) == len(example.labels) and len(wins) == len(example.wins):
        return example
    if not labels and not wins:
        return None
    opinions = tuple(opinion for opinion in example.opinions if opinion.rater not in unheard)
    heard: tuple[Opinion | Label | Win, ...] = (*opinions, *labels, *wins)
    return replace(
        example,
        labels=labels,
        wins=wins,
        opinions=opinions,
        reward=float(np.mean([opinion.worth for opinion in opinions])) if opinions else None,
        rater=heard[0].rater,
        ratings=round(sum(label.part for label in labels)) + len(wins),
    )


def about(examples: Sequence[Example], experts: Container[str]) -> list[tuple[int, Label]]:
    """Every label about one of `experts`, with the number of its example."""
    return [(i, label) for i, example in enumerate(examples) for label in example.labels if label.expert in experts]


def eligible(examples: Sequence[Example], column: Mapping[str, int]) -> NDArray[np.bool_]:
    """Which experts might have answered, (n, experts); nobody where no gate decided."""
    table = np.zeros((len(examples), len(column)), dtype=np.bool_)
    for i, example in enumerate(examples):
        considered = example.decision.considered if example.decision else ()
        table[i, [column[c.expert] for c in considered if c.expert in column]] = True
    return table


def split(examples: Sequence[Example], share: float) -> tuple[Sequence[Example], Sequence[Example]]:
    """Past and later, by time: what has to predict the future is judged as it will be used.

    `share` is of the weight of ratings, not of their count, so that one rater cannot push all others into the past.
    """
    weight = np.cumsum(votes([example.rater for example in examples]))
    at = int(np.searchsorted(weight, share * weight[-1] + 1e-9)) if len(examples) else 0
    return examples[:at], examples[at:]


def largest_share(raters: Sequence[str | None], counted: NDArray[np.float64]) -> float:
    """The part of all weight that the heaviest named rater has, in [0, 1]."""
    totals: Counter[str] = Counter()
    for rater, weight in zip(raters, counted.tolist(), strict=True):
        if rater is not None:
            totals[rater] += weight
    return max(totals.values(), default=0.0) / max(float(counted.sum()), 1e-12)


def _embedded(rated: Iterable[Rated]) -> Iterator[tuple[Rated, Embedding]]:
    for one in rated:
        if one.interaction.embedding:
            yield one, Embedding.from_bytes(one.interaction.embedding)


def _example(one: Rated, embedding: Embedding, sides: Mapping[str, tuple[Embedding, Shares]]) -> Example:
    interaction = one.interaction
    shares = parties(interaction)
    labels = tuple(label for rating in one.ratings for label in _labels(rating, shares))
    wins = tuple(win for rating in one.ratings for win in _wins(rating, embedding, shares, sides))
    scored = [rating for rating in one.ratings if rating.score is not None and rating.target != "comparison"]
    opinions = tuple(_opinions(scored, dict(shares)))
    return Example(
        id=interaction.id,
        created=interaction.created,
        embedding=embedding,
        decision=interaction.decision,
        labels=labels,
        wins=wins,
        reward=float(np.mean([opinion.worth for opinion in opinions])) if opinions else None,
        rater=next((rating.user for rating in [*scored, *one.ratings]), None),
        ratings=(len(scored) if labels else 0) + len(wins),
        opinions=opinions,
    )


def _labels(rating: Rating, shares: Shares) -> Iterator[Label]:
    if rating.score is None:
        return
    if rating.target == "answer":
        yield from (Label(expert, rating.score, part, rating.user) for expert, part in shares)
    elif rating.expert is not None:
        yield Label(rating.expert, rating.score, 1.0, rating.user)


def _wins(
    rating: Rating, embedding: Embedding, shares: Shares, sides: Mapping[str, tuple[Embedding, Shares]]
) -> Iterator[Win]:
    """Against each rejected one. A name is an expert of this answer, else the id of another answer in the log."""
    if rating.target != "comparison" or rating.preferred is None:
        return
    here = {expert: (embedding, ((expert, 1.0),)) for expert, _ in shares}
    for name in rating.rejected:
        won, lost = (here.get(side) or sides.get(side) for side in (rating.preferred, name))
        if won and lost and won[1] and lost[1]:
            yield Win(won[0], won[1], lost[0], lost[1], rating.user)


def _opinions(scored: Sequence[Rating], parts: Mapping[str, float]) -> Iterator[Opinion]:
    """One of each rater, in the order they first spoke; where the answer itself was rated, of those who did that."""
    whole = any(rating.target == "answer" for rating in scored)
    for rater in dict.fromkeys(rating.user for rating in scored):
        worth = _worth([rating for rating in scored if rating.user == rater], parts, whole)
        if worth is not None:
            yield Opinion(rater, worth)


def _worth(scored: Sequence[Rating], parts: Mapping[str, float], whole: bool) -> float | None:
    """The mean score of the answer; where only experts were rated, their mean by their part in it."""
    answers = [rating.score for rating in scored if rating.target == "answer" and rating.score is not None]
    if answers or whole:
        return float(np.mean(answers)) if answers else None
    rated = [(r.score, parts.get(str(r.expert), 0.0)) for r in scored if r.score is not None]
    total = sum(part for _, part in rated)
    return sum(score * part for score, part in rated) / total if total > 0 else None


def _weighed(example: Example, counted: Sequence[float]) -> Example:
    if len(example.opinions) < 2:
        return example
    worth = np.array([opinion.worth for opinion in example.opinions])
    heaviest = example.opinions[int(np.argmax(counted))].rater
    return replace(example, reward=float(np.array(counted) @ worth / sum(counted)), rater=heaviest)
