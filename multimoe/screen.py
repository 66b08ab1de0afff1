"""What is left out or cut before anything learns: hostile raters' ratings, and what one rater says too much of.

It knows no gate and no training, and deletes nothing: what it leaves out stays in the log.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from multimoe.examples import Example, label_votes, limited, weighed, without
from multimoe.raters import Hostile, hostile
from multimoe.topics import topics

logger = logging.getLogger(__name__)

FEWEST_RATERS = 10  # named; with fewer there are no others to be compared with
MOST_HOSTILE = 1 / 3  # of all ratings; where more seem hostile it is not few against many, and nobody is left out
TOPIC_SHARE = 0.05  # of a topic's ratings, what one rater may have where raters are many


@dataclass(frozen=True, eq=False)
class Screened:
    """What to learn from, and how many ratings were left out for which reason."""

    examples: tuple[Example, ...]
    quarantined: Mapping[str, int] = field(default_factory=dict)


def screen(examples: Sequence[Example]) -> Screened:
    """Leave out what is more likely hostile than honest, and limit what one rater says of one topic.

    Examples in the order of time. Unnamed raters cannot be told apart: they are heard. Nothing happens among fewer than
    `FEWEST_RATERS` named ones. Deterministic.
    """
    named = {rater for example in examples for rater in example.raters if rater is not None}
    if len(named) < FEWEST_RATERS:
        return Screened(tuple(examples))
    about = topics([example.embedding for example in examples]).tolist()
    left, quarantined = _left(examples, hostile(examples, about))
    return Screened(weighed(_limited(left, about)), quarantined)


def _left(examples: Sequence[Example], found: Hostile) -> tuple[list[Example | None], Mapping[str, int]]:
    """Each example without those who are hostile, and how many ratings that were by reason."""
    left: list[Example | None] = list(examples)
    quarantined: Counter[str] = Counter()
    for (i, rater), reason in found.items():
        before = left[i]
        if before:
            after = left[i] = without(before, {rater})
            quarantined[reason] += before.ratings - (after.ratings if after else 0)
    if quarantined.total() > MOST_HOSTILE * sum(example.ratings for example in examples):
        logger.warning("ratings contradict each other too much to say who is hostile; none was left out")
        return list(examples), {}
    return left, dict(quarantined)


def _limited(examples: Sequence[Example | None], about: Sequence[int]) -> list[Example]:
    """Those that are left, each label's part what it weighs: less where its rater would own all ratings or a topic.

    What one rater says of a topic is cut only as far as the limit on all of it does not do that already.
    """
    left = [example for example in examples if example]
    weights = iter(label_votes([label for example in left for label in example.labels]).tolist())
    told = [_told(example, [next(weights) for _ in example.labels]) for example in left]
    topic = [number for number, example in zip(about, examples, strict=True) if example]
    mass: dict[int, dict[str | None, float]] = defaultdict(lambda: defaultdict(float))
    for example, number in zip(told, topic, strict=True):
        for label in example.labels:
            mass[number][label.rater] += label.part
    factors = {number: _factors(raters) for number, raters in mass.items()}
    return [
        _told(example, [label.part * factors[number].get(label.rater, 1.0) for label in example.labels])
        for example, number in zip(told, topic, strict=True)
    ]


def _told(example: Example, parts: Sequence[float]) -> Example:
    labels = tuple(replace(label, part=part) for label, part in zip(example.labels, parts, strict=True))
    return replace(example, labels=labels)


def _factors(mass: Mapping[str | None, float]) -> dict[str | None, float]:
    """What each named rater's labels of one topic are multiplied by."""
    named = [rater for rater, part in mass.items() if rater is not None and part > 0]
    if not named:
        return {}
    share = max(TOPIC_SHARE, 2 / len(named))
    cut = limited(np.array([mass[rater] for rater in named]), share, mass.get(None, 0.0))
    return dict(zip(named, cut.tolist(), strict=True))
