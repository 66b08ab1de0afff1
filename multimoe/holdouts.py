"""The log cut into blocks of time, and what is learned before each of them: what judging a gate needs.

A candidate is fixed before the block it is judged on (progressive validation, `multimoe.judge`).
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise

import numpy as np

from multimoe.checkpoint import TABLES
from multimoe.errors import CheckpointError, TooLittleData
from multimoe.examples import Example, votes
from multimoe.gate import Gate
from multimoe.judge import FEWEST_JUDGED, Holdout
from multimoe.quality import Learned
from multimoe.training import fit

ONLY_LEARNED = 0.3  # of the weight of ratings, from the oldest on, is judged by nobody
BLOCKS = 5  # that the rest is cut into


def learn_in_turn(
    examples: Sequence[Example], gate: Gate, version: int, since: datetime | None, tell: Callable[[float, str], None]
) -> list[Holdout]:
    """Each block with the gate, named `version`, that learned from all before it; the last is the candidate.

    Nothing up to `since`, what the champion learned from, is judged: there it would look better than it is. Raises
    TooLittleData where nothing can be learned, and CheckpointError for a fit that gave no numbers.
    """
    holdouts = []
    cuts = [*_cuts(examples, since), len(examples)]
    for number, (at, end) in enumerate(pairwise(cuts)):
        tell(number / len(cuts), f"fitting {at} rated answers")
        try:
            learned = fit(examples[:at], gate)
        except TooLittleData:
            if end == len(examples):
                raise
        else:
            _check_finite(learned)
            holdouts.append(Holdout(examples[at:end], gate.with_learned(learned, version)))
    return holdouts


def _cuts(examples: Sequence[Example], since: datetime | None) -> list[int]:
    """Where blocks begin: even in the weight of ratings, so that one rater cannot push all others into the past."""
    weight = np.cumsum(votes([example.rater for example in examples]))
    known = sum(since is not None and example.created <= since for example in examples)
    first = max(int(np.searchsorted(weight, ONLY_LEARNED * weight[-1] + 1e-9)), known)
    blocks = min(max(1, (len(examples) - first) // FEWEST_JUDGED), BLOCKS)
    marks = np.linspace(weight[first - 1] if first else 0.0, weight[-1], blocks + 1)[1:-1]
    return [first, *(int(at) for at in np.searchsorted(weight, marks + 1e-9))]


def _check_finite(learned: Learned) -> None:
    if not all(np.isfinite(getattr(learned, table)).all() for table in (*TABLES, "slope")):
        raise CheckpointError("learning gave numbers that are not finite, so no version was written; report this")
