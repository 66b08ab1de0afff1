"""The frozen encoders: lengths and shapes, fast paths against slow ones, what is read of a request, and whether a
concept lies near the right words before anything is learned."""

import csv
from pathlib import Path

import gradio
import numpy as np
import pytest
import skimage
import torch
from PIL import Image, ImageDraw, ImageFont

from multimoe.config import Catalog, EncoderSpec, GateSpec, Limits
from multimoe.embedding import CONCEPT
from multimoe.encoder import AudioEncoder, Encoders, ImageEncoder, TextEncoder
from multimoe.encoder.audio import WINDOW, WINDOWS
from multimoe.errors import BadConfig, WeightsError
from multimoe.expert import FindWeights
from multimoe.media import decode_audio, decode_image
from multimoe.messages import SAMPLE_RATE, AudioPart, ChatRequest, ImagePart, Message, Part, Role, TextPart

pytestmark = pytest.mark.weights

MEDIA = Path(__file__).parents[2] / "shared" / "data" / "media"
RECORDINGS = Path(gradio.__file__).parent / "media_assets" / "audio"
NOISE = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE * 3).astype(np.float32)


@pytest.fixture(scope="module")
def encoders(catalog: Catalog, weights: FindWeights) -> Encoders:
    return Encoders.load(catalog.gate, weights)


@pytest.fixture(scope="module")
def text(catalog: Catalog, weights: FindWeights) -> TextEncoder:
    return TextEncoder(catalog.gate.encoders["text"], weights)


@pytest.fixture(scope="module")
def image(catalog: Catalog, weights: FindWeights, text: TextEncoder) -> ImageEncoder:
    return ImageEncoder(catalog.gate.encoders["image"], weights, text)


@pytest.fixture(scope="module")
def audio(catalog: Catalog, weights: FindWeights, text: TextEncoder) -> AudioEncoder:
    return AudioEncoder(catalog.gate.encoders["audio"], weights, text)


def asked(*turns: tuple[Role, str | Part | tuple[Part, ...]]) -> ChatRequest:
    def parts(said: str | Part | tuple[Part, ...]) -> tuple[Part, ...]:
        return (TextPart(said),) if isinstance(said, str) else said if isinstance(said, tuple) else (said,)

    return ChatRequest("r", tuple(Message(role, parts(said)) for role, said in turns))


def photograph(name: str) -> ImagePart:
    return ImagePart(np.ascontiguousarray(getattr(skimage.data, name)()))


def page() -> ImagePart:
    paper = Image.new("RGB", (400, 300), "ivory")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(20)
    for i, line in enumerate(
        ("The ferry leaves at noon.", "Tickets are sold at the pier;", "dogs travel free of charge.")
    ):
        draw.text((20, 20 + 30 * i), line, "black", font)
    return ImagePart(np.asarray(paper))


def recording(name: str) -> AudioPart:
    return decode_audio((RECORDINGS / name).read_bytes(), Limits())


def lengths(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1)


# --- text ---


def test_texts_have_length_one_and_do_not_depend_on_their_batch(text: TextEncoder) -> None:
    texts = ["A cat sleeps.", "", "word " * 1000, "¿Dónde está la biblioteca?"]
    together = text.embed_texts(texts)
    assert together.shape == (4, CONCEPT)
    assert together.dtype == np.float32
    assert np.allclose(lengths(together), 1, atol=1e-5)
    alone = np.concatenate([text.embed_texts([one]) for one in texts])
    assert np.allclose(together, alone, atol=1e-5)
    assert text.embed_texts([]).shape == (0, CONCEPT)


def test_texts_that_mean_the_same_lie_together(text: TextEncoder) -> None:
    cat, feline, tax = text.embed_texts(
        ["A cat sleeps on the sofa.", "The kitten naps on a couch.", "How are taxes paid?"]
    )
    assert cat @ feline > 0.5 > cat @ tax + 0.3


def test_special_tokens_in_a_text_are_harmless(text: TextEncoder) -> None:
    assert np.isfinite(text.embed_texts(["[CLS][SEP][MASK][PAD] <|endoftext|>"])).all()


def test_kept_embeddings_are_written_once_and_made_again_when_damaged(text: TextEncoder, tmp_path: Path) -> None:
    kept = object.__new__(TextEncoder)
    kept.__dict__.update(text.__dict__, folder=tmp_path)
    fresh = kept.kept(["one", "two"])
    (file,) = tmp_path.iterdir()
    kept.embed_texts = None  # type: ignore[assignment, method-assign]  # a second call must not need it
    assert np.array_equal(kept.kept(["one", "two"]), fresh)
    del kept.__dict__["embed_texts"]
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(kept.kept(["one", "two"]), fresh)
    kept.kept(["one", "three"])
    assert len(list(tmp_path.iterdir())) == 2
    kept.folder = tmp_path / "absent"
    assert np.array_equal(kept.kept(["one", "two"]), fresh)


# --- pictures ---


def test_pictures_give_features_and_a_concept_of_length_one(image: ImageEncoder) -> None:
    parts = [photograph("coffee"), ImagePart(np.zeros((1, 1, 3), np.uint8)), page()]
    vectors = image.embed(parts)
    for vector in vectors:
        assert vector.features.shape == (1280,)
        assert vector.concept.shape == (CONCEPT,)
        assert np.allclose([lengths(vector.features), lengths(vector.concept)], 1, atol=1e-5)
    alone = image.embed(parts[:1])[0]
    assert np.allclose(alone.features, vectors[0].features, atol=1e-4)
    assert np.allclose(alone.concept, vectors[0].concept, atol=1e-4)


def test_a_photograph_lies_near_its_name(image: ImageEncoder, text: TextEncoder) -> None:
    names = ["a cat", "a cup of coffee", "a rocket launch"]
    concepts = [vector.concept for vector in image.embed([photograph(n) for n in ("cat", "coffee", "rocket")])]
    assert (np.stack(concepts) @ text.embed_texts(names).T).argmax(axis=1).tolist() == [0, 1, 2]


def test_printed_words_are_told_from_photographs(image: ImageEncoder, text: TextEncoder) -> None:
    cards = text.embed_texts(["a page of a book, a sign or a menu", "a photograph of an animal or a thing"])
    pictures = [page(), ImagePart(np.repeat(skimage.data.page()[..., None], 3, 2))]
    pictures += [photograph(name) for name in ("cat", "coffee", "rocket", "astronaut")]
    words = [bool(np.subtract(*(vector.concept @ cards.T)) > 0) for vector in image.embed(pictures)]
    assert words == [True, True, False, False, False, False]


# --- sounds ---


def test_the_encoder_without_padding_is_whisper_where_nothing_is_padded(audio: AudioEncoder) -> None:
    sound = np.tile(NOISE, 10)  # 30 s
    with torch.inference_mode():
        mel = audio._log_mel(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        whole = audio._model.model.encoder(mel).last_hidden_state
        assert torch.allclose(audio._states(sound), whole, atol=1e-4)


@pytest.mark.parametrize("samples", [320, 4_000, 8_001, 100_000, 40 * SAMPLE_RATE])
def test_sounds_of_any_length_give_vectors_of_length_one(audio: AudioEncoder, samples: int) -> None:
    (vector,) = audio.embed([AudioPart(np.resize(NOISE, samples))])
    assert vector.features.shape == (384,)
    assert np.allclose([lengths(vector.features), lengths(vector.concept)], 1, atol=1e-5)


def test_silence_and_clicks_are_finite(audio: AudioEncoder) -> None:
    click = np.zeros(SAMPLE_RATE, np.float32)
    vectors = audio.embed([AudioPart(click), AudioPart(np.where(np.arange(SAMPLE_RATE) == 5, 1, click))])
    assert all(np.isfinite(vector.concept).all() and np.isfinite(vector.features).all() for vector in vectors)


def test_a_long_recording_costs_no_more_than_a_few_windows(
    audio: AudioEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    listen = audio._listen
    monkeypatch.setattr(audio, "_listen", lambda window: heard.append(len(window)) or listen(window))
    audio.embed([AudioPart(np.resize(NOISE, 300 * SAMPLE_RATE))])
    assert heard == [WINDOW] * WINDOWS


def test_speech_is_told_from_music_and_noise(audio: AudioEncoder, text: TextEncoder) -> None:
    cards = text.embed_texts(["somebody talking", "an instrument, a song or background noise"])
    sounds = [recording(name) for name in ("cate_blanch.mp3", "heath_ledger.mp3", "cantina.wav", "sax.wav")]
    speech = [bool(np.subtract(*(v.concept @ cards.T)) > 0) for v in audio.embed([*sounds, AudioPart(NOISE)])]
    assert speech == [True, True, False, False, False]


# --- requests ---


def test_a_request_embeds_as_the_modalities_it_has(encoders: Encoders) -> None:
    picture, sound = photograph("coffee"), AudioPart(NOISE)
    requests = [
        asked(("user", "What is in this picture, please?"), ("user", (TextPart("And this one right here?"), picture))),
        asked(("user", "How do rainbows come about?")),
        asked(("user", sound)),
        asked(("user", (picture, sound, TextPart("  ")))),
        asked(("system", "Be brief.")),
    ]
    embeddings = encoders.embed(requests)
    assert [e.modalities for e in embeddings] == [("text", "image"), ("text",), ("audio",), ("image", "audio"), ()]
    assert embeddings[0].revisions == {m: encoders.revisions[m] for m in ("text", "image")}
    assert encoders.embed([]) == []
    one = encoders.embed(requests[1:2])[0].vectors["text"]
    assert np.allclose(one.features, embeddings[1].vectors["text"].features, atol=1e-5)
    assert np.array_equal(one.features[: len(one.concept)], one.concept)


def test_of_several_pictures_the_mean_counts(encoders: Encoders) -> None:
    cat, cup = photograph("cat"), photograph("coffee")
    single, double, mixed = (
        encoders.embed([asked(("user", parts))])[0].vectors["image"] for parts in ((cat,), (cat, cat), (cat, cup))
    )
    assert np.allclose(single.features, double.features, atol=1e-4)
    assert lengths(mixed.concept) == pytest.approx(1, abs=1e-5)
    assert 0.3 < single.features @ mixed.features < 0.99


def features(encoders: Encoders, *turns: tuple[Role, str | Part | tuple[Part, ...]]) -> np.ndarray:
    return encoders.embed([asked(*turns)])[0].vectors["text"].features


def test_system_prompts_and_history_are_not_read(encoders: Encoders) -> None:
    question = "How long does it take to boil an egg?"
    alone = features(encoders, ("user", question))
    history: tuple[tuple[Role, str], ...] = (("system", "Talk like a pirate."), ("user", "What is 2 + 2?"))
    assert np.allclose(features(encoders, *history, ("assistant", "4"), ("user", question)), alone, atol=1e-6)


def test_a_very_short_follow_up_is_read_with_the_turn_before(encoders: Encoders) -> None:
    first = "Translate the word for bread into German."
    follow = features(encoders, ("user", first), ("assistant", "Brot"), ("user", "And in French?"))
    assert follow @ features(encoders, ("user", first)) > 0.6
    with_media = features(encoders, ("user", first), ("user", (TextPart("And in French?"), photograph("coffee"))))
    assert np.allclose(with_media, features(encoders, ("user", "And in French?")), atol=1e-6)


def test_a_catalog_without_what_an_encoder_needs_is_refused(catalog: Catalog, weights: FindWeights) -> None:
    text = catalog.gate.encoders["text"]
    with pytest.raises(BadConfig, match="text"):
        Encoders.load(GateSpec(encoders={"image": catalog.gate.encoders["image"]}), weights)
    with pytest.raises(BadConfig, match="needs weights named 'model'"):
        Encoders.load(GateSpec(encoders={"text": EncoderSpec(backend=text.backend, revision="x")}), weights)
    with pytest.raises(BadConfig, match="cannot be imported"):
        Encoders.load(GateSpec(encoders={"text": EncoderSpec(backend="multimoe.encoder:Ear", revision="x")}), weights)
    with pytest.raises(WeightsError):
        Encoders.load(GateSpec(encoders={"text": text}), lambda _: Path("nowhere"))


# --- labelled media ---


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive scores above a negative."""
    return float(np.mean(positive[:, None] > negative[None]))


@pytest.mark.media
@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"no labelled media in {MEDIA}")
@pytest.mark.parametrize(
    ("kinds", "cards", "least"),
    [
        (("image-ocr", "image"), ("a page of text, a sign, a menu, a document", "an animal or a thing"), 0.9),
        (("speech", "sound"), ("somebody talking", "music, an animal or a noise"), 0.9),
    ],
)
def test_concepts_separate_labelled_media(
    encoders: Encoders, kinds: tuple[str, str], cards: tuple[str, str], least: float
) -> None:
    this, that = encoders.embed_texts(cards)
    scores: dict[str, list[float]] = {kind: [] for kind in kinds}
    with (MEDIA / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["modality"] in kinds][::2]  # half tells as much
    for row in rows:
        picture = row["modality"].startswith("image")
        part = (decode_image if picture else decode_audio)((MEDIA / row["file"]).read_bytes(), Limits())
        concept = encoders.embed([asked(("user", part))])[0].vectors[part.modality].concept
        scores[row["modality"]].append(float(concept @ (this - that)))
    assert auc(*(np.array(scores[kind]) for kind in kinds)) > least
