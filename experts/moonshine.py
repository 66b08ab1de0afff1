"""Writes down what is said in a recording, in English: Moonshine tiny (Jeffries et al. 2024, "Moonshine: Speech
Recognition for Live Transcription and Voice Commands").

Unlike Whisper's, its encoder takes no longer than what it hears, so short recordings cost little. Speech is cut in the
pauses, and each piece is written down by itself, greedily, on onnxruntime, with weights of 8 bits.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

from multimoe.config import ExpertSpec
from multimoe.errors import WeightsError
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import SAMPLE_RATE, ChatRequest
from multimoe.outputs import Segment, Transcript
from multimoe.speech import Utterance, Voices

LONGEST = 20.0  # seconds heard at once: it was trained on up to 30
TOKENS_PER_SECOND = 6.5  # its makers' limit, which ends a loop early
LEAST_TOKENS = 8
BEGIN, END, SPECIAL = 1, 2, 3  # tokens; those below SPECIAL are none of the text


class Transcriber(BatchExpert):
    """Weights: `model`, a folder with encoder_model.ort, decoder_model_merged.ort and tokenizer.bin."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        folder = self.weight("model")
        self._tokens = read_tokens(folder / "tokenizer.bin")
        self._encoder = _session(folder / "encoder_model.ort")
        self._decoder = _session(folder / "decoder_model_merged.ort")
        self._caches = {  # name -> (batch, heads, positions so far, width)
            cache.name: np.zeros((1, cache.shape[1], 0, cache.shape[3]), np.float32)
            for cache in self._decoder.get_inputs()
            if cache.name.startswith("past_key_values.")
        }
        self._voices = Voices(LONGEST)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        heard: list[list[Segment]] = [[] for _ in requests]
        for utterance in self._voices.utterances(requests):
            if (segment := self._segment(utterance)).text:
                heard[utterance.request].append(segment)
        return [Answer(Transcript(segments=tuple(segments), language="en")) for segments in heard]

    def _segment(self, utterance: Utterance) -> Segment:
        tokens, chances = zip(*self._written(utterance.samples), (END, 1.0), strict=True)
        spelled = b"".join(self._tokens[token] for token in tokens if token >= SPECIAL)
        start, end = utterance.spoken
        return Segment(
            start=start,
            end=end,
            text=spelled.decode(errors="replace").replace("\u2581", " ").strip(),
            confidence=float(np.exp(np.log(chances).mean())),
        )

    def _written(self, samples: NDArray[np.float32]) -> Iterator[tuple[int, float]]:
        """The likeliest token, and its probability, after another, the end excluded.

        Pieces are not batched: the weights' 8 bits scale with the batch, and an answer would depend on its neighbours.
        """
        sound = {"input_values": samples[None], "attention_mask": np.ones((1, len(samples)), np.int64)}
        (states,) = self._encoder.run(None, sound)  # (1, positions, width)
        caches, token = dict(self._caches), BEGIN
        for step in range(max(LEAST_TOKENS, round(len(samples) / SAMPLE_RATE * TOKENS_PER_SECOND))):
            inputs = {
                "input_ids": np.array([[token]], np.int64),
                "encoder_hidden_states": states,
                "encoder_attention_mask": sound["attention_mask"],  # of the samples, too
                "use_cache_branch": np.array([step > 0]),
            }
            logits, *now = self._decoder.run(None, inputs | caches)  # logits: (1, 1, vocabulary)
            token = int(logits[0, -1].argmax())
            if token == END:
                return
            yield token, float(1 / np.exp(logits[0, -1] - logits[0, -1, token]).sum())
            fresh = dict(zip(self._caches, now, strict=True))
            caches |= {name: fresh[name] for name in fresh if step == 0 or ".decoder." in name}


def read_tokens(path: Path) -> list[bytes]:
    """What each token spells, U+2581 for a space: one or two bytes of length before each. Raises WeightsError."""
    try:
        data = path.read_bytes()
        tokens, at = [], 0
        while at < len(data):
            size, at = data[at], at + 1
            if size >= 128:
                size, at = size - 128 + 128 * data[at], at + 1
            tokens.append(data[at : at + size])
            at += size
    except (OSError, IndexError) as error:
        raise WeightsError(f"{path} does not hold Moonshine's tokens: {error}") from error
    return tokens


def _session(path: Path) -> Any:
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = one_thread.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), one_thread, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each status, and no common one
        raise WeightsError(f"{path} is no network that onnxruntime can load: {error}") from error
