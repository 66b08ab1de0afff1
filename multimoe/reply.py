"""What an answer is made of: the parts, the whole reply, and the events it arrives in."""

from dataclasses import dataclass
from typing import Literal

from multimoe.config import Combine
from multimoe.decision import Decision
from multimoe.expert import FinishReason
from multimoe.outputs import Frozen, Output, Usage

__all__ = ["Combine", "Decided", "Event", "Finished", "Part", "PartRole", "Reply", "Routed", "Spoken"]


@dataclass(frozen=True)
class Routed:
    """A decision and the embedding it was made from, as bytes for the store."""

    decision: Decision
    embedding: bytes


PartRole = Literal["answer", "evidence", "aside", "skipped"]


class Part(Frozen):
    """What one expert did for an answer. `weight` is its share of the gate's weight among those that came through.

    `role`: "answer" is in the answer's words, "evidence" was handed to the writer, "aside" ran beside it and is kept
    here only, "skipped" was chosen but not needed, or keeps failing, and `reason` may say why. Experts asked beyond the
    gate's choice (evidence for a writer that cannot see, a stand-in for one that failed) have weight 0 unless nobody
    chosen came through. One that wrote a candidate and then fused all of them has two parts, the second of weight 0.
    """

    expert: str
    role: PartRole
    weight: float
    status: Literal["ok", "error", "timeout", "skipped"]
    latency_ms: float = 0.0
    error: str | None = None
    reason: str = ""
    output: Output | None = None
    usage: Usage = Usage()
    cost: float = 0.0


class Reply(Frozen):
    """The whole answer. `output` is the blended one, `text` the same in words; `degraded` says that a part failed.

    `combine` is how it was made, `combine_asked` how it was to be, and `combine_reason` why the one became the other.
    `agreement` in [-1, 1] is how much the text given is like the other candidates, where they were compared.
    `timing_ms`: "answer" from the decision to the last word, "first_token" from the question to the first.
    """

    text: str
    output: Output
    parts: tuple[Part, ...]
    decision: Decision | None
    combine: Combine
    combine_asked: Combine
    combine_reason: str = ""
    agreement: float | None = None
    usage: Usage
    finish: FinishReason
    degraded: bool = False
    timing_ms: dict[str, float] = {}


@dataclass(frozen=True)
class Decided:
    """First event: who will answer, known before the first word. None when the caller named the expert."""

    routed: Routed | None


@dataclass(frozen=True)
class Spoken:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Finished:
    """Last event."""

    reply: Reply


Event = Decided | Spoken | Finished
