"""The wire: what clients send, as OpenAI wrote it down, plus our own `x_multimoe`. Only shapes; meaning is `wire`'s.

Unknown fields are ignored, as every compatible server must (clients send tools, metadata and more), except inside
`x_multimoe`, where an unknown key is a typing mistake and is refused with the nearest right one.
"""

import difflib
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from multimoe.config import Combine, Preference

INT64 = 2**63
MOST_STOPS = 16
MOST_ITEMS = 4096  # messages or parts, whatever the catalog's limits are


def _a_number(sent: Any, info: ValidationInfo) -> Any:
    """Not `true`, and not "7" either, unless it was sent where there are only words (a header)."""
    if isinstance(sent, bool) or (isinstance(sent, str) and not info.context):
        raise ValueError(f"a number is needed, not {str(sent)[:32]!r}")
    return sent


def _yes_or_no(sent: Any, info: ValidationInfo) -> Any:
    if not isinstance(sent, bool) and not info.context and sent is not None:
        raise ValueError(f"true or false is needed, not {str(sent)[:32]!r}")
    return sent


def _not_a_flag(sent: Any) -> Any:
    if isinstance(sent, bool):
        raise ValueError(f"a number or a word is needed, not {sent}")
    return sent


IN_WORDS = {"words": True}  # the context of what was sent in words alone
NUMBER, FLAG = BeforeValidator(_a_number), BeforeValidator(_yes_or_no)


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ErrorDetail(Wire):
    """`message` says what to do, `param` is the path of the wrong field, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Wire):
    """What every refusal looks like, whatever refused."""

    error: ErrorDetail


class TextContent(Wire):
    type: Literal["text"]
    text: str


class Url(Wire):
    url: str


class ImageContent(Wire):
    """`url` is a `data:` URL; `detail` is accepted and ignored."""

    type: Literal["image_url"]
    image_url: Annotated[Url, BeforeValidator(lambda url: {"url": url} if isinstance(url, str) else url)]


class InputAudio(Wire):
    """`data` is base64; `format` wav, mp3, flac, ogg, webm or m4a."""

    data: str
    format: str


class AudioContent(Wire):
    type: Literal["input_audio"]
    input_audio: InputAudio


class AudioUrlContent(Wire):
    """As vLLM has it; `url` is a `data:` URL."""

    type: Literal["audio_url"]
    audio_url: Annotated[Url, BeforeValidator(lambda url: {"url": url} if isinstance(url, str) else url)]


class RefusalContent(Wire):
    """What an assistant once declined to say; it is part of a history and nothing more."""

    type: Literal["refusal"]
    refusal: str


ContentPart = Annotated[
    TextContent | ImageContent | AudioContent | AudioUrlContent | RefusalContent, Field(discriminator="type")
]


def _few(items: Any) -> Any:
    """Before each of them is looked at, which takes seconds for a hundred thousand."""
    if isinstance(items, list) and len(items) > MOST_ITEMS:
        raise ValueError(f"{len(items):,} are too many; leave out the oldest")
    return items


def _parts(content: Any) -> Any:
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else _few(content)


Content = Annotated[
    list[ContentPart],
    FailFast(),
    BeforeValidator(_parts, json_schema_input_type=str | list[ContentPart] | None),
]


class WireMessage(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = []


def _stops(sent: Any) -> Any:
    if sent is None:
        return ()
    return (sent,) if isinstance(sent, str) else sent


class StreamOptions(Wire):
    include_usage: Annotated[bool, FLAG] = False


class Options(BaseModel):
    """What `x_multimoe` may ask of one request; what is left out is the catalog's default.

    `strategy` is a published router's ("softmax", "switch", "thompson", ...). `experts` keeps only these and `exclude`
    drops these, by name or `multimoe/NAME`. `combine`: "weighted" blends, "best" takes the weightiest, "all" lists
    everybody's; of texts, "vote" takes the one that the others agree with most, "fuse" has a new one written from all,
    "auto" does so only where it pays, and "tokens" has experts of one tokenizer write together. `ask_next_below` asks a
    further classifier of a group only while the likeliest label is less probable than that. `preference` is "cheap",
    "balanced", "best" or a number from 0 (cheapest) to 1 (best). `max_cost` in US$. `gate` is a version or an alias.
    `include_outputs` puts each expert's own output into the reply. After `timeout_s` seconds nobody waits any more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: Annotated[int | None, Field(ge=1, le=16), NUMBER] = None
    strategy: str | None = None
    temperature: Annotated[float | None, Field(gt=0), NUMBER] = None
    experts: tuple[str, ...] = Field(default=(), max_length=64)
    exclude: tuple[str, ...] = Field(default=(), max_length=64)
    combine: Combine | None = None
    ask_next_below: Annotated[float | None, Field(ge=0, le=1), NUMBER] = None
    explore: Annotated[bool | None, FLAG] = None
    preference: Annotated[Preference | None, BeforeValidator(_not_a_flag)] = None
    max_cost: Annotated[float | None, Field(ge=0), NUMBER] = None
    max_latency_ms: Annotated[float | None, Field(ge=0), NUMBER] = None
    timeout_s: Annotated[float | None, Field(gt=0, allow_inf_nan=False), NUMBER] = None
    gate: Annotated[int | str | None, BeforeValidator(_not_a_flag)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**32), NUMBER] = None
    include_outputs: Annotated[bool, FLAG] = False

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, tree: Any) -> Any:
        known = list(cls.model_fields)
        for key in tree if isinstance(tree, dict) else ():
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(known)}"
                raise ValueError(f"unknown key {str(key)[:64]!r}; {hint}")
        return tree


class ChatBody(Wire):
    """POST /v1/chat/completions. `model`: `multimoe`, a preset `multimoe:NAME`, or one expert `multimoe/NAME`.

    `tools` and every other field of OpenAI's that is not listed are accepted and ignored.
    """

    model: str = "multimoe"
    messages: Annotated[list[WireMessage], FailFast(), BeforeValidator(_few)] = Field(min_length=1)
    stream: Annotated[bool | None, FLAG] = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1), NUMBER] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1), NUMBER] = None
    temperature: Annotated[float | None, Field(ge=0, le=2), NUMBER] = None
    top_p: Annotated[float | None, Field(gt=0, le=1), NUMBER] = None
    stop: Annotated[
        tuple[str, ...],
        Field(max_length=MOST_STOPS),
        BeforeValidator(_stops, json_schema_input_type=str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None),
    ] = ()
    seed: Annotated[int | None, Field(ge=-INT64, lt=INT64), NUMBER] = None
    n: Annotated[int | None, Field(ge=1), NUMBER] = None
    user: str | None = Field(default=None, max_length=128)
    x_multimoe: Options | None = None

    @field_validator("n")
    @classmethod
    def _one_answer(cls, n: int | None) -> int | None:
        if n is not None and n > 1:
            raise ValueError('only n=1 is served; x_multimoe {"combine": "all"} gives several experts\' answers')
        return n


class EmbeddingBody(Wire):
    """POST /v1/embeddings. `input` is a text or a list of texts."""

    model: str = "multimoe-embed"
    input: str | list[Any] = Field(json_schema_extra={"items": {"type": "string"}})
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, NUMBER] = None


class Scale(BaseModel):
    """How many replicas an expert may have; `min_replicas` 0 lets it sleep until it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: Annotated[int, Field(ge=0, le=1000), NUMBER]
    max_replicas: Annotated[int, Field(ge=1, le=1000), NUMBER]

    @model_validator(mode="after")
    def _ordered(self) -> "Scale":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class RatingBody(BaseModel):
    """POST /v1/feedback. Rating the same thing again as the same `user` replaces the earlier rating.

    `score` runs from 0 (bad) to 1 (good): a thumb is 1 or 0, n of five stars (n - 1) / 4. `target` "expert" rates the
    `expert`'s own part; "comparison" says which expert or answer was `preferred` to the `rejected` ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    completion_id: str
    target: Literal["answer", "expert", "comparison"] = "answer"
    expert: str | None = None
    name: str = "user_rating"
    score: Annotated[float | None, Field(ge=0, le=1), NUMBER] = None
    label: str | None = None
    comment: str | None = None
    user: str | None = None
    preferred: str | None = None
    rejected: tuple[str, ...] = ()


class Promotion(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, Field(ge=0, lt=2**31), NUMBER]


class Canary(Promotion):
    """`share` of requests that it answers; left out, the catalog's."""

    share: Annotated[float | None, Field(gt=0, le=0.5), NUMBER] = None
