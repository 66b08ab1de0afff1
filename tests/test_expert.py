"""The base for backends that work in batches, and Echo. What every expert promises is tried in test_contract.py."""

import asyncio
import time
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from experts.echo import Echo
from multimoe.config import Batch, Card, ExpertSpec, Settings
from multimoe.errors import BadConfig, ExpertFailed
from multimoe.expert import Answer, BatchExpert, Delta, Expert, FindWeights
from multimoe.messages import AudioPart, ChatRequest, ImagePart, Message, Part, TextPart
from multimoe.outputs import Output, Text

pytestmark = pytest.mark.asyncio(loop_scope="module")  # a batch worker lives in one event loop

ECHO = ExpertSpec(
    name="echo",
    backend="experts.echo:Echo",
    inputs=frozenset(("text", "image", "audio")),
    output="text",
    card=Card(description="Says back what it was sent.", text=("Say this again.",)),
)


def ask(*parts: Part) -> ChatRequest:
    return ChatRequest("request", (Message("user", parts),), max_tokens=8)


async def read(expert: Expert, request: ChatRequest) -> list[Delta]:
    return [delta async for delta in expert.answer(request)]


def output_of(deltas: list[Delta]) -> Output:
    outputs = [delta.output for delta in deltas if delta.output]
    return outputs[0] if outputs else Text(text="".join(delta.text for delta in deltas))


class Counting(BatchExpert):
    """Answers each request with the size of its batch, after `seconds`; `lost` answers are missing."""

    lost = 0
    seconds = 0.0

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        time.sleep(self.seconds)
        return [Answer(Text(text=str(len(requests)))) for _ in requests[self.lost :]]


def counting(**batch: float) -> Counting:
    return Counting(ECHO.model_copy(update={"batch": Batch.model_validate(batch)}), cast(FindWeights, None))


class Exhausted(BatchExpert):
    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [next(iter(()))]


async def test_an_exhausted_iterator_fails_a_batch_and_does_not_hang_the_expert() -> None:
    expert = Exhausted(ECHO, cast(FindWeights, None))
    async with asyncio.timeout(2):
        for _ in range(2):
            with pytest.raises(ExpertFailed, match="StopIteration"):
                await read(expert, ask(TextPart("hi")))


async def test_a_batch_holds_no_more_than_its_size() -> None:
    expert = counting(size=3, wait_ms=50)
    answers = await asyncio.gather(*(read(expert, ask(TextPart("hi"))) for _ in range(7)))
    assert [output_of(deltas) for deltas in answers] == [Text(text=size) for size in "3333331"]


async def test_a_batch_does_not_wait_longer_than_it_may() -> None:
    async with asyncio.timeout(2):
        (delta,) = await read(counting(size=8, wait_ms=5), ask(TextPart("hi")))
    assert delta.output == Text(text="1")


async def test_what_has_waited_for_the_batch_before_waits_no_more() -> None:
    expert = counting(size=2, wait_ms=1000)
    expert.seconds = 1.5
    full = [asyncio.create_task(read(expert, ask(TextPart("hi")))) for _ in range(2)]
    await asyncio.sleep(0.1)
    asked = time.monotonic()
    late = asyncio.create_task(read(expert, ask(TextPart("hi"))))
    await asyncio.gather(*full)
    done = time.monotonic()
    (delta,) = await late
    assert delta.output == Text(text="1")
    assert done - asked > 1  # it had waited as long as it may
    assert time.monotonic() - done < 1.5 + 0.8


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


class Mixer(Settings):
    """Settings of a backend, as it declares them."""

    speed: float = 1.0


async def test_options_are_the_backends_own_and_unknown_ones_are_refused() -> None:
    def mixing(**options: object) -> Mixer:
        spec = ECHO.model_copy(update={"options": options})
        return Counting(spec, cast(FindWeights, None)).options(Mixer)

    assert mixing(speed=2).speed == 2.0
    with pytest.raises(BadConfig, match="sped: unknown key 'sped'; did you mean 'speed'"):
        mixing(sped=2)


async def test_echo_says_what_media_came() -> None:
    part = ImagePart(np.zeros((480, 640, 3), np.uint8))
    deltas = await read(Echo(ECHO, cast(FindWeights, None)), ask(part, AudioPart(np.zeros(33_600, np.float32))))
    assert output_of(deltas) == Text(text="[image 640x480] [audio 2.1 s]")
