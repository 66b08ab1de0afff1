"""Several texts become one: by a vote, or as candidates from which a text expert writes a new one.

It knows vectors and words; which expert said what, and who is asked to write, is not its business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multimoe.messages import ChatRequest, Modality

TOLD_CHARS = 4000  # of each candidate that the one who fuses them is told


@dataclass(frozen=True)
class Vote:
    """`winner` is an index. `utilities` (n,) in [-1, 1]; `agreement` is the winner's with the other candidates."""

    winner: int
    utilities: tuple[float, ...]
    agreement: float


def vote(weights: Sequence[float], vectors: Sequence[Sequence[float]]) -> Vote:
    """The candidate of least expected risk (minimum Bayes risk, Kumar & Byrne 2004; Bertsch et al. 2023).

    What it says is taken for right in as far as others say the same: the utility of candidate i is the expectation of
    its cosine similarity to a candidate drawn by `weights` (n,) >= 0, itself among them. `vectors` (n, d) are of length
    1. The first of equals wins. Raises ValueError on no candidates.
    """
    if not len(weights):
        raise ValueError("there is nothing to vote on")
    share = _shares(weights)
    vector = np.asarray(vectors, dtype=np.float64)
    likeness = np.clip(vector @ vector.T, -1, 1)  # (n, n)
    utilities = likeness @ share  # (n,)
    winner = int(np.argmax(utilities))
    others = np.delete(share, winner)
    apart = np.delete(likeness[winner], winner)
    if not others.sum():  # alone, or the only one with any weight
        others = np.ones(len(others))
    agreement = float(others @ apart / others.sum()) if len(others) else 1.0
    return Vote(winner, tuple(utilities.tolist()), agreement)


def to_fuse(
    request: ChatRequest, candidates: Sequence[tuple[float, str]], reads: frozenset[Modality] = frozenset()
) -> ChatRequest:
    """The request to write one answer from weighted `candidates` (Jiang et al. 2023; Wang et al. 2024), best first.

    Media in `reads` stay in the question.
    """
    share = _shares([weight for weight, _ in candidates])
    ranked = sorted(zip(share, (text for _, text in candidates), strict=True), key=lambda candidate: -candidate[0])
    told = [f"Answer {place} (trust {weight:.0%}): {_cut(text)}" for place, (weight, text) in enumerate(ranked, 1)]
    return request.asking(
        "\n".join(
            [
                f"Question: {request.text}",
                *told,
                "These answers may be wrong. Using what is right in them, write one short and correct answer to the "
                "question. Write the answer only.",
            ]
        ),
        keep=reads,
    )


def _shares(weights: Sequence[float]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """(n,), summing to 1; even where all are 0."""
    weight = np.asarray(weights, dtype=np.float64)
    return weight / weight.sum() if weight.sum() > 0 else np.full(len(weight), 1 / len(weight))


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= TOLD_CHARS else text[:TOLD_CHARS].rsplit(maxsplit=1)[0] + " …"
