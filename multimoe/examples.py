"""What people's ratings say, as examples to learn from: which expert did how well on which request, and by whose word.

Ratings of an answer count for the experts that gave it, by their weight in it; those of one expert for that one alone.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from multimoe.decision import Decision
from multimoe.embedding import Embedding
from multimoe.feedback import Interaction, Rated, Rating
from multimoe.messages import Modality

Shares = tuple[tuple[str, float], ...]  # experts of an answer and their part in it, summing to 1

MOST = 20_000  # newest interactions read; with pictures they take about 7 kB each
FULL_VOTES = 25.0  # ratings of one rater that count in full, or the median of all raters where that is more
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


@dataclass(frozen=True, eq=False)
class Example:
    """One rated interaction. `reward` in [0, 1] is what its answer was worth; None where only comparisons were given.

    `decision` is None where the asker named the expert: it teaches, but no gate can be judged by it.
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


def read(rated: Iterable[Rated], most: int = MOST) -> tuple[Example, ...]:
    """The newest `most` interactions that can teach something, oldest first, all embedded by today's encoders.

    Today's encoder of a modality is that of the newest interaction that has it; a mixture of two would learn nothing.
    """
    newest = deque(_embedded(rated), maxlen=most)
    today = revisions(embedding for _, embedding in newest)
    current = [(one, e) for one, e in newest if all(today[m] == name for m, name in e.revisions.items())]
    sides = {one.interaction.id: (e, parties(one.interaction)) for one, e in current}
    examples = (_example(one, embedding, sides) for one, embedding in current)
    return tuple(example for example in examples if example.ratings)


def revisions(embeddings: Iterable[Embedding]) -> dict[Modality, str]:
    """The encoder of each modality, by the newest of `embeddings` (oldest first) that has it."""
    return {m: name for embedding in embeddings for m, name in embedding.revisions.items()}


def parties(interaction: Interaction) -> Shares:
    """Who gave the answer and with what part in it; the gate's choice where nothing is known of the outcome."""
    weights = {o.expert: o.weight for o in interaction.outcomes if o.status == "ok" and o.weight > 0}
    if not weights and interaction.decision:
        weights = {choice.expert: choice.weight for choice in interaction.decision.chosen}
    total = sum(weights.values())
    return tuple((expert, weight / total) for expert, weight in weights.items()) if total > 0 else ()


def votes(raters: Sequence[str | None]) -> NDArray[np.float64]:
    """How much each rating counts, (n,) in (0, 1]: the more one rater gave, the less each.

    Weight grows with the square root of the count (beyond `FULL_VOTES`), and nobody has more than `MOST_SHARE` of all
    weight, or twice an even share where raters are few. Unnamed raters cannot be told apart: theirs count in full.
    """
    counts = Counter(rater for rater in raters if rater is not None)
    if not counts:
        return np.ones(len(raters))
    full = max(FULL_VOTES, float(np.median(list(counts.values()))))
    each = {rater: min(1.0, (full / n) ** 0.5) for rater, n in counts.items()}
    allowed = max(MOST_SHARE, 2 / len(counts))
    for _ in range(20):  # cutting one rater lowers the total that the others are measured by
        total = sum(each[r] * n for r, n in counts.items()) + raters.count(None)
        each = {r: min(w, allowed * total / counts[r]) for r, w in each.items()}
    return np.array([1.0 if rater is None else each[rater] for rater in raters])


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
    return Example(
        id=interaction.id,
        created=interaction.created,
        embedding=embedding,
        decision=interaction.decision,
        labels=labels,
        wins=wins,
        reward=_reward(scored, dict(shares)),
        rater=next((rating.user for rating in [*scored, *one.ratings]), None),
        ratings=(len(scored) if labels else 0) + len(wins),
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


def _reward(scored: Sequence[Rating], parts: Mapping[str, float]) -> float | None:
    """The mean score of the answer; where only experts were rated, their mean by their part in it."""
    answers = [rating.score for rating in scored if rating.target == "answer" and rating.score is not None]
    if answers:
        return float(np.mean(answers))
    rated = [(r.score, parts.get(str(r.expert), 0.0)) for r in scored if r.score is not None]
    total = sum(part for _, part in rated)
    return sum(score * part for score, part in rated) / total if total > 0 else None
