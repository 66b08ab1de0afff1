"""One request, from question to blended answer. The story reads top-down; it knows no Ray and no HTTP.

What it needs from outside, a gate to decide and experts to ask, comes as two small protocols, so that the same story
runs on a cluster, in one process and in tests.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from multimoe.config import ExpertSpec
from multimoe.decision import Decision, Policy
from multimoe.expert import Delta, FinishReason
from multimoe.messages import ChatRequest
from multimoe.outputs import Frozen, Output, Usage

Combine = Literal["weighted", "best", "all"]


@dataclass(frozen=True)
class Routed:
    """A decision and the embedding it was made from, as bytes for the store."""

    decision: Decision
    embedding: bytes


class Router(Protocol):
    async def decide(self, request: ChatRequest, policy: Policy) -> Routed: ...


class Experts(Protocol):
    async def roster(self) -> tuple[ExpertSpec, ...]: ...

    def ask(self, expert: str, request: ChatRequest) -> AsyncIterator[Delta]: ...


class Part(Frozen):
    """What one expert did for an answer. `weight` is its share among those that answered; evidence has its gate weight.

    `role`: "answer" spoke, "evidence" was handed to the writer, "skipped" was chosen but not needed.
    """

    expert: str
    role: Literal["answer", "evidence", "skipped"]
    weight: float
    status: Literal["ok", "error", "timeout", "skipped"]
    latency_ms: float = 0.0
    error: str | None = None
    output: Output | None = None
    usage: Usage = Usage()
    cost: float = 0.0


class Reply(Frozen):
    """The whole answer. `output` is the blended one, `text` the same in words; `degraded` says that a part failed."""

    text: str
    output: Output
    parts: tuple[Part, ...]
    decision: Decision
    combine: Combine
    usage: Usage
    finish: FinishReason
    degraded: bool = False
    timing_ms: dict[str, float] = {}


@dataclass(frozen=True)
class Decided:
    """First event: who will answer, known before the first word."""

    routed: Routed


@dataclass(frozen=True)
class Spoken:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Finished:
    """Last event."""

    reply: Reply


Event = Decided | Spoken | Finished
