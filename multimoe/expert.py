"""The one contract every expert fulfils, and the small base for backends that work in batches.

An expert knows its own spec and where its weights lie. It knows no Ray, no HTTP and no other expert: a class that
implements `Expert` and is named in the catalog as `module:Class` is all it takes to add one.
"""

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multimoe.config import ExpertSpec, Model, validate
from multimoe.errors import BadConfig, BadInput, ExpertFailed
from multimoe.messages import ChatRequest
from multimoe.outputs import Box, Output, Usage

FinishReason = Literal["stop", "length"]
FindWeights = Callable[[str], Path]  # a weights URI of the catalog -> the file on this machine


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. A text expert streams `text`; any other yields its whole `output` once.

    The last delta carries `usage` and `finish`.
    """

    text: str = ""
    output: Output | None = None
    usage: Usage | None = None
    finish: FinishReason | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer of a backend that does not stream."""

    output: Output
    usage: Usage = Usage()
    finish: FinishReason = "stop"


@dataclass(frozen=True)
class Token:
    """One entry of a vocabulary: the `piece` it writes may be part of a character. `ends` is True of an end mark."""

    id: int
    logprob: float
    piece: bytes
    ends: bool = False


@dataclass(frozen=True)
class NextToken:
    """How likely each token is to come next, the likeliest first; those not listed share what is missing to 1.

    `vocabulary` is a fingerprint of the tokenizer (`vocabulary_fingerprint`): ids of equal ones mean the same.
    `prompt_tokens` counts what was read before the answer.
    """

    tokens: tuple[Token, ...]
    vocabulary: str
    prompt_tokens: int = 0


def vocabulary_fingerprint(pieces: Iterable[bytes]) -> str:
    """Of what every token writes, in the order of their ids: the same for one tokenizer in whatever engine."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(4, "little") + piece)
    return digest.hexdigest()[:16]


class Expert(ABC):
    """`__init__` loads the weights (it may take seconds and must fail early); `answer` serves one request.

    `answer` must not block the event loop (torch and friends go through `asyncio.to_thread`) and must stop working
    when its iterator is closed. It reads `request.question` for what it is good at and ignores other parts.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        self.spec = spec
        self.weights = weights

    @abstractmethod
    def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """Yield the answer. Raises `ExpertFailed` or `BadInput`; anything else counts as a failure of the expert."""

    async def check_health(self) -> None:  # noqa: B027  # an expert that is its process alone has nothing to add
        """Asked every few seconds. Raises where it will answer no more: its replica is then replaced."""

    def weight(self, name: str) -> Path:
        """The file of the weights the catalog lists as `name`. Raises BadConfig where it lists none."""
        if name not in self.spec.weights:
            listed = ", ".join(self.spec.weights) or "none"
            raise BadConfig(f"expert {self.spec.name!r} needs weights named {name!r}; the catalog lists: {listed}")
        return self.weights(self.spec.weights[name])

    def options(self, model: type[Model]) -> Model:
        """The catalog's `options` as the backend's own settings. Raises BadConfig, which names unknown keys too."""
        return validate(model, self.spec.options, f"the options of expert {self.spec.name!r}")


class TokenExpert(Expert):
    """An expert that can also be asked for one token at a time, so that several can write one answer together."""

    @abstractmethod
    async def next_tokens(self, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        """The `top` likeliest after the expert's own prompt for `request` and the ids `written` of the answer so far.

        Log-probabilities are the model's own: no temperature, no penalties. `written` grows by one token a step, so
        an expert should keep what it has read (`request.id` names the answer) for a while; it may be asked anew in
        another replica. Raises `ExpertFailed`, `BadInput`.
        """


def token_expert(expert: Expert) -> TokenExpert:
    """The same, as one that writes token by token. Raises ExpertFailed where it does not."""
    if not isinstance(expert, TokenExpert):
        raise ExpertFailed(f"expert {expert.spec.name!r} does not write token by token; leave out its `tokenizer`")
    return expert


@dataclass(frozen=True)
class Waiting:
    """A request on its way into a batch, `since` when by the event loop's clock, and the future of its answer."""

    request: ChatRequest
    answer: asyncio.Future[Answer]
    since: float


def boxes_in(request: ChatRequest, find: Callable[[NDArray[np.uint8]], Sequence[Box]]) -> tuple[Box, ...]:
    """What `find` finds in each picture, (height, width, 3) RGB, with the picture's number from 1."""
    return tuple(
        box.model_copy(update={"picture": number})
        for number, image in enumerate(request.images, 1)
        for box in find(image.pixels)
    )


class BatchExpert(Expert):
    """Collects waiting requests (at most `spec.batch.size`, for at most `spec.batch.wait_ms`) into one `answer_batch`.

    Time spent waiting for the batch before counts. `answer_batch` runs in a worker thread, one batch at a time, so it
    may block and need not be thread-safe.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    @abstractmethod
    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        """Answers in the order of `requests`."""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        if not request.modalities & self.spec.inputs:  # refused before it joins, and fails, a batch of others
            reads = " or ".join(sorted(self.spec.inputs))
            raise BadInput(f"expert {self.spec.name!r} reads {reads}, and the last user message holds none")
        if self._worker is None or self._worker.done():
            self._queue = asyncio.Queue()  # a queue belongs to one event loop, as its worker does
            self._worker = asyncio.create_task(self._work())
        loop = asyncio.get_running_loop()
        waiting = Waiting(request, loop.create_future(), loop.time())
        self._queue.put_nowait(waiting)
        answer = await waiting.answer
        yield Delta(output=answer.output, usage=answer.usage, finish=answer.finish)

    async def _work(self) -> None:
        while True:
            waiting = [one for one in await self._collect() if not one.answer.cancelled()]
            if not waiting:
                continue
            try:
                answers = await asyncio.to_thread(self._answered, [one.request for one in waiting])
            except Exception as error:  # handed to every caller of the batch; the worker lives on
                for one in waiting:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            for one, answer in zip(waiting, answers, strict=True):
                if not one.answer.done():
                    one.answer.set_result(answer)

    def _answered(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        try:
            answers = self.answer_batch(requests)
        except StopIteration as error:  # no future takes it: the worker would wait for ever, and all after it
            raise ExpertFailed(f"expert {self.spec.name!r} failed with {error!r}") from error
        if len(answers) != len(requests):
            raise ExpertFailed(f"expert {self.spec.name!r} gave {len(answers)} answers to {len(requests)} requests")
        return answers

    async def _collect(self) -> list[Waiting]:
        batch = [await self._queue.get()]
        deadline = batch[0].since + self.spec.batch.wait_ms / 1000
        while len(batch) < self.spec.batch.size:
            try:
                async with asyncio.timeout_at(deadline):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch
