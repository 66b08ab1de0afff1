"""One expert under examination: what it is asked, what it answered, and the findings."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from multimoe.backends import load_expert
from multimoe.config import ExpertSpec
from multimoe.contract.probes import Probes, probes_for
from multimoe.errors import MultimoeError
from multimoe.expert import Delta, Expert, FindWeights
from multimoe.messages import MODALITIES, ChatRequest, Message, Part
from multimoe.outputs import Output, Text

State = Literal["kept", "broken", "untried"]
Load = Callable[[ExpertSpec, FindWeights], Expert]

FEW_TOKENS = 12  # of an ordinary answer here: enough to tell two apart
HEARTBEAT_S = 0.01
WINDOW_S = 0.15  # over which use of the processor is measured


@dataclass(frozen=True)
class Finding:
    """Of one promise: whether it was kept. `advice` says what was seen and what to do, or why it was not tried."""

    promise: str
    state: State
    advice: str = ""


class Broken(Exception):
    """A promise was not kept; the message is the advice."""


class Untried(Exception):
    """A promise does not concern this expert, or could not be put to the test; the message says why."""


@dataclass(frozen=True)
class Asked:
    """One answer: `stalled` is the longest time, in seconds, for which the event loop stood still meanwhile."""

    request: ChatRequest
    deltas: list[Delta]
    seconds: float
    stalled: float

    @property
    def output(self) -> Output:
        return output_of(self.deltas)


@dataclass
class Examination:
    """An expert that is loaded, and all it has answered so far. `tolerance` is by how much its scores may vary, `idle`
    the share of one processor that the process used before it was first asked.
    """

    expert: Expert
    find: FindWeights
    load: Load
    probes: Probes
    tolerance: float
    idle: float = 0.0
    answers: list[Asked] = field(default_factory=list)
    _alone: dict[int, Asked] = field(default_factory=dict)

    @property
    def spec(self) -> ExpertSpec:
        return self.expert.spec

    def ordinary(self, which: Literal[0, 1] = 0) -> ChatRequest:
        """The first or second probe of every modality the expert reads."""
        return asking(*(self.probes.of(modality)[which] for modality in MODALITIES if modality in self.spec.inputs))

    def foreign(self) -> list[Part]:
        """A part of each modality that the expert does not read."""
        return [self.probes.of(modality)[0] for modality in MODALITIES if modality not in self.spec.inputs]

    async def ask(self, request: ChatRequest) -> Asked:
        """The whole answer. Raises Broken where it does not come in time, and whatever the expert raises."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.spec.timeout_s), aclosing(self.opened(request)) as stream:
                with heartbeat() as heart:
                    deltas = [delta async for delta in stream]
        except TimeoutError as error:
            limit = f"its timeout_s of {self.spec.timeout_s:g} s"
            raise Broken(f"no whole answer within {limit}: answer sooner, or raise the limit") from error
        asked = Asked(request, deltas, time.monotonic() - started, heart.stalled)
        self.answers.append(asked)
        return asked

    async def alone(self, which: Literal[0, 1] = 0) -> Asked:
        """The answer to an ordinary question that nothing else is asked beside; asked once."""
        if which not in self._alone:
            self._alone[which] = await self.ask(self.ordinary(which))
        return self._alone[which]

    def opened(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        stream: Any = self.expert.answer(request)
        if not hasattr(stream, "aclose"):
            given = type(stream).__name__
            raise Broken(f"answer() gives a {given}, which cannot be closed: write it as `async def` with `yield`")
        generator: AsyncGenerator[Delta, None] = stream
        return generator


def asking(*parts: Part, max_tokens: int = FEW_TOKENS) -> ChatRequest:
    return ChatRequest("examination", (Message("user", parts),), max_tokens=max_tokens)


def output_of(deltas: Sequence[Delta]) -> Output:
    whole = [delta.output for delta in deltas if delta.output is not None]
    return whole[-1] if whole else Text(text="".join(delta.text for delta in deltas))


class Heart:
    """A task that wants to run all the time; `stalled` is the longest it was kept waiting, in seconds."""

    def __init__(self) -> None:
        self.stalled = 0.0
        self._last = time.monotonic()

    def beat(self) -> None:
        now = time.monotonic()
        self.stalled = max(self.stalled, now - self._last - HEARTBEAT_S)
        self._last = now

    async def go_on(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self.beat()


@contextmanager
def heartbeat() -> Iterator[Heart]:
    heart = Heart()
    beating = asyncio.ensure_future(heart.go_on())
    try:
        yield heart
    finally:
        heart.beat()  # an answer may end with the very step that blocked
        beating.cancel()


async def examine(
    spec: ExpertSpec,
    find: FindWeights,
    probes: Probes | None = None,
    load: Load = load_expert,
    tolerance: float = 1e-3,
) -> list[Finding]:
    """Put the expert of `spec` to the test; a finding for each promise, in the order they were tried.

    `probes` are inputs to ask with; without them, ones made of the spec's card. `tolerance` is by how much scores may
    differ between an answer given alone and in a batch. Raises nothing that an expert may do wrong.
    """
    from multimoe.contract.promises import ANSWERS, OF_ANSWERS, OF_LOADING

    try:
        expert = await asyncio.to_thread(load, spec, find)
    except Exception as error:  # whatever somebody's class does wrong is a finding
        return [Finding("loads with its spec", "broken", _told(error))]
    examination = Examination(expert, find, load, probes or probes_for(spec.card), tolerance, await busy())
    findings = [Finding("loads with its spec", "kept")]
    findings += [await _finding(promise, examination) for promise in (*OF_LOADING, ANSWERS)]
    if findings[-1].state == "broken":
        return findings  # nothing more can be learned from one that does not answer
    return findings + [await _finding(promise, examination) for promise in OF_ANSWERS]


async def busy() -> float:
    """The share of one processor that this process uses just now, while nobody asks anything."""
    began, used = time.monotonic(), time.process_time()
    await asyncio.sleep(WINDOW_S)
    return (time.process_time() - used) / (time.monotonic() - began)


async def _finding(promise: Callable[[Examination], Any], examination: Examination) -> Finding:
    name = promise.__name__.replace("_", " ")
    try:
        await promise(examination)
    except Broken as broken:
        return Finding(name, "broken", str(broken))
    except Untried as untried:
        return Finding(name, "untried", str(untried))
    except Exception as error:  # as above
        return Finding(name, "broken", _told(error))
    return Finding(name, "kept")


def _told(error: Exception) -> str:
    if isinstance(error, MultimoeError):
        return f"{type(error).__name__}: {error}"
    return f"it raised {type(error).__name__}: {error}; where that is meant, raise an error of multimoe.errors"
