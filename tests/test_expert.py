"""The contract of `multimoe.expert`, held against every expert of the catalog that ships, and against Echo."""

import asyncio
import gc
import importlib
import shutil
import subprocess
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from experts.echo import Echo
from multimoe import config
from multimoe.config import Batch, Card, ExpertSpec, Limits
from multimoe.errors import BadInput, ExpertFailed
from multimoe.expert import Answer, BatchExpert, Delta, Expert, FindWeights
from multimoe.media import decode_audio
from multimoe.messages import SAMPLE_RATE, AudioPart, ChatRequest, ImagePart, Message, Modality, Part, TextPart
from multimoe.outputs import Events, Labels, Objects, Output, Text, Words

pytestmark = pytest.mark.asyncio(loop_scope="module")  # a batch worker lives in one event loop

ECHO = ExpertSpec(
    name="echo",
    backend="experts.echo:Echo",
    inputs=frozenset(("text", "image", "audio")),
    output="text",
    card=Card(description="Says back what it was sent.", text=("Say this again.",)),
)
CATALOG = config.load(Path(__file__).parents[1] / "deploy" / "local.yaml")
SPECS = [ECHO, *(spec for spec in CATALOG.experts if spec.name != "echo")]


@pytest.fixture(
    scope="module", params=[pytest.param(s, id=s.name, marks=[pytest.mark.weights] * bool(s.weights)) for s in SPECS]
)
def expert(request: pytest.FixtureRequest) -> Iterator[Expert]:
    """One expert at a time is loaded: together they would need gigabytes."""
    spec: ExpertSpec = request.param
    find: FindWeights = request.getfixturevalue("weights") if spec.weights else cast(FindWeights, None)
    module, name = spec.backend.split(":")
    yield getattr(importlib.import_module(module), name)(spec, find)
    gc.collect()


@pytest.fixture(scope="module")
def part_of(expert: Expert, tmp_path_factory: pytest.TempPathFactory) -> dict[Modality, Part]:
    """A part of each modality: an example of the expert's own card, a face above a sign, speech before a tone."""
    return {"text": TextPart(expert.spec.card.text[0]), "image": ImagePart(picture()), "audio": AudioPart(recording())}


def picture() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    photo = Image.fromarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]  # it has no types
    draw = ImageDraw.Draw(photo)
    draw.rectangle((20, 420, 492, 500), fill="white")
    draw.text((40, 430), "OPEN ALL NIGHT", fill="black", font=ImageFont.load_default(50))
    return np.asarray(photo)


def recording() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.4 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    if not shutil.which("espeak-ng"):
        return tone
    speech = subprocess.run(["espeak-ng", "--stdout", "the cat sat on the mat"], capture_output=True, check=True)
    return np.concatenate([decode_audio(speech.stdout, Limits()).samples, tone])


def ask(*parts: Part) -> ChatRequest:
    return ChatRequest("request", (Message("user", parts),), max_tokens=8)


async def read(expert: Expert, request: ChatRequest) -> list[Delta]:
    return [delta async for delta in expert.answer(request)]


def output_of(deltas: list[Delta]) -> Output:
    outputs = [delta.output for delta in deltas if delta.output]
    return outputs[0] if outputs else Text(text="".join(delta.text for delta in deltas))


def probabilities(output: Output) -> list[float]:
    match output:
        case Labels(labels=labels):
            return [label.probability for label in labels]
        case Words(boxes=boxes) | Objects(boxes=boxes):
            return [box.score for box in boxes]
        case Events(events=events):
            return [event.score for event in events]
    return []


async def test_answers_each_of_its_inputs_in_the_declared_kind(expert: Expert, part_of: dict[Modality, Part]) -> None:
    for modality in sorted(expert.spec.inputs):
        deltas = await read(expert, ask(part_of[modality]))
        assert output_of(deltas).kind == expert.spec.output
        assert sum(delta.output is not None for delta in deltas) == (expert.spec.output != "text")
        assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
        assert deltas[-1].usage is not None


async def test_its_probabilities_are_probabilities(expert: Expert, part_of: dict[Modality, Part]) -> None:
    for modality in expert.spec.inputs:
        output = output_of(await read(expert, ask(part_of[modality])))
        found = probabilities(output)
        assert all(0 <= probability <= 1 for probability in found)
        if isinstance(output, Labels):
            assert found == sorted(found, reverse=True)
            assert 0 < sum(found) <= 1 + 1e-6


async def test_its_iterator_may_be_closed_early(expert: Expert, part_of: dict[Modality, Part]) -> None:
    request = ask(*(part_of[modality] for modality in expert.spec.inputs))
    stream = cast(AsyncGenerator[Delta, None], expert.answer(request))
    await anext(stream)
    await stream.aclose()
    unread = cast(AsyncGenerator[Delta, None], expert.answer(request))
    await unread.aclose()
    assert await read(expert, request)


async def test_a_cancelled_answer_does_not_disturb_the_next(expert: Expert, part_of: dict[Modality, Part]) -> None:
    request = ask(*(part_of[modality] for modality in expert.spec.inputs))
    abandoned = asyncio.create_task(read(expert, request))
    await asyncio.sleep(0.01)
    abandoned.cancel()
    assert await read(expert, request)


async def test_two_answers_at_once_both_finish(expert: Expert, part_of: dict[Modality, Part]) -> None:
    request = ask(*(part_of[modality] for modality in expert.spec.inputs))
    both = await asyncio.gather(read(expert, request), read(expert, replace(request, id="other")))
    assert all(deltas[-1].finish for deltas in both)
    assert {output_of(deltas).kind for deltas in both} == {expert.spec.output}


async def test_parts_it_does_not_read_change_nothing(expert: Expert, part_of: dict[Modality, Part]) -> None:
    read_by_it = [part_of[modality] for modality in sorted(expert.spec.inputs)]
    others = [part for modality, part in part_of.items() if modality not in expert.spec.inputs]
    alone, among = [output_of(await read(expert, ask(*parts))) for parts in (read_by_it, [*others, *read_by_it])]
    assert among.kind == expert.spec.output
    if expert.spec.output != "text":  # generated words may differ in the last bit of a sum
        assert among == alone


async def test_refuses_a_question_that_holds_nothing_it_reads(expert: Expert, part_of: dict[Modality, Part]) -> None:
    others = [part for modality, part in part_of.items() if modality not in expert.spec.inputs]
    if not others:
        pytest.skip("it reads everything")
    with pytest.raises(BadInput):
        await read(expert, ask(*others))


# the base for backends that work in batches


class Counting(BatchExpert):
    """Answers each request with the size of its batch; `lost` answers are missing."""

    lost = 0

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(Text(text=str(len(requests)))) for _ in requests[self.lost :]]


def counting(**batch: float) -> Counting:
    return Counting(ECHO.model_copy(update={"batch": Batch.model_validate(batch)}), cast(FindWeights, None))


async def test_a_batch_holds_no_more_than_its_size() -> None:
    expert = counting(size=3, wait_ms=50)
    answers = await asyncio.gather(*(read(expert, ask(TextPart("hi"))) for _ in range(7)))
    assert [output_of(deltas) for deltas in answers] == [Text(text=size) for size in "3333331"]


async def test_a_batch_does_not_wait_longer_than_it_may() -> None:
    async with asyncio.timeout(2):
        (delta,) = await read(counting(size=8, wait_ms=5), ask(TextPart("hi")))
    assert delta.output == Text(text="1")


async def test_a_batch_that_loses_an_answer_fails_and_the_next_is_served() -> None:
    expert = counting()
    expert.lost = 1
    with pytest.raises(ExpertFailed, match="0 answers to 1"):
        await read(expert, ask(TextPart("hi")))
    expert.lost = 0
    assert await read(expert, ask(TextPart("hi")))


async def test_a_batch_expert_outlives_the_event_loop_it_was_first_asked_in() -> None:
    expert = counting()
    for _ in range(2):
        assert await asyncio.to_thread(lambda: asyncio.run(read(expert, ask(TextPart("hi")))))


async def test_echo_says_what_media_came() -> None:
    part = ImagePart(np.zeros((480, 640, 3), np.uint8))
    deltas = await read(Echo(ECHO, cast(FindWeights, None)), ask(part, AudioPart(np.zeros(33_600, np.float32))))
    assert output_of(deltas) == Text(text="[image 640x480] [audio 2.1 s]")
