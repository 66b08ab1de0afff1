"""The visitor: asks through the stock openai client, rates and retrains through the REST API, and keeps the answers."""

import base64
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai

from gateway.client import Client, media_part

if TYPE_CHECKING:
    from gateway.demo.person import Wish

Json = dict[str, Any]
MAX_TOKENS = 48
PATIENCE_SECONDS = 300.0  # an expert that sleeps has to wake first


@dataclass(frozen=True)
class Seen:
    """What one step brought: the words, the routing object, and facts of its own for its checks."""

    text: str
    info: Json = field(default_factory=dict)
    seconds: float = 0.0
    facts: Json = field(default_factory=dict)

    @property
    def experts(self) -> dict[str, float]:
        """Who took part and came through, with their weights."""
        return {name(e): float(e.get("weight") or 0.0) for e in self.parts if e.get("status", "ok") == "ok"}

    @property
    def parts(self) -> list[Json]:
        return list(self.info.get("experts", []))

    @property
    def gate(self) -> int | None:
        return (self.info.get("gate") or {}).get("version")

    @property
    def id(self) -> str:
        return str(self.info.get("completion_id", ""))


class Visitor:
    """One person at one gateway.

    `outputs` says what each expert writes: text, labels, words, ... `puzzle` is a question that the first gate gets
    wrong, kept to be asked again.
    """

    def __init__(self, url: str) -> None:
        self.client = Client(url)
        http = openai.DefaultHttpxClient(trust_env=False)  # no proxy stands between us and this machine
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="-", timeout=PATIENCE_SECONDS, http_client=http)
        self.answers: list[Seen] = []
        self.puzzle: Wish | None = None
        self.outputs = {name(e): str(e.get("output")) for e in self.client.experts()}

    def close(self) -> None:
        self.client.close()
        self.openai.close()

    def ask(
        self, text: str = "", *media: Path | bytes, stream: bool = False, max_tokens: int = MAX_TOKENS, **x: Any
    ) -> Seen:
        """Ask and remember; nothing is left to chance, so each run shows the same. `x` are keys of `x_multimoe`."""
        seen = self.try_out(text, *media, stream=stream, max_tokens=max_tokens, **{"explore": False, **x})
        self.answers.append(seen)
        return seen

    def try_out(
        self, text: str = "", *media: Path | bytes, stream: bool = False, max_tokens: int = MAX_TOKENS, **x: Any
    ) -> Seen:
        """Ask without remembering. Safe from several threads."""
        body: Json = {
            "model": "multimoe",
            "messages": [{"role": "user", "content": content(text, media)}],
            "max_tokens": max_tokens,
            "extra_body": {"x_multimoe": {"include_outputs": True, **x}},
        }
        started = time.monotonic()
        if stream:
            pieces = list(self._streamed(body))
            words = [piece for piece in pieces if isinstance(piece, str)]
            said, facts = "".join(words), {"pieces": len(words)}
            info: Json = {}
            for piece in pieces:
                info |= piece if isinstance(piece, dict) else {}
        else:
            reply = self.openai.chat.completions.create(**body)
            said, info, facts = reply.choices[0].message.content or "", extra(reply), {}
        return Seen(said, info, time.monotonic() - started, facts)

    def _streamed(self, body: Json) -> Iterator[str | Json]:
        """Pieces of text, and the routing objects between them."""
        for chunk in self.openai.chat.completions.create(stream=True, stream_options={"include_usage": True}, **body):
            if info := extra(chunk):
                yield info
            for choice in chunk.choices:
                if choice.delta.content:
                    yield choice.delta.content


def content(text: str, media: Sequence[Path | bytes]) -> str | list[Json]:
    """OpenAI's content: the text alone, or parts. `bytes` are a JPEG."""
    if not media:
        return text
    parts: list[Json] = [{"type": "text", "text": text}] if text else []
    return parts + [media_part(one) if isinstance(one, Path) else _photograph(one) for one in media]


def extra(message: Any) -> Json:
    """`x_multimoe`, which the stock client keeps as an attribute it has no type for."""
    return dict(getattr(message, "x_multimoe", None) or {})


def name(expert: Json) -> str:
    return str(expert.get("name") or expert.get("id")).removeprefix("multimoe/")


def _photograph(jpeg: bytes) -> Json:
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"}}
