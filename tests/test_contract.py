"""Every backend, put to the test of the contract; and the test itself, put to experts that each break one promise.

To add a backend, write a generator below that yields its spec (given an empty folder; weights it makes there are
`file:` URIs) and name it in BACKENDS. What the generator does after `yield` is done when the examination is over.
"""

import asyncio
import re
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from multimoe import config
from multimoe.config import Batch, Card, Catalog, ExpertSpec, Limits, Settings
from multimoe.contract import Finding, Probes, examine, probes_for
from multimoe.errors import BadConfig, BadInput, ExpertFailed
from multimoe.expert import Answer, BatchExpert, Delta, Expert, FindWeights
from multimoe.media import decode_audio
from multimoe.messages import AudioPart, ChatRequest, ImagePart, Modality, TextPart
from multimoe.outputs import Box, Event, Events, Label, Labels, Objects, OutputKind, Segment, Transcript, Usage
from multimoe.weights import Weights

Backend = Callable[[Path], Iterator[ExpertSpec]]

GUIDE = (Path(__file__).parents[1] / "docs" / "experts.md").read_text()
CATALOG = config.load(Path(__file__).parents[1] / "deploy" / "local.yaml")


def spec(backend: str, inputs: Sequence[Modality], output: OutputKind, **more: Any) -> ExpertSpec:
    named = {"name": "tested", "backend": backend, "inputs": inputs, "output": output, "timeout_s": 20}
    return ExpertSpec.model_validate({**named, "card": Card(description="It is tested."), **more})


def echo(folder: Path) -> Iterator[ExpertSpec]:
    yield spec("experts.echo:Echo", ["text", "image", "audio"], "text")


BACKENDS: tuple[Backend, ...] = (echo,)


# --- every backend keeps every promise ---


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__)
async def test_a_backend_keeps_the_contract(backend: Backend, tmp_path: Path) -> None:
    with contextmanager(backend)(tmp_path) as made:
        findings = await examine(made, Weights(tmp_path / "weights").find)
    assert broken(findings) == {}


@pytest.mark.weights
@pytest.mark.parametrize("name", [one.name for one in CATALOG.experts])
async def test_an_expert_that_ships_keeps_the_contract(name: str, catalog: Catalog, weights: FindWeights) -> None:
    findings = await examine(catalog.expert(name), weights, probes(name))
    assert broken(findings) == {}
    tried = {finding.promise for finding in findings if finding.state == "kept"}
    assert "does not mix requests up" in tried, "the probes are answered alike"


def broken(findings: Sequence[Finding]) -> dict[str, str]:
    return {finding.promise: finding.advice for finding in findings if finding.state == "broken"}


def probes(name: str) -> Probes:
    """A face above a sign and a cat; a sentence and a tone, where somebody can speak it; code and prose."""
    made = probes_for(CATALOG.expert(name).card)
    code, prose = TextPart("import os\n\nprint(os.environ['HOME'])\n"), TextPart("It was a lovely evening by the sea.")
    text = (code, prose) if name == "content-type" else made.text
    return Probes(text, (ImagePart(sign()), ImagePart(skimage.data.chelsea())), (AudioPart(speech()), made.audio[1]))


def sign() -> Any:
    photo = Image.fromarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]  # it has no types
    draw = ImageDraw.Draw(photo)
    draw.rectangle((20, 420, 492, 500), fill="white")
    draw.text((40, 430), "OPEN ALL NIGHT", fill="black", font=ImageFont.load_default(50))
    return np.asarray(photo)


def speech() -> Any:
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed: apt-get install espeak-ng")
    said = subprocess.run(["espeak-ng", "--stdout", "the cat sat on the mat"], capture_output=True, check=True)
    return decode_audio(said.stdout, Limits()).samples


# --- as the documentation says ---


async def test_the_expert_in_the_documentation_keeps_the_contract() -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "class Brightness" in block)
    names: dict[str, Any] = {"__name__": "brightness"}
    exec(code, names)  # noqa: S102  # what a reader would do
    kind = names["Brightness"]
    made = spec("brightness:Brightness", ["image"], "labels", options={"top": 2})
    findings = await examine(made, no_weights, load=lambda spec, find: kind(spec, find))
    assert broken(findings) == {}


async def test_the_documentation_lists_what_is_promised() -> None:
    listed = re.findall(r"^\| ([a-z ]+?) \|", GUIDE.split("## What is promised")[1], re.MULTILINE)
    findings = await examine(spec("experts.echo:Echo", ["text"], "text"), no_weights)
    assert listed[1:] == [finding.promise for finding in findings]


# --- a broken promise is found ---


class Sound(Expert):
    """Keeps every promise; those below break one each."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self.options(Settings)
        self.seen = ""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        if not request.text:
            raise BadInput("say something")
        for word in self.words(request):
            await asyncio.sleep(0)
            yield Delta(text=word + " ")
        yield Delta(usage=Usage(completion_tokens=min(3, request.max_tokens)), finish="stop")

    def words(self, request: ChatRequest) -> list[str]:
        return [*request.text.split()[:2], str(len(request.text))][: request.max_tokens]


class TakesAnyOption(Sound):
    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        Expert.__init__(self, spec, weights)


class NeedsNoWeights(Sound):
    pass


class Dies(Sound):
    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        raise RuntimeError("no engine")


class Silent(Sound):
    def words(self, request: ChatRequest) -> list[str]:
        return []


class Endless(Sound):
    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        await asyncio.sleep(60)
        yield Delta(text="at last")


class NotAGenerator(Sound):
    def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        return self

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Delta:
        raise StopAsyncIteration


class WithoutUsage(Sound):
    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        async for delta in super().answer(request):
            if not delta.usage:
                yield delta


class AnswersAnything(Sound):
    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        yield Delta(text="whatever it is, yes")
        yield Delta(usage=Usage(), finish="stop")


class LooksAtEverything(Sound):
    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        if len(request.question.parts) > len(request.text.splitlines()) and request.text:
            yield Delta(text="I see more than words, and shall speak of nothing else but that")
            yield Delta(usage=Usage(), finish="stop")
            return
        async for delta in super().answer(request):
            yield delta


class ChokesOnEmoji(Sound):
    def words(self, request: ChatRequest) -> list[str]:
        return [request.text.encode("latin-1").decode("latin-1")[:40]]


class Verbose(Sound):
    def words(self, request: ChatRequest) -> list[str]:
        return ["and so on"] * 40


class ComputesOn(Sound):
    """Works in a thread that nobody stops."""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        threading.Thread(target=spin, args=(6.0 if "story" in request.text else 0.0,), daemon=True).start()
        async for delta in super().answer(request):
            yield delta


class LeavesTasks(Sound):
    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        self.kept = [*getattr(self, "kept", []), asyncio.create_task(asyncio.sleep(30))]
        async for delta in super().answer(request):
            yield delta
        self.kept.pop().cancel()


class WearsOut(Sound):
    """Each answer that is given up takes a place, of which there are two."""

    places = 2

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        if not self.places:
            raise ExpertFailed("all places are taken")
        self.places -= 1
        async for delta in super().answer(request):
            yield delta
        self.places += 1


class Mixes(Sound):
    """Keeps the request on self while others come in."""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        if not request.text:
            raise BadInput("say something")
        self.seen = request.text
        await asyncio.sleep(0.02)
        yield Delta(text=self.seen)
        yield Delta(usage=Usage(), finish="stop")


class Blocks(Sound):
    def words(self, request: ChatRequest) -> list[str]:
        time.sleep(0.4 if len(request.text) < 10 else 0)
        return super().words(request)


class Draws(Sound):
    drawn = 0

    def words(self, request: ChatRequest) -> list[str]:
        self.drawn += 1
        return [request.text[:30], "x" * (self.drawn % 2)]


class Labeller(BatchExpert):
    """Keeps every promise: how much of a text is each of two letters."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self.options(Settings)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(Labels(space="letters", labels=self.labels(request.text))) for request in requests]

    def labels(self, text: str) -> tuple[Label, ...]:
        share = {letter: text.count(letter) / max(len(text), 1) for letter in "ea"}
        ranked = sorted(share.items(), key=lambda item: -item[1])
        return tuple(Label(name=name, probability=probability) for name, probability in ranked)


class Swaps(Labeller):
    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return super().answer_batch(requests)[::-1]


class LosesOne(Labeller):
    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return super().answer_batch(requests)[:1]


class OverTheBatch(Labeller):
    """Shares what it found by the whole batch."""

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        every = " ".join(request.text for request in requests)
        return [Answer(Labels(space="letters", labels=self.labels(every))) for _ in requests]


class Percent(Labeller):
    def labels(self, text: str) -> tuple[Label, ...]:
        return tuple(
            label.model_copy(update={"probability": 100 * label.probability}) for label in super().labels(text)
        )


class NotANumber(Labeller):
    def labels(self, text: str) -> tuple[Label, ...]:
        return (Label.model_construct(name="e", probability=float("nan")),)


class Unsorted(Labeller):
    def labels(self, text: str) -> tuple[Label, ...]:
        return super().labels(text)[::-1]


class TooMuch(Labeller):
    def labels(self, text: str) -> tuple[Label, ...]:
        return (Label(name="e", probability=0.9), Label(name="a", probability=0.9))


class Private(Labeller):
    """Its labels are of a class that no other process can import."""

    def labels(self, text: str) -> tuple[Label, ...]:
        class Own(Label):
            pass

        return tuple(Own(name=label.name, probability=label.probability) for label in super().labels(text))


class Finder(BatchExpert):
    """Finds the middle of a picture; `far` times as far as it is."""

    far = 1.0

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self.options(Settings)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(Objects(boxes=tuple(map(self.box, request.images)))) for request in requests]

    def box(self, image: ImagePart) -> Box:
        height, width, _ = image.pixels.shape
        return Box(x0=0, y0=0, x1=width * self.far, y1=height, text="middle", score=1)


class FarOff(Finder):
    far = 2.0


class Hearer(Finder):
    """Hears one event, from beginning to end; `far` times as long as the recording."""

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(self.heard(sum(audio.seconds for audio in request.audios))) for request in requests]

    def heard(self, seconds: float) -> Events | Transcript:
        event = Event(label="sound", start=0, end=seconds * self.far, score=1)
        return Events(space="sound", duration=seconds, events=(event,))


class HearsTooLong(Hearer):
    far = 2.0


class InMilliseconds(Hearer):
    def heard(self, seconds: float) -> Events | Transcript:
        return Transcript(segments=(Segment(start=0, end=seconds * 1000, text="hello"),))


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


TEXT, LABELS = (["text"], "text"), (["text"], "labels")
OBJECTS, EVENTS, WORDS_HEARD = (["image"], "objects"), (["audio"], "events"), (["audio"], "transcript")
BREAKS: tuple[tuple[type[Expert], tuple[Any, Any], str, str], ...] = (
    (Dies, TEXT, "loads with its spec", "RuntimeError: no engine"),
    (TakesAnyOption, TEXT, "refuses unknown options", "unknown option was taken"),
    (NeedsNoWeights, TEXT, "refuses missing weights", "loaded without weights"),
    (Silent, TEXT, "answers what it reads", "is blank"),
    (Endless, TEXT, "answers what it reads", "no whole answer within its timeout_s of 0.5 s"),
    (NotAGenerator, TEXT, "answers what it reads", "cannot be closed"),
    (Sound, LABELS, "answers what it reads", "is text; the spec declares labels"),
    (WithoutUsage, TEXT, "ends with usage and finish", "lacks usage or finish"),
    (AnswersAnything, TEXT, "refuses what it does not read", "raise BadInput"),
    (LooksAtEverything, TEXT, "ignores parts it does not read", "change its answer"),
    (ChokesOnEmoji, TEXT, "bears blank and absurd input", "emoji and several scripts, it raised UnicodeEncodeError"),
    (Verbose, TEXT, "obeys max tokens", "allowed 4 tokens, it wrote"),
    (ComputesOn, TEXT, "may be closed early", "it still computes"),
    (LeavesTasks, TEXT, "may be closed early", "tasks are left"),
    (WearsOut, TEXT, "may be closed early", "all places are taken"),
    (Mixes, TEXT, "does not mix requests up", "something else"),
    (Swaps, LABELS, "does not mix requests up", "something else"),
    (LosesOne, LABELS, "answers a batch as one by one", "1 answers to 2 requests"),
    (OverTheBatch, LABELS, "answers a batch as one by one", "in a batch"),
    (Blocks, TEXT, "leaves the event loop free", "stood still"),
    (Draws, TEXT, "says the same again", "asked the same twice"),
    (Percent, LABELS, "gives probabilities", "is no probability"),
    (NotANumber, LABELS, "gives probabilities", "nan is no probability"),
    (Unsorted, LABELS, "gives probabilities", "not sorted"),
    (TooMuch, LABELS, "gives probabilities", "sum to 1.8"),
    (Private, LABELS, "crosses processes", "cannot be pickled"),
    (FarOff, OBJECTS, "places things within what was sent", "does not lie in a picture"),
    (HearsTooLong, EVENTS, "places things within what was sent", "does not lie in a recording"),
    (InMilliseconds, WORDS_HEARD, "places things within what was sent", "does not lie in a recording"),
)


def subject(kind: type[Expert], reads: tuple[Any, Any]) -> ExpertSpec:
    weights = {"model": "file:/nowhere"} if kind is NeedsNoWeights else {}
    limit = 0.5 if kind is Endless else 20
    made = spec(f"test_contract:{kind.__name__}", *reads, weights=weights, timeout_s=limit)
    return made.model_copy(
        update={"batch": Batch(wait_ms=20), "card": Card(description="-", text=("eat tea", "a banana"))}
    )


@pytest.mark.parametrize(("kind", "reads", "promise", "advice"), BREAKS, ids=[one[0].__name__ for one in BREAKS])
async def test_finds_a_promise_that_is_broken(
    kind: type[Expert], reads: tuple[Any, Any], promise: str, advice: str
) -> None:
    findings = await examine(subject(kind, reads), no_weights, load=lambda spec, find: kind(spec, find))
    assert re.search(re.escape(advice), broken(findings).get(promise, "")), broken(findings)


@pytest.mark.parametrize(("kind", "reads"), [(Sound, TEXT), (Labeller, LABELS), (Finder, OBJECTS), (Hearer, EVENTS)])
async def test_finds_nothing_wrong_with_an_expert_that_keeps_them_all(
    kind: type[Expert], reads: tuple[Any, Any]
) -> None:
    findings = await examine(subject(kind, reads), no_weights, load=lambda spec, find: kind(spec, find))
    assert broken(findings) == {}


async def test_tells_what_it_could_not_try_from_what_was_kept() -> None:
    findings = await examine(subject(Sound, TEXT), no_weights, load=lambda spec, find: Sound(spec, find))
    untried = {finding.promise: finding.advice for finding in findings if finding.state == "untried"}
    assert untried == {
        "refuses missing weights": "its spec lists no weights",
        "answers a batch as one by one": "it takes no batches",
    }


def no_weights(uri: str) -> Path:
    raise BadConfig(f"there are no weights {uri}")
