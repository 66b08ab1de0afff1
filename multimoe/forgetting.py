"""How much older ratings still count. Tastes and models change; by how much is read off the log itself.

A half-life is right when it predicts best: ratings are predicted from those before them, fading by that half-life, and
the one whose predictions cost least wins (prequential; Dawid 1984). Nothing fades unless that is clearly better.
"""

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from multimoe.examples import Example, label_votes
from multimoe.topics import topics

Float = NDArray[np.float64]
Int = NDArray[np.intp]

HALVINGS = (1, 2, 4, 8, 16)  # half-lives that are tried, as parts of the log's span
FEWEST = 200  # ratings; with fewer nothing can be said of change
WARM = 1 / 3  # of the log is only learned from
DOUBT = 6.0  # ratings that an expert's mean over all topics counts for in each of them
BLOCKS = 100  # of a log, each predicted from those before it
CLEARLY = 2.0  # standard errors by which fading must be better than not


def recency(examples: Sequence[Example], half_life: timedelta | None) -> Float:
    """How much each example still counts, (n,) in (0, 1], by its age beside the newest; 1 without a half-life."""
    if half_life is None or not examples:
        return np.ones(len(examples))
    newest = max(example.created for example in examples)
    fading: Float = 0.5 ** np.array([(newest - example.created) / half_life for example in examples])
    return fading


def half_life(examples: Sequence[Example]) -> timedelta | None:
    """By which half-life this log predicts itself best; None where no fading is clearly better than forgetting nothing.

    Examples in the order of time.
    """
    labels = [(i, label) for i, example in enumerate(examples) for label in example.labels]
    span = examples[-1].created - examples[0].created if examples else timedelta()
    if len(labels) < FEWEST or not span:
        return None
    names = {name: j for j, name in enumerate(sorted({label.expert for _, label in labels}))}
    about = topics([example.embedding for example in examples])
    losses = _losses(
        at=np.array([(examples[i].created - examples[0].created) / span for i, _ in labels]),
        topic=about[[i for i, _ in labels]],
        expert=np.array([names[label.expert] for _, label in labels], dtype=np.intp),
        score=np.array([label.score for _, label in labels]),
        weight=label_votes([label for _, label in labels]),
    )
    saved = losses[:, :1] - losses[:, 1:]  # (ratings, half-lives), against forgetting nothing
    best = int(np.argmax(saved.mean(axis=0)))
    clearly = CLEARLY * saved[:, best].std() / len(saved) ** 0.5
    return span / HALVINGS[best] if saved[:, best].mean() > clearly else None


def _losses(at: Float, topic: Int, expert: Int, score: Float, weight: Float) -> Float:
    """Log loss of the later ratings, each predicted from those before its block, (later, 1 + half-lives).

    Column 0 forgets nothing. `at` in [0, 1] rises; all (n,).
    """
    topics, experts = int(topic.max()) + 1, int(expert.max()) + 1
    rates = np.log(2) * np.array([0.0, *HALVINGS])
    sums = np.zeros((2, topics, experts, len(rates)))  # of scores and of weights, as they have faded by `moment`
    likely = np.zeros((len(at), len(rates)))
    moment = 0.0
    for block in np.array_split(np.arange(len(at)), BLOCKS):
        now = float(at[block].mean())
        sums *= np.exp(-rates * (now - moment))
        moment = now
        likely[block] = _means(*sums)[topic[block], expert[block]]
        cell = topic[block] * experts + expert[block]
        for table, each in zip(sums, (score * weight, weight), strict=True):
            table += np.bincount(cell, each[block], topics * experts).reshape(topics, experts, 1)
    losses: Float = -weight[:, None] * (score[:, None] * np.log(likely) + (1 - score[:, None]) * np.log(1 - likely))
    return losses[int(WARM * len(at)) :]


def _means(score: Float, weight: Float) -> Float:
    """Mean scores by topic and expert, shrunk towards those of the expert over all topics; (topics, experts, rates)."""
    overall = (score.sum(axis=0) + 1) / (weight.sum(axis=0) + 2)
    means: Float = (score + DOUBT * overall) / (weight + DOUBT)
    return means
