"""Several transcripts of one recording become one: they are aligned word by word, and each word is put to the vote.

ROVER (Fiscus 1997). Recognisers err in different places, so what most of them heard is right more often than what any
one did. Words are told apart by their letters alone; which spelling is kept is the weightiest recogniser's among those
that voted for the word. A text without spaces between words counts as one word.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multimoe.outputs import Segment, Transcript

ALPHA = 0.5  # how much the number of votes counts; the rest is how confident the voters are
NULL_CONFIDENCE = 0.7  # of a recogniser that heard no word where others did
GAP = 0.75  # what it costs to align a word with nothing, where one with another word costs 1
PAUSE = 1.0  # seconds without a word that end a segment

_HYPHEN = re.compile(r"(?<=\w[-\u2010])(?=\w)")  # "ill-disposed" is "ill-" and "disposed"
SILENT = ""  # the letters of no word

Costs = NDArray[np.float64]


@dataclass(frozen=True)
class Word:
    """A word as one recogniser spelled it, with the space after it, if any.

    Its times are read off its segment, as if all letters took equally long.
    """

    spelled: str
    letters: str
    start: float
    end: float
    segment: int
    confidence: float | None


Slot = dict[int, Word | None]  # what each recogniser so far heard at one place: its word, or nothing


@dataclass(frozen=True)
class Winner:
    """The word that won a slot, its vote in [0, 1], and the segment that the weightiest recogniser heard it in."""

    word: Word
    vote: float
    segment: int | None


def rover(parts: Sequence[tuple[float, Transcript]], alpha: float = ALPHA) -> Transcript:
    """The transcript that the parts vote for, each with its weight, >= 0 in any scale (all 0 count as equal).

    A word's vote is `alpha` times the share of the weight that heard it, and 1 - `alpha` times how confident those
    were (Fiscus 1997, eq. 1, with weights); where a recogniser gives no confidence, shares alone decide. An empty
    transcript votes for silence. Transcripts that agree come back as they are. A segment's `confidence` is the mean
    vote of its words. Raises ValueError on no parts.
    """
    if not parts:
        raise ValueError("nothing to blend: no transcript")
    heaviest_first = sorted(parts, key=lambda part: -part[0])
    weights = [weight for weight, _ in heaviest_first if weight > 0] or [1.0] * len(parts)
    transcripts = [transcript for _, transcript in heaviest_first[: len(weights)]]
    if len(set(transcripts)) == 1:
        return transcripts[0]
    spoken = [list(_words(transcript)) for transcript in transcripts]
    slots: list[Slot] = []
    for voter, words in enumerate(spoken):
        slots = list(_joined(slots, voter, words, weights))
    confident = all(word.confidence is not None for words in spoken for word in words)
    winners = [won for slot in slots if (won := _elected(slot, weights, alpha if confident else 1.0))]
    languages = {transcript.language for transcript in transcripts if transcript.segments}
    return Transcript(
        segments=tuple(_segment(group) for group in _grouped(winners)),
        language=languages.pop() if len(languages) == 1 else None,
    )


def _words(transcript: Transcript) -> Iterator[Word]:
    for index, segment in enumerate(transcript.segments):
        spellings = list(_spelled(segment.text))
        letters = np.cumsum([len(spelled) for spelled in spellings])
        times = segment.start + (segment.end - segment.start) * np.array([0, *letters]) / max(letters, default=1)
        for spelled, start, end in zip(spellings, times.tolist(), times[1:].tolist(), strict=False):
            yield Word(spelled, _letters(spelled), start, end, index, segment.confidence)


def _spelled(text: str) -> Iterator[str]:
    for part in text.split():
        *glued, last = _HYPHEN.split(part)
        yield from glued
        yield last + " "


def _letters(spelled: str) -> str:
    """What makes it this word: neither case nor the punctuation around it. Punctuation alone stands for itself."""
    folded = unicodedata.normalize("NFKC", spelled.strip()).casefold().replace("\u2019", "'")
    return re.sub(r"^[^\w]+|[^\w]+$", "", folded) or folded


def _joined(slots: list[Slot], voter: int, words: list[Word], weights: Sequence[float]) -> Iterator[Slot]:
    """The slots with one more recogniser's words put where they fit at the least cost."""
    for row, column in _aligned([_shares(slot, weights) for slot in slots], [word.letters for word in words]):
        word = words[column] if column is not None else None
        yield (slots[row] if row is not None else dict.fromkeys(range(voter))) | {voter: word}


def _shares(slot: Slot, weights: Sequence[float]) -> dict[str, float]:
    """The share of the weight so far that each word has, by its letters; the weightiest recogniser's first."""
    shares: dict[str, float] = defaultdict(float)
    for voter, word in slot.items():
        shares[word.letters if word else SILENT] += weights[voter]
    total = sum(shares.values())
    return {letters: share / total for letters, share in shares.items()}


def _aligned(slots: Sequence[dict[str, float]], words: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Pairs of a slot and a word, in order, None where one has no counterpart: the least sum of expected costs."""
    other = np.ones((len(slots), len(words)))  # the share of those in the slot who heard another word
    places: dict[str, list[int]] = defaultdict(list)
    for column, word in enumerate(words):
        places[word].append(column)
    for row, shares in enumerate(slots):
        for letters, share in shares.items():
            other[row, places.get(letters, [])] -= share
    silence = GAP * np.array([1 - shares.get(SILENT, 0.0) for shares in slots])
    return _traced(_costs(other, silence), other, silence)


def _costs(other: Costs, silence: Costs) -> Costs:
    """(slots + 1, words + 1): the least cost of aligning so many slots with so many words, row by row."""
    inserted = GAP * np.arange(other.shape[1] + 1)
    costs = np.empty((other.shape[0] + 1, other.shape[1] + 1))
    costs[0] = inserted
    for row in range(other.shape[0]):
        ahead = costs[row] + silence[row]
        ahead[1:] = np.minimum(ahead[1:], costs[row, :-1] + other[row])
        costs[row + 1] = np.minimum.accumulate(ahead - inserted) + inserted  # any number of words put in between
    return costs


def _traced(costs: Costs, other: Costs, silence: Costs) -> list[tuple[int | None, int | None]]:
    pairs: list[tuple[int | None, int | None]] = []
    row, column = other.shape
    while row or column:
        cost = costs[row, column] + 1e-9
        if row and column and costs[row - 1, column - 1] + other[row - 1, column - 1] <= cost:
            row, column = row - 1, column - 1
            pairs.append((row, column))
        elif row and costs[row - 1, column] + silence[row - 1] <= cost:
            row -= 1
            pairs.append((row, None))
        else:
            column -= 1
            pairs.append((None, column))
    return pairs[::-1]


def _elected(slot: Slot, weights: Sequence[float], alpha: float) -> Winner | None:
    """The word with the most votes, the weightiest recogniser's of equals; None where silence wins."""
    votes = {
        letters: round(alpha * share + (1 - alpha) * _confidence(slot, letters, weights), 9)
        for letters, share in _shares(slot, weights).items()
    }
    most = max(votes, key=lambda letters: votes[letters])
    word = next((word for word in slot.values() if word and word.letters == most), None)
    return Winner(word, votes[most], slot[0].segment if slot[0] else None) if word else None


def _confidence(slot: Slot, letters: str, weights: Sequence[float]) -> float:
    """How confident the recognisers are, by weight, that heard this word."""
    heard = [(weights[voter], word.confidence) for voter, word in slot.items() if word and word.letters == letters]
    known = [(weight, confidence) for weight, confidence in heard if confidence is not None]
    total = sum(weight for weight, _ in known)
    return sum(weight * confidence for weight, confidence in known) / total if known else NULL_CONFIDENCE


def _grouped(winners: Sequence[Winner]) -> Iterator[list[Winner]]:
    """Segments as the weightiest recogniser cut them, and cut where nobody speaks for a while."""
    group: list[Winner] = []
    current: int | None = None
    for winner in winners:
        elsewhere = None not in (winner.segment, current) and winner.segment != current
        if group and (elsewhere or winner.word.start - group[-1].word.end > PAUSE):
            yield group
            group, current = [], None
        group.append(winner)
        current = winner.segment if winner.segment is not None else current
    if group:
        yield group


def _segment(winners: Sequence[Winner]) -> Segment:
    return Segment(
        start=min(winner.word.start for winner in winners),
        end=max(winner.word.end for winner in winners),
        text="".join(winner.word.spelled for winner in winners).strip(),
        confidence=min(1.0, sum(winner.vote for winner in winners) / len(winners)),
    )
