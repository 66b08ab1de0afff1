"""What an expert can say: one frozen type per kind of output. They cross processes and appear in replies as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

OutputKind = Literal["text", "labels", "words", "objects", "transcript", "events"]

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Frozen(BaseModel):
    """Base of everything that crosses a process or HTTP boundary."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Text(Frozen):
    kind: Literal["text"] = "text"
    text: str


class Label(Frozen):
    """`id` is the label's name in its space that survives renaming (a WordNet id, a MIME type).

    `synonyms` are other names of the same thing.
    """

    name: str
    probability: Probability
    id: str | None = None
    synonyms: tuple[str, ...] = ()


class Labels(Frozen):
    """A distribution over the labels of one `space` ("imagenet-1k", "sentiment"), likeliest first.

    Labels of the space that are not listed share what is missing to 1. `each` has a distribution for each picture of
    a request with several, of which `labels` is the mean.
    """

    kind: Literal["labels"] = "labels"
    space: str
    labels: tuple[Label, ...]
    each: "tuple[Labels, ...]" = ()


class Box(Frozen):
    """Corners in pixels of the picture as decoded; `text` is what was read or the name of the thing found.

    `picture` says which of the request's pictures it is in, from 1.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    text: str
    score: Probability
    picture: int = Field(default=1, ge=1)


class Words(Frozen):
    """Words read in a picture, in reading order, a box a line."""

    kind: Literal["words"] = "words"
    boxes: tuple[Box, ...]


class Objects(Frozen):
    """Things found in a picture, surest first."""

    kind: Literal["objects"] = "objects"
    boxes: tuple[Box, ...]


class Segment(Frozen):
    """`start` and `end` in seconds from the beginning of the recording; `confidence` where its recogniser knows one."""

    start: float
    end: float
    text: str
    confidence: Probability | None = None


class Transcript(Frozen):
    kind: Literal["transcript"] = "transcript"
    segments: tuple[Segment, ...]
    language: str | None = None

    @property
    def text(self) -> str:
        return " ".join(segment.text.strip() for segment in self.segments).strip()


class Event(Frozen):
    """`start` and `end` in seconds; `label` is a kind of sound ("music") or a note ("C4")."""

    label: str
    start: float
    end: float
    score: Probability


class Events(Frozen):
    """What happens in a recording and when. `space` as in `Labels` ("sound", "notes")."""

    kind: Literal["events"] = "events"
    space: str
    duration: float
    events: tuple[Event, ...]


Output = Annotated[Text | Labels | Words | Objects | Transcript | Events, Field(discriminator="kind")]


class Worker(Frozen):
    """An expert inside an expert that is a mixture itself, and its weight there."""

    id: str
    weight: float


class Usage(Frozen):
    """What an answer took. Tokens as the expert's own tokenizer counts, zero for experts that know none.

    `cost` in US$ where the expert was told it; `by` are those who answered inside it, where it is a mixture itself.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    by: tuple[Worker, ...] = ()
