"""A conversation as OpenAI's chat API carries it, and its streamed answer read back.

It knows the JSON and not who sends it: a server that is reached by HTTP and an engine in this process speak the same.
"""

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from multimoe.config import ExpertSpec
from multimoe.errors import BadInput, ExpertFailed
from multimoe.expert import Delta
from multimoe.media import encode_wav
from multimoe.messages import ChatRequest, ImagePart, Message, Part, TextPart
from multimoe.outputs import Usage, Worker

EXACT_BYTES = 2**20  # a picture that takes more as PNG is a photograph, and goes as JPEG
JPEG_QUALITY = 90
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}

Json = dict[str, Any]


def chat_body(request: ChatRequest, spec: ExpertSpec) -> Json:
    """The body of a streamed chat completion, but for its model: the whole conversation, less what `spec` cannot read.

    Encodes pictures and recordings, so it belongs in a worker thread. Raises BadInput where the question holds nothing
    that `spec` reads.
    """
    if not request.modalities & spec.inputs:
        reads = " or ".join(sorted(spec.inputs))
        raise BadInput(f"expert {spec.name!r} reads {reads}, and the last user message holds none", "messages")
    turns = ((message.role, _content(message, spec)) for message in request.messages)
    body: Json = {
        "messages": [{"role": role, "content": content} for role, content in turns if content],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        **COUNTED,
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if request.seed is not None:
        body["seed"] = request.seed
    return body


def _content(message: Message, spec: ExpertSpec) -> str | list[Json]:
    """Plain text as a string, which is all that servers of text models take; else parts. Empty where none is read."""
    read = [part for part in message.parts if part.modality in spec.inputs]
    if all(isinstance(part, TextPart) for part in read):
        return message.text if read else ""
    return [_part(part) for part in read]


def _part(part: Part) -> Json:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": _data_url(part.pixels)}}
    wav = base64.b64encode(encode_wav(part.samples)).decode()
    return {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}}


def _data_url(pixels: NDArray[np.uint8]) -> str:
    """(height, width, 3) RGB. Pages and drawings stay exact."""
    picture, file, kind = Image.fromarray(pixels), io.BytesIO(), "png"
    picture.save(file, "PNG", compress_level=1)
    if file.tell() > EXACT_BYTES:
        file, kind = io.BytesIO(), "jpeg"
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True)


class _Words(_Read):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Read):
    delta: _Words
    finish_reason: str | None = None


class _Usage(_Read):
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cost: float | None = Field(default=None, ge=0)


class _Share(_Read):
    id: str
    weight: float
    status: str


class _Routing(_Read):
    experts: tuple[_Share, ...] = ()


class Chunk(_Read):
    """One `chat.completion.chunk`, as far as it is read here; `model_validate` takes a dict or an SDK's own object."""

    choices: tuple[_Choice, ...]
    usage: _Usage | None = None
    x_multimoe: _Routing | None = None


async def deltas(chunks: AsyncIterator[Chunk], name: str) -> AsyncIterator[Delta]:
    """What expert `name` says in `chunks`. Raises ExpertFailed where they end before the answer, or say nothing."""
    usage, inside, reason, spoken = Usage(), _Routing(), None, False
    async for chunk in chunks:
        inside = chunk.x_multimoe or inside
        if chunk.usage:
            usage = Usage(**chunk.usage.model_dump())
        for choice in chunk.choices[:1]:
            reason = choice.finish_reason or reason
            if text := choice.delta.content or choice.delta.refusal:
                spoken = True
                yield Delta(text=text)
    if reason is None:
        raise ExpertFailed(f"the answer of expert {name!r} broke off before its end")
    if not spoken:
        raise ExpertFailed(f"expert {name!r} ended ({reason}) without a word")
    workers = tuple(Worker(id=share.id, weight=share.weight) for share in inside.experts if share.status == "ok")
    yield Delta(usage=usage.model_copy(update={"by": workers}), finish="length" if reason == "length" else "stop")
