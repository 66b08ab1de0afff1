"""Writes down what is said in a recording, with any speech recogniser among torchaudio's pipelines: wav2vec 2.0
(Baevski et al. 2020), HuBERT (Hsu et al. 2021) and their kin.

They hear letters, one or none each 20 ms (CTC), and know no words: there is no punctuation and no capital, and an odd
spelling now and then. Segments end where nobody speaks for half a second.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  # to catch
from typing import Any, Literal

import numpy as np
import torch
import torchaudio  # type: ignore[import-untyped]  # it ships no types
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from torchaudio.functional import TokenSpan, merge_tokens  # type: ignore[import-untyped]

from multimoe import hub
from multimoe.config import ExpertSpec, Settings
from multimoe.errors import BadConfig, WeightsError
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import SAMPLE_RATE, ChatRequest
from multimoe.outputs import Segment, Transcript
from multimoe.speech import Utterance, Voices

LONGEST = 20.0  # seconds heard at once: memory grows with its square
PAUSE = 0.5  # seconds between words that end a segment
SHORTEST = 400  # samples that the first frame takes
BETWEEN_WORDS = "|"


class Options(Settings):
    """`pipeline`: its name in torchaudio.pipelines (WAV2VEC2_ASR_BASE_960H); `language`: as the transcript names it."""

    pipeline: str
    language: str = "en"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = Field(default=1, ge=1)


class Transcriber(BatchExpert):
    """Weights: `model`, the file of the pipeline as torchaudio publishes it."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        options = self.options(Options)
        torch.set_num_threads(options.threads)
        self._language, self._dtype = options.language, getattr(torch, options.dtype)
        pipeline = find_pipeline(options.pipeline)
        self._labels = pipeline.get_labels()
        self._device = hub.device(spec)
        loaded = _load(pipeline, self.weight("model"))
        self._normalised = bool(getattr(loaded, "normalize_waveform", False))
        # what wraps it normalises a whole batch at once, so that an answer would depend on its neighbours
        network = loaded.model if self._normalised else loaded
        with hub.running(spec.name):
            self._network = network.to(self._device, self._dtype)
        self._alone = any(isinstance(module, nn.GroupNorm) for module in network.modules())  # padding would count
        self._voices = Voices(LONGEST)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        heard: list[list[Segment]] = [[] for _ in requests]
        utterances = sorted(self._voices.utterances(requests), key=lambda utterance: len(utterance.samples))
        size = 1 if self._alone else max(self.spec.batch.size, 1)
        for first in range(0, len(utterances), size):
            group = utterances[first : first + size]
            with hub.running(self.spec.name):
                chances = self._listen(group)
            for utterance, frames in zip(group, chances, strict=True):
                heard[utterance.request] += segments(frames, self._labels, utterance)
        return [
            Answer(Transcript(segments=tuple(sorted(parts, key=lambda part: part.start)), language=self._language))
            for parts in heard
        ]

    @torch.inference_mode()
    def _listen(self, utterances: Sequence[Utterance]) -> list[Tensor]:
        """The probability of each label in each frame, (frames, labels), of each utterance."""
        waves = [self._wave(utterance) for utterance in utterances]
        lengths = torch.tensor([len(wave) for wave in waves], device=self._device)
        padded = nn.utils.rnn.pad_sequence(waves, batch_first=True)  # (utterances, samples)
        logits, frames = self._network(padded, None if self._alone else lengths)  # (utterances, frames, labels)
        chances = logits.float().softmax(-1).cpu()
        counts = [chances.shape[1]] if frames is None else frames.tolist()
        return [chance[:count] for chance, count in zip(chances, counts, strict=True)]

    def _wave(self, utterance: Utterance) -> Tensor:
        samples = np.pad(utterance.samples, (0, max(0, SHORTEST - len(utterance.samples))))
        wave = torch.from_numpy(samples).to(self._device)
        return (layer_norm(wave, wave.shape) if self._normalised else wave).to(self._dtype)


def find_pipeline(name: str) -> Any:
    """A speech recogniser of torchaudio's. Raises BadConfig, naming them all."""
    known = {
        key: value
        for key, value in vars(torchaudio.pipelines).items()
        if isinstance(value, torchaudio.pipelines.Wav2Vec2ASRBundle)
    }
    if name not in known:
        raise BadConfig(f"torchaudio has no pipeline {name!r} that writes down speech; it has {', '.join(known)}")
    return known[name]


def segments(chances: Tensor, labels: Sequence[str], utterance: Utterance) -> Iterator[Segment]:
    """What the likeliest label of each frame spells, cut in the pauses; the first label is none.

    `chances` (frames, labels) are probabilities. The confidence is the mean of the letters'.
    """
    best, path = chances.max(-1)
    frame = len(utterance.samples) / SAMPLE_RATE / len(chances)  # seconds
    phrases: list[list[list[TokenSpan]]] = []
    for word in _words(merge_tokens(path, best), labels):
        if phrases and (word[0].start - phrases[-1][-1][-1].end) * frame < PAUSE:
            phrases[-1].append(word)
        else:
            phrases.append([word])
    for phrase in phrases:
        letters = [span for word in phrase for span in word]
        yield Segment(
            start=utterance.time(letters[0].start * frame),
            end=utterance.time(letters[-1].end * frame),
            text=" ".join("".join(labels[span.token] for span in word) for word in phrase).lower(),
            confidence=min(1.0, sum(span.score for span in letters) / len(letters)),
        )


def _words(spans: Sequence[TokenSpan], labels: Sequence[str]) -> Iterator[list[TokenSpan]]:
    word: list[TokenSpan] = []
    for span in spans:
        if labels[span.token] != BETWEEN_WORDS:
            word.append(span)
        elif word:
            yield word
            word = []
    if word:
        yield word


def _load(pipeline: Any, path: Path) -> Any:
    """torchaudio's own loading, told that the file has been downloaded already; tensors alone are unpickled."""
    if not path.is_file():
        raise WeightsError(f"{path} is no file: the weights of a pipeline are one")
    here = {"model_dir": str(path.parent), "file_name": path.name, "map_location": "cpu", "weights_only": True}
    try:
        return pipeline.get_model(dl_kwargs=here)
    except (OSError, RuntimeError, UnpicklingError, KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{path} does not hold the weights of this pipeline: {error}") from error
