"""The experts that listen, with their real weights, on tones made here and sentences that espeak-ng speaks."""

import shutil
import subprocess
from pathlib import Path

import gradio
import numpy as np
import pytest
from numpy.typing import NDArray

from experts import moonshine, whisper
from experts.notes import NoteWriter, draw_notes, note_name
from experts.sound_events import SoundEvents
from multimoe.config import Catalog, ExpertSpec, Limits
from multimoe.errors import BadInput, WeightsError
from multimoe.expert import BatchExpert, Expert, FindWeights
from multimoe.media import decode_audio
from multimoe.messages import SAMPLE_RATE, AudioPart, ChatRequest, Message, TextPart
from multimoe.outputs import Event, Events, Output, Transcript
from multimoe.weights import Weights

pytestmark = pytest.mark.weights

Samples = NDArray[np.float32]
SENTENCE = "The children played in the garden until it began to rain."
RECORDINGS = Path(gradio.__file__).parent / "media_assets" / "audio"


@pytest.fixture(scope="module")
def writer(catalog: Catalog, weights: FindWeights) -> NoteWriter:
    return NoteWriter(catalog.expert("notes"), weights)


@pytest.fixture(scope="module")
def ear(catalog: Catalog, weights: FindWeights) -> SoundEvents:
    return SoundEvents(catalog.expert("sound-events"), weights)


MOONSHINE = ExpertSpec(
    name="speech-quick",
    backend="experts.moonshine:Transcriber",
    inputs=frozenset({"audio"}),
    output="transcript",
    card={"description": "Writes down what is said."},
    weights={
        "model": "pip://moonshine-voice@0.0.73/moonshine_voice/assets/tiny-en/"
        "?sha256=6461c8097ed78d054c46b4c821143008a07b5fa1f4169674493ccfa06c1407db"
    },
)


@pytest.fixture(scope="module", params=["whisper", "moonshine"])
def transcriber(request: pytest.FixtureRequest, catalog: Catalog, weights: FindWeights) -> BatchExpert:
    if request.param == "whisper":
        return whisper.Transcriber(catalog.expert("speech"), weights)
    Weights(catalog.weights).pull(MOONSHINE.weights.values())
    return moonshine.Transcriber(MOONSHINE, weights)


def spoken(text: str) -> Samples:
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed: apt-get install espeak-ng")
    wav = subprocess.run(["espeak-ng", "-v", "en-us", "-s", "160", "--stdout", text], capture_output=True, check=True)
    return decode_audio(wav.stdout, Limits()).samples


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def tone(midi: int, seconds: float = 0.6) -> Samples:
    """A plucked note with five harmonics."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 440 * 2 ** ((midi - 69) / 12)
    wave = sum(np.sin(2 * np.pi * pitch * n * time) / n**1.5 for n in range(1, 6))
    envelope = np.minimum(time / 0.01, 1) * np.exp(-2 * time) * np.minimum((seconds - time) / 0.02, 1)
    return (0.3 * envelope * wave).astype(np.float32)


def melody(*notes: int) -> Samples:
    return np.concatenate([silence(0.2), *(part for note in notes for part in (tone(note), silence(0.1)))])


def played(*recordings: Samples) -> ChatRequest:
    return ChatRequest("r", (Message("user", tuple(AudioPart(samples) for samples in recordings)),))


async def answered(expert: Expert, request: ChatRequest) -> Output:
    (delta,) = [delta async for delta in expert.answer(request)]
    assert delta.output is not None
    return delta.output


def names(events: list[Event]) -> list[str]:
    return [event.label for event in events]


def confidence(output: Output) -> float:
    assert isinstance(output, Transcript)
    (segment,) = output.segments
    assert segment.confidence is not None
    return segment.confidence


def word_error_rate(said: str, heard: str) -> float:
    reference, words = ("".join(c for c in text.lower() if c.isalnum() or c == " ").split() for text in (said, heard))
    row = list(range(len(words) + 1))
    for i, word in enumerate(reference, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(words, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1] / len(reference)


# notes


async def test_a_melody_is_written_note_by_note(writer: NoteWriter) -> None:
    output = await answered(writer, played(melody(60, 64, 67)))
    assert isinstance(output, Events)
    assert (output.space, [event.label for event in output.events]) == ("notes", ["C4", "E4", "G4"])
    for event, begin in zip(output.events, (0.2, 0.9, 1.6), strict=True):
        assert event.start == pytest.approx(begin, abs=0.06)
        assert event.end == pytest.approx(begin + 0.6, abs=0.15)


def test_the_notes_of_a_chord_sound_together(writer: NoteWriter) -> None:
    chord = np.concatenate([silence(0.2), (tone(60, 1.0) + tone(64, 1.0) + tone(67, 1.0)) / 2, silence(0.2)])
    surest = sorted(writer.transcribe(chord), key=lambda note: -note.score)[:3]
    assert sorted(names(surest)) == ["C4", "E4", "G4"]
    assert max(note.start for note in surest) < 0.3


def test_a_note_longer_than_the_network_hears_at_once_is_one_note(writer: NoteWriter) -> None:
    time = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    steady = np.concatenate([silence(0.5), (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), silence(0.5)])
    (note,) = writer.transcribe(steady)
    assert note.label == "A4"
    assert (note.start, note.end) == pytest.approx((0.5, 5.5), abs=0.1)


def test_notes_late_in_a_recording_are_on_time(writer: NoteWriter) -> None:
    (note,) = writer.transcribe(np.concatenate([silence(20), tone(69), silence(1)]))
    assert (note.label, note.start) == ("A4", pytest.approx(20, abs=0.06))


def test_a_second_recording_plays_after_the_first(writer: NoteWriter) -> None:
    (answer,) = writer.answer_batch([played(melody(60), melody(67))])
    assert isinstance(answer.output, Events)
    assert [event.label for event in answer.output.events] == ["C4", "G4"]
    assert answer.output.events[1].start == pytest.approx(len(melody(60)) / SAMPLE_RATE + 0.2, abs=0.06)
    assert answer.output.duration == pytest.approx(1.8)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 3.0])
def test_silence_has_no_notes(writer: NoteWriter, seconds: float) -> None:
    assert writer.transcribe(silence(seconds)) == []


def drawn(*rows: tuple[int, int, int, float], began: tuple[int, int] | None = None) -> list[tuple[int, int, int]]:
    """What is drawn where each row (first frame, last, key, probability) sounds in 100 frames of quiet."""
    sounding, beginning = np.zeros((100, 88), np.float32), np.zeros((100, 88), np.float32)
    for first, last, key, probability in rows:
        sounding[first:last, key] = probability
    if began:
        beginning[began] = 0.9
    return sorted(draw_notes(sounding, beginning, onset=0.5, frame=0.3, shortest=5))


def test_a_note_lasts_from_its_beginning_to_the_quiet() -> None:
    assert drawn((20, 40, 50, 0.8), began=(20, 50)) == [(20, 40, 50)]


def test_a_gap_shorter_than_patience_does_not_end_a_note() -> None:
    assert drawn((20, 40, 50, 0.8), (46, 60, 50, 0.8)) == [(20, 60, 50)]


def test_a_note_without_a_beginning_must_be_loud() -> None:
    assert drawn((20, 40, 50, 0.45)) == []
    assert drawn((20, 40, 50, 0.8)) == [(20, 40, 50)]


def test_a_click_is_no_note() -> None:
    assert drawn((20, 24, 50, 0.8), began=(20, 50)) == []


def test_the_neighbour_of_a_note_is_no_second_note() -> None:
    assert drawn((20, 40, 50, 0.8), (20, 40, 51, 0.6)) == [(20, 40, 50)]


def test_a_note_that_sounds_to_the_very_end_ends_there() -> None:
    assert drawn((80, 100, 0, 0.8), began=(80, 0)) == [(80, 100, 0)]


def test_notes_are_named_as_musicians_do() -> None:
    assert [note_name(number) for number in (21, 60, 61, 69, 108)] == ["A0", "C4", "C#4", "A4", "C8"]


# sounds


async def test_speech_is_heard_as_speech_alone_and_when(ear: SoundEvents) -> None:
    output = await answered(ear, played(np.concatenate([silence(1), spoken(SENTENCE), silence(1)])))
    assert isinstance(output, Events)
    assert (output.space, {event.label for event in output.events}) == ("sound", {"speech"})
    assert output.events[0].start == pytest.approx(1, abs=0.3)
    assert output.events[-1].end == pytest.approx(output.duration - 1, abs=0.4)


def test_music_is_not_speech(ear: SoundEvents) -> None:
    assert set(names(ear.detect(melody(60, 64, 67, 72, 67, 64)))) == {"music"}
    band = decode_audio((RECORDINGS / "cantina.wav").read_bytes(), Limits())
    assert names(ear.detect(band.samples)) == ["music"]


@pytest.mark.parametrize("seconds", [0.0, 0.01, 3.0])
def test_silence_has_no_events(ear: SoundEvents, seconds: float) -> None:
    assert ear.detect(silence(seconds)) == []


def test_events_of_a_second_recording_come_after_the_first(ear: SoundEvents) -> None:
    song = melody(60, 64, 67, 72)
    (answer,) = ear.answer_batch([played(silence(2), song)])
    (alone,) = ear.detect(song)
    assert isinstance(answer.output, Events)
    (event,) = answer.output.events
    assert (event.start, event.end) == pytest.approx((alone.start + 2, alone.end + 2))


# speech


async def test_a_clear_sentence_is_written_down(transcriber: BatchExpert) -> None:
    said = spoken(SENTENCE)
    output = await answered(transcriber, played(said))
    assert isinstance(output, Transcript)
    assert output.language == "en"
    assert word_error_rate(SENTENCE, output.text) <= 0.2
    assert all(0 <= part.start < part.end <= len(said) / SAMPLE_RATE for part in output.segments)


def test_silence_and_music_have_no_words(transcriber: BatchExpert) -> None:
    quiet = [silence(0), silence(0.01), silence(4), melody(60, 64, 67, 72, 67, 64)]
    outputs = [answer.output for answer in transcriber.answer_batch([played(samples) for samples in quiet])]
    assert [output.text for output in outputs if isinstance(output, Transcript)] == [""] * 4


def test_a_batch_of_recordings_is_transcribed_as_one_by_one(transcriber: BatchExpert) -> None:
    requests = [played(spoken(SENTENCE)), played(silence(2)), played(spoken("Good morning, how are you today?"))]
    together = transcriber.answer_batch(requests)
    assert together == [transcriber.answer_batch([request])[0] for request in requests]


def test_a_recording_longer_than_whisper_hears_at_once_is_heard_to_its_end(transcriber: BatchExpert) -> None:
    last = "This is the end of the story, thank you for listening."
    said = np.concatenate([spoken(SENTENCE), silence(28), spoken(last)])
    (answer,) = transcriber.answer_batch([played(said)])
    assert isinstance(answer.output, Transcript)
    assert word_error_rate(f"{SENTENCE} {last}", answer.output.text) <= 0.2
    assert answer.output.segments[-1].start > 28


def test_two_recordings_are_transcribed_in_order(transcriber: BatchExpert) -> None:
    first, second = spoken(SENTENCE), spoken("Good morning, how are you today?")
    (answer,) = transcriber.answer_batch([played(first, second)])
    assert isinstance(answer.output, Transcript)
    text = answer.output.text.lower()
    assert -1 < text.find("garden") < text.find("morning")
    assert answer.output.segments[-1].end > len(first) / SAMPLE_RATE


async def test_a_request_without_a_recording_is_refused(transcriber: BatchExpert) -> None:
    with pytest.raises(BadInput, match="audio"):
        await answered(transcriber, ChatRequest("t", (Message("user", (TextPart("what was said?"),)),)))


def test_moonshine_is_less_sure_of_what_it_hears_through_noise(catalog: Catalog, weights: FindWeights) -> None:
    Weights(catalog.weights).pull(MOONSHINE.weights.values())
    clear = spoken(SENTENCE)
    noisy = clear + np.random.default_rng(3).normal(0, 0.05, len(clear)).astype(np.float32)
    answers = moonshine.Transcriber(MOONSHINE, weights).answer_batch([played(clear), played(noisy)])
    sure, unsure = (confidence(answer.output) for answer in answers)
    assert 0 < unsure < sure < 1


def test_a_file_that_holds_no_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(bytes([200]))
    with pytest.raises(WeightsError, match="tokens"):
        moonshine.read_tokens(tmp_path / "tokenizer.bin")
