"""From the wire to a `ChatRequest`: JSON within bounds, `data:` URLs, base64, and media handed to the decoder.

What is refused is refused by a sentence and the path of the part. Nothing is ever fetched from elsewhere.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import orjson

from gateway.schemas import AudioContent, AudioUrlContent, ChatBody, ImageContent, TextContent, WireMessage
from multimoe.config import Limits
from multimoe.errors import BadInput, BadMedia, TooLarge, UnsupportedMedia
from multimoe.media import decode_audio, decode_image
from multimoe.messages import ChatRequest, Message, Part, Role, TextPart

AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "webm", "m4a")
ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user"}
DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<extras>(?:;[\w.+-]+=[^;,]*)*)(?P<base64>;base64)?,", re.I)

DECLARED = {  # browsers record sound as video/webm
    "image": ("image", "application", ""),
    "audio": ("audio", "application", "video", ""),
}

Media = ImageContent | AudioContent | AudioUrlContent


def read_json(body: bytes, depth: int) -> Any:
    """Strict JSON (UTF-8, no NaN, no lone surrogates), nested at most `depth` deep. Raises BadInput."""
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not JSON: {error}", None, "invalid_json") from error
    if _deeper(tree, depth):
        raise BadInput(f"the body is nested more than {depth} deep; flatten it", None, "invalid_json")
    return tree


def _deeper(tree: Any, depth: int) -> bool:
    """Level by level, so that it cannot overflow the stack."""
    level = [tree]
    for _ in range(depth):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


async def chat_request(body: ChatBody, id: str, limits: Limits) -> ChatRequest:
    """Checked and decoded, media in a worker thread. Raises BadInput and its kin, with the path of the part."""
    _check_sizes(body, limits)
    media = await asyncio.to_thread(_decode_all, body.messages, limits)
    messages = tuple(message for at, sent in enumerate(body.messages) if (message := _message(at, sent, media)).parts)
    request = ChatRequest(
        id=id,
        messages=messages,
        max_tokens=_max_tokens(body, limits),
        temperature=body.temperature or 0.0,
        top_p=body.top_p or 1.0,
        stop=body.stop,
        seed=body.seed,
    )
    if not request.modalities:
        raise BadInput("there is no question: send a user message with text, a picture or a recording", "messages")
    return request


def _check_sizes(body: ChatBody, limits: Limits) -> None:
    if len(body.messages) > limits.messages:
        raise BadInput(
            f"{len(body.messages):,} messages; at most {limits.messages} are taken, leave out the oldest", "messages"
        )
    text = 0
    for at, message in enumerate(body.messages):
        for place, part in enumerate(message.content):
            if isinstance(part, TextContent):
                text += len(part.text)
                if "\0" in part.text:
                    raise BadInput("the text has a NUL character; leave it out", f"messages[{at}].content[{place}]")
    if text > limits.text_chars:
        raise TooLarge(
            f"the messages have {text:,} characters of text; at most {limits.text_chars:,} are taken, "
            "leave out the oldest messages",
            "messages",
            "context_length_exceeded",
        )


def _max_tokens(body: ChatBody, limits: Limits) -> int:
    asked = body.max_completion_tokens or body.max_tokens
    if asked is not None and asked > limits.max_tokens:
        param = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        raise BadInput(f"{param} is {asked}; at most {limits.max_tokens} are written here", param)
    return asked or min(ChatRequest.max_tokens, limits.max_tokens)


def _decode_all(messages: Sequence[WireMessage], limits: Limits) -> dict[tuple[int, int], Part]:
    """Decoded media by place. All of the question's; of the history, the newest that still fit `limits.media_parts`.

    A client sends the whole conversation again each time, so an old picture too many must not end it.
    """
    places = [
        (at, place, part)
        for at, message in reversed(list(enumerate(messages)))
        for place, part in enumerate(message.content)
        if isinstance(part, ImageContent | AudioContent | AudioUrlContent)
    ]
    asked = max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)
    here = sum(at == asked for at, _, _ in places)
    if here > limits.media_parts:
        raise BadInput(f"{here} pictures and recordings in one message; at most {limits.media_parts}", "messages")
    return {
        (at, place): _decode(part, f"messages[{at}].content[{place}]", limits)
        for at, place, part in places[: limits.media_parts]
    }


def _message(at: int, sent: WireMessage, media: dict[tuple[int, int], Part]) -> Message:
    parts: list[Part] = []
    for place, part in enumerate(sent.content):
        if isinstance(part, TextContent):
            parts.append(TextPart(part.text))
        elif (at, place) in media:
            parts.append(media[at, place])
    # what a tool or a function said is part of the assistant's turn, never a question
    return Message(ROLES.get(sent.role, "assistant"), tuple(parts))


def _decode(part: Media, param: str, limits: Limits) -> Part:
    if isinstance(part, ImageContent):
        return decode_image(_from_url(part.image_url.url, "image", limits.image_bytes, param), limits, param)
    if isinstance(part, AudioUrlContent):
        return decode_audio(_from_url(part.audio_url.url, "audio", limits.audio_bytes, param), limits, param)
    sent = part.input_audio
    if sent.format.lower() not in AUDIO_FORMATS:
        raise UnsupportedMedia(f"audio format {sent.format[:32]!r}; send {', '.join(AUDIO_FORMATS)}", f"{param}.format")
    if sent.data[:5].lower() == "data:":
        return decode_audio(_from_url(sent.data, "audio", limits.audio_bytes, param), limits, param)
    return decode_audio(_from_base64(sent.data, "audio", limits.audio_bytes, param), limits, param)


def _from_url(url: str, kind: Literal["image", "audio"], limit: int, param: str) -> bytes:
    """The bytes of a `data:` URL of `kind` "image" or "audio"."""
    head = DATA_URL.match(url[:256])
    if head is None:
        scheme = url[:64].split(":", 1)[0]
        raise BadInput(
            f"{scheme!r} addresses are not fetched here; send the file itself as data:{kind}/...;base64,...",
            param,
            "url_not_allowed",
        )
    declared = (head["type"] or "").lower()
    if declared.split("/")[0] not in DECLARED[kind]:  # a first guess; the decoder goes by the bytes alone
        raise UnsupportedMedia(f"the URL declares {declared!r}, not {kind}/...", param)
    if head["base64"]:
        return _from_base64(url[head.end() :], kind, limit, param)
    return unquote_to_bytes(url[head.end() :])


def _from_base64(text: str, kind: str, limit: int, param: str) -> bytes:
    """Lenient as decoders in the field are: line ends, URL-safe letters and missing padding are fine."""
    if len(text) * 3 // 4 > limit + len(text) // 32:  # a thirty-second of it may be line ends
        raise TooLarge(f"the data is over {limit:,} bytes; send a smaller or shorter one", param)
    compact = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadMedia("the data is not base64; encode the file's bytes as base64", param, f"invalid_{kind}") from error
