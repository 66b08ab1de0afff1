"""One question and its answer as the page shows them, and one browser's visit. Knows no Gradio and no HTML."""

import queue
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gateway.client import Json, Routing, Said, Stream, StreamEvent, Used
from multimoe.errors import MultimoeError

TurnState = Literal["routing", "streaming", "done", "stopped", "failed", "routed"]
RATED = {"good": 1.0, "bad": 0.0, "wrong_expert": 0.0, "too_slow": 0.0, "hallucinated": 0.0, "unsafe": 0.0}
ANSWER = ""  # where an expert's name could stand, this means the whole answer


@dataclass
class Turn:
    """`files` are local paths. `ratings` maps an expert's name, or `ANSWER`, to a key of `RATED`."""

    text: str
    files: tuple[str, ...] = ()
    answer: str = ""
    info: Json = field(default_factory=dict)
    usage: Json = field(default_factory=dict)
    state: TurnState = "routing"
    problem: str = ""
    ratings: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def completion_id(self) -> str:
        return str(self.info.get("completion_id", ""))

    @property
    def rateable(self) -> bool:
        """Only an answer that was given to its end is kept by the API, and so can be rated."""
        return self.state == "done" and bool(self.completion_id) and self.info.get("rateable") is not False

    @property
    def experts(self) -> list[Json]:
        return list(self.info.get("experts") or ())

    @property
    def failed_experts(self) -> list[Json]:
        return [expert for expert in self.experts if expert.get("status") in ("error", "timeout")]

    def take(self, event: StreamEvent) -> None:
        match event:
            case Routing(info):
                self.info = {**self.info, **info}
            case Said(text):
                self.answer += text
                self.state = "streaming" if self.state == "routing" else self.state
            case Used(usage):
                self.usage = usage


@dataclass
class Visit:
    """What one open page remembers. `user` is random: it lets a rating be changed, and names nobody."""

    user: str
    turns: list[Turn] = field(default_factory=list)
    stream: Stream | None = None
    shown: int = -1  # which turn the inspector shows

    @classmethod
    def begin(cls) -> "Visit":
        return cls(user=secrets.token_hex(8))

    def history(self) -> list[Json]:
        """Earlier questions and answers as chat messages; their media are named, not sent again."""
        told: list[Json] = []
        for turn in self.turns:
            if turn.state in ("done", "stopped") and turn.answer:
                attached = f"[{len(turn.files)} attachment(s)]" if turn.files else ""
                told.append({"role": "user", "content": f"{turn.text} {attached}".strip()})
                told.append({"role": "assistant", "content": turn.answer})
        return told


def handfuls(stream: Stream, seconds: float) -> Iterator[list[StreamEvent]]:
    """The events of `stream` as they come, those of `seconds` together; none is held back longer than that.

    Raises what the stream raises, after the events before it.
    """
    arrived: queue.Queue[StreamEvent | MultimoeError | None] = queue.Queue()
    threading.Thread(target=_read, args=(stream, arrived), daemon=True).start()
    while True:
        taken = [arrived.get()]
        time.sleep(seconds)
        while not arrived.empty():
            taken.append(arrived.get())
        yield [event for event in taken if isinstance(event, Routing | Said | Used)]
        for event in taken:
            if isinstance(event, MultimoeError):
                raise event
        if None in taken:
            return


def _read(stream: Stream, arrived: "queue.Queue[StreamEvent | MultimoeError | None]") -> None:
    try:
        for event in stream:
            arrived.put(event)
    except MultimoeError as error:
        arrived.put(error)
    finally:
        arrived.put(None)
