"""From the wire to a `ChatRequest`: JSON within bounds, `data:` URLs, base64, and media handed to the decoder.

First everything is counted, then the bytes of each picture and recording are gathered, then they are decoded, by
whoever is given for it. What is refused is refused by a sentence and the path of the part. What lies elsewhere is the
fetcher's to get, or to refuse.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from gateway.reading.decoding import Decoder, Kind
from gateway.reading.fetch import Fetcher, Wanted
from gateway.reading.schemas import AudioContent, AudioUrlContent, ChatBody, ImageContent, TextContent, WireMessage
from multimoe.config import Limits
from multimoe.errors import BadInput, BadMedia, TooLarge, UnsupportedMedia
from multimoe.messages import AudioPart, ChatRequest, ImagePart, Message, Part, Role, TextPart

AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "webm", "m4a")
ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user"}
DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<extras>(?:;[\w.+-]+=[^;,]*)*)(?P<base64>;base64)?,", re.I)

DECLARED: dict[Kind, tuple[str, ...]] = {  # browsers record sound as video/webm
    "image": ("image", "application", ""),
    "audio": ("audio", "application", "video", ""),
}

Media = ImageContent | AudioContent | AudioUrlContent
Place = tuple[int, int]  # of a part: which message, which of its parts


@dataclass(frozen=True)
class File:
    """A picture or a recording as it was sent; nothing in it has been looked at."""

    kind: Kind
    data: bytes
    param: str


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


async def chat_request(
    body: ChatBody, id: str, limits: Limits, decoder: Decoder, fetcher: Fetcher, via: tuple[str, ...] = ()
) -> ChatRequest:
    """Checked and decoded. Raises BadInput and its kin with the path of the part, and Unavailable as those given do."""
    _check_sizes(body, limits)
    files = await _gathered(_media(body.messages, limits), limits, fetcher)
    media = {place: await _decoded(file, decoder) for place, file in files.items()}
    messages = tuple(message for at, sent in enumerate(body.messages) if (message := _message(at, sent, media)).parts)
    request = ChatRequest(
        id=id,
        messages=messages,
        max_tokens=_max_tokens(body, limits),
        temperature=body.temperature or 0.0,
        top_p=body.top_p or 1.0,
        stop=body.stop,
        seed=body.seed,
        via=via,
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


def _media(messages: Sequence[WireMessage], limits: Limits) -> dict[Place, Media]:
    """All of the question's; of the history, the newest that still fit `limits.media_parts`.

    A client sends the whole conversation again each time, so an old picture too many must not end it.
    """
    places = [
        ((at, place), part)
        for at, message in reversed(list(enumerate(messages)))
        for place, part in enumerate(message.content)
        if isinstance(part, ImageContent | AudioContent | AudioUrlContent)
    ]
    asked = max((at for at, message in enumerate(messages) if message.role == "user"), default=-1)
    here = sum(at == asked for (at, _), _ in places)
    if here > limits.media_parts:
        raise BadInput(f"{here} pictures and recordings in one message; at most {limits.media_parts}", "messages")
    return dict(places[: limits.media_parts])


def _message(at: int, sent: WireMessage, media: Mapping[Place, Part]) -> Message:
    parts: list[Part] = []
    for place, part in enumerate(sent.content):
        if isinstance(part, TextContent):
            parts.append(TextPart(part.text))
        elif (at, place) in media:
            parts.append(media[at, place])
    # what a tool or a function said is part of the assistant's turn, never a question
    return Message(ROLES.get(sent.role, "assistant"), tuple(parts))


# --- the bytes of a part ---


async def _gathered(media: Mapping[Place, Media], limits: Limits, fetcher: Fetcher) -> dict[Place, File]:
    """In the order of `media`. Nothing is fetched for a request that already carries what is refused."""
    params = {(at, place): f"messages[{at}].content[{place}]" for at, place in media}
    there = {place: wanted for place, part in media.items() if (wanted := _elsewhere(part, params[place], limits))}
    files = {place: await _taken(part, params[place], limits) for place, part in media.items() if place not in there}
    if there:
        fetched = await fetcher.fetch(list(there.values()), limits.body_bytes)
        files |= {p: File(w.kind, data, w.param) for (p, w), data in zip(there.items(), fetched, strict=True)}
    return {place: files[place] for place in media}


def _elsewhere(part: Media, param: str, limits: Limits) -> Wanted | None:
    """What to fetch for a part that gives an address; None for one that carries its file."""
    if isinstance(part, ImageContent) and not _is_data(part.image_url.url):
        return Wanted(part.image_url.url, "image", limits.image_bytes, param)
    if isinstance(part, AudioUrlContent) and not _is_data(part.audio_url.url):
        return Wanted(part.audio_url.url, "audio", limits.audio_bytes, param)
    return None


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


async def _taken(part: Media, param: str, limits: Limits) -> File:
    """Off the event loop: base64 of megabytes takes long."""
    return await asyncio.to_thread(_sent_along, part, param, limits)


async def _decoded(file: File, decoder: Decoder) -> ImagePart | AudioPart:
    return await (decoder.image if file.kind == "image" else decoder.audio)(file.data, file.param)


def _sent_along(part: Media, param: str, limits: Limits) -> File:
    """The file that the request itself carries."""
    if isinstance(part, ImageContent):
        return File("image", _from_url(part.image_url.url, "image", limits.image_bytes, param), param)
    if isinstance(part, AudioUrlContent):
        return File("audio", _from_url(part.audio_url.url, "audio", limits.audio_bytes, param), param)
    sent = part.input_audio
    if sent.format.lower() not in AUDIO_FORMATS:
        raise UnsupportedMedia(f"audio format {sent.format[:32]!r}; send {', '.join(AUDIO_FORMATS)}", f"{param}.format")
    read = _from_url if _is_data(sent.data) else _from_base64
    return File("audio", read(sent.data, "audio", limits.audio_bytes, param), param)


def _from_url(url: str, kind: Kind, limit: int, param: str) -> bytes:
    """The bytes of a `data:` URL of `kind` "image" or "audio"."""
    head = DATA_URL.match(url[:256])
    if head is None:
        message = f"the data: URL holds no file, and is not fetched here; send data:{kind}/...;base64,..."
        raise BadInput(message, param, "url_not_allowed")
    declared = (head["type"] or "").lower()
    if declared.split("/")[0] not in DECLARED[kind]:  # a first guess; the decoder goes by the bytes alone
        raise UnsupportedMedia(f"the URL declares {declared!r}, not {kind}/...", param)
    if head["base64"]:
        return _from_base64(url[head.end() :], kind, limit, param)
    return unquote_to_bytes(url[head.end() :])


def _from_base64(text: str, kind: Kind, limit: int, param: str) -> bytes:
    """Lenient as decoders in the field are: line ends, URL-safe letters and missing padding are fine."""
    if len(text) * 3 // 4 > limit + len(text) // 32:  # a thirty-second of it may be line ends
        raise TooLarge(f"the data is over {limit:,} bytes; send a smaller or shorter one", param)
    compact = "".join(text.split()).translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadMedia("the data is not base64; encode the file's bytes as base64", param, f"invalid_{kind}") from error
