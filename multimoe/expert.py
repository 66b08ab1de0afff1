"""The one contract every expert fulfils, and the small base for backends that work in batches.

An expert knows its own spec and where its weights lie. It knows no Ray, no HTTP and no other expert: a class that
implements `Expert` and is named in the catalog as `module:Class` is all it takes to add one.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig, BadInput, ExpertFailed
from multimoe.messages import ChatRequest
from multimoe.outputs import Output, Usage

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

    def weight(self, name: str) -> Path:
        """The file of the weights the catalog lists as `name`. Raises BadConfig where it lists none."""
        if name not in self.spec.weights:
            listed = ", ".join(self.spec.weights) or "none"
            raise BadConfig(f"expert {self.spec.name!r} needs weights named {name!r}; the catalog lists: {listed}")
        return self.weights(self.spec.weights[name])


class BatchExpert(Expert):
    """Collects waiting requests (at most `spec.batch.size`, for at most `spec.batch.wait_ms`) into one `answer_batch`.

    `answer_batch` runs in a worker thread, one batch at a time, so it may block and need not be thread-safe.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self._queue: asyncio.Queue[tuple[ChatRequest, asyncio.Future[Answer]]] = asyncio.Queue()
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
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((request, future))
        answer = await future
        yield Delta(output=answer.output, usage=answer.usage, finish=answer.finish)

    async def _work(self) -> None:
        while True:
            waiting = [(r, f) for r, f in await self._collect() if not f.cancelled()]
            if not waiting:
                continue
            try:
                answers = await asyncio.to_thread(self.answer_batch, [request for request, _ in waiting])
                if len(answers) != len(waiting):
                    raise ExpertFailed(
                        f"expert {self.spec.name!r} gave {len(answers)} answers to {len(waiting)} requests"
                    )
            except Exception as error:  # handed to every caller of the batch; the worker lives on
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(waiting, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _collect(self) -> list[tuple[ChatRequest, asyncio.Future[Answer]]]:
        batch = [await self._queue.get()]
        deadline = asyncio.get_running_loop().time() + self.spec.batch.wait_ms / 1000
        while len(batch) < self.spec.batch.size:
            try:
                async with asyncio.timeout_at(deadline):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch
