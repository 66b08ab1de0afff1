"""Writes down the notes of a recording: Basic Pitch (Bittner, Bosch, Rubinstein, Meseguer-Brocal and Ewert, "A
Lightweight Instrument-Agnostic Model for Polyphonic Note Transcription and Multipitch Estimation", ICASSP 2022).

The network gives, for each of the 88 keys of a piano and each 256th sample, how likely a note begins and how likely it
sounds; the rest of this module draws notes into that. It hears no instrument, key or beat, and takes speech for notes.
"""

from collections.abc import Sequence

import av
import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray
from pydantic import Field

from multimoe.config import ExpertSpec, Settings
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import SAMPLE_RATE, ChatRequest
from multimoe.outputs import Event, Events, Probability

RATE = 22_050  # Hz
HOP = 256  # samples between two frames
WINDOW = 2 * RATE - HOP  # 43844 samples, what the network takes
MARGIN = 15  # frames at each end of a window that lack their surroundings: dropped
KEPT = WINDOW // HOP - 2 * MARGIN  # 141 frames of each window, so that windows meet at a frame
LOWEST = 21  # MIDI number of A0, the first key
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
PATIENCE = 11  # frames below the threshold after which a note is over
INPUT, SOUNDING, BEGINNING = "serving_default_input_2:0", "StatefulPartitionedCall:1", "StatefulPartitionedCall:2"

Frames = NDArray[np.float32]  # (frames, 88 keys), probabilities


class Options(Settings):
    """`onset` and `frame`: the probabilities above which a note begins and sounds; `min_ms`: the shortest note."""

    onset: Probability = 0.5
    frame: Probability = 0.3
    min_ms: float = Field(default=58, ge=0)


class NoteWriter(BatchExpert):
    """Where a request brings several recordings, they count as played one after the other."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        options = self.options(Options)
        self._onset, self._frame = options.onset, options.frame
        self._shortest = round(options.min_ms / 1000 * RATE / HOP)  # frames
        one_thread = onnxruntime.SessionOptions()
        one_thread.intra_op_num_threads = one_thread.inter_op_num_threads = 1
        self._network = onnxruntime.InferenceSession(
            str(self.weight("model")), one_thread, providers=["CPUExecutionProvider"]
        )

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(self._write(request)) for request in requests]

    def _write(self, request: ChatRequest) -> Events:
        events: list[Event] = []
        played = 0.0
        for audio in request.audios:
            events += self.transcribe(audio.samples, played)
            played += audio.seconds
        return Events(space="notes", duration=played, events=tuple(events))

    def transcribe(self, samples: NDArray[np.float32], begin: float = 0.0) -> list[Event]:
        """The notes of one recording in order of time, `begin` seconds added; the score is the mean over its frames."""
        if not len(samples):
            return []
        sounding, beginning = self._listen(samples)
        found = draw_notes(sounding, beginning, self._onset, self._frame, self._shortest)
        return [
            Event(
                label=note_name(LOWEST + key),
                start=begin + first * HOP / RATE,
                end=begin + min(last * HOP / RATE, len(samples) / SAMPLE_RATE),
                score=float(sounding[first:last, key].mean()),
            )
            for first, last, key in sorted(found)
        ]

    def _listen(self, samples: NDArray[np.float32]) -> tuple[Frames, Frames]:
        """How likely each key sounds and begins, both (frames, 88); windows overlap by twice `MARGIN`."""
        audio = _resampled(samples)
        frames = -(-len(audio) // HOP)
        count = max(-(-frames // KEPT), 1)
        padded = np.zeros((count - 1) * KEPT * HOP + WINDOW, np.float32)
        padded[MARGIN * HOP : MARGIN * HOP + len(audio)] = audio[: len(padded) - MARGIN * HOP]
        heard = [self._window(padded[start : start + WINDOW]) for start in range(0, count * KEPT * HOP, KEPT * HOP)]
        sounding, beginning = np.concatenate(heard, axis=1)[:, :frames]
        return sounding, beginning

    def _window(self, samples: NDArray[np.float32]) -> Frames:
        """(2, frames kept, 88): sounding and beginning within one window."""
        both = self._network.run([SOUNDING, BEGINNING], {INPUT: samples[None, :, None]})
        return np.concatenate(both)[:, MARGIN : MARGIN + KEPT]


def draw_notes(
    sounding: Frames, beginning: Frames, onset: float, frame: float, shortest: int
) -> list[tuple[int, int, int]]:
    """Notes as (first frame, frame after the last, key): first those whose beginning is heard, latest first, then those
    that sound without one, loudest first. All probabilities (frames, 88); `shortest` in frames.

    A note begins at `onset` and lasts while it sounds above `frame`; one without a beginning must sound above `onset`
    somewhere, or overtones would pass for notes. What a note covers, its neighbour keys included, is no second note.
    """
    left = sounding.copy()
    notes = []
    for first, key in _beginnings(np.maximum(beginning, _rises(sounding, beginning)), onset):
        last = _until_quiet(left[first:, key], frame) + first
        if last - first > shortest:
            notes.append((first, last, key))
            _take(left, first, last, key)
    for middle, key in _loudest(left, onset):
        if left[middle, key] > 0:  # not taken meanwhile
            last = _until_quiet(left[middle:, key], frame) + middle
            first = middle + 1 - _until_quiet(left[middle::-1, key], frame)
            if last - first > shortest:
                notes.append((first, last, key))
            _take(left, first, last, key)
    return notes


def _resampled(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """From `SAMPLE_RATE` to `RATE`; by FFmpeg, because torch would be most of this expert's memory."""
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    parts = [part.to_ndarray()[0] for piece in (frame, None) for part in resampler.resample(piece)]
    return np.concatenate([np.empty(0, np.float32), *parts], dtype=np.float32)


def note_name(number: int) -> str:
    """Of a MIDI note: 60 is "C4"."""
    return f"{NAMES[number % 12]}{number // 12 - 1}"


def _rises(sounding: Frames, beginning: Frames) -> Frames:
    """Where a key grows louder over one and over two frames, scaled to the heights of `beginning`."""
    before = np.pad(sounding, ((2, 0), (0, 0)))
    rise: Frames = np.minimum(sounding - before[1:-1], sounding - before[:-2]).clip(min=0)
    rise[:2] = 0
    highest = float(rise.max(initial=0.0))
    return rise * np.float32(beginning.max() / highest) if highest > 0 else rise


def _beginnings(beginning: Frames, onset: float) -> list[tuple[int, int]]:
    """(frame, key) of every peak in time that reaches `onset`, latest first."""
    around = np.pad(beginning, ((1, 1), (0, 0)))
    peaks = (beginning >= onset) & (beginning > around[:-2]) & (beginning > around[2:])
    return [(int(first), int(key)) for first, key in np.argwhere(peaks)[::-1]]


def _loudest(sounding: Frames, least: float) -> list[tuple[int, int]]:
    """(frame, key) of all that sounds above `least`, loudest first."""
    loud = sounding > least
    cells = np.argwhere(loud)[np.argsort(-sounding[loud], kind="stable")]
    return [(int(middle), int(key)) for middle, key in cells]


def _until_quiet(key: NDArray[np.float32], frame: float) -> int:
    """How many frames pass until the key stays below `frame` for `PATIENCE` frames, or the recording ends."""
    quiet = 0
    for index in range(1, len(key)):
        quiet = quiet + 1 if key[index] < frame else 0
        if quiet == PATIENCE:
            return index + 1 - quiet
    return len(key) - quiet


def _take(left: Frames, first: int, last: int, key: int) -> None:
    left[first:last, max(key - 1, 0) : key + 2] = 0
