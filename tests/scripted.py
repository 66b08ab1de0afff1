"""Scripted experts and a gate that picks as it is told, in place of a cluster, for the story of one request."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from multimoe.config import BlendSpec, Card, Combine, ExpertSpec
from multimoe.decision import Choice, Considered, Decision, Policy
from multimoe.errors import ExpertFailed, Unavailable
from multimoe.expert import Delta, NextToken, Token
from multimoe.messages import AudioPart, ChatRequest, ImagePart, Message, Part
from multimoe.mixture import Mixture
from multimoe.outputs import Label, Labels, Output, OutputKind, Segment, Transcript, Usage
from multimoe.reply import Decided, Event, Finished, Reply, Routed, Spoken

WORDS = ("end", "yes", "no", "maybe")
PICTURE = ImagePart(np.zeros((4, 4, 3), np.uint8))
SOUND = AudioPart(np.zeros(16_000, np.float32))


def cat(p: float) -> Labels:
    return Labels(space="imagenet-1k", labels=(Label(name="cat", probability=p), Label(name="dog", probability=1 - p)))


def heard(text: str) -> Transcript:
    return Transcript(segments=(Segment(start=0, end=1, text=text),))


@dataclass
class Script:
    """What one expert does: yield these, each after `delay` seconds, then raise `error` if there is one.

    `says_next` is what it would write after the tokens written so far. The gate predicts `quality` of it.
    """

    reads: set[str]
    kind: OutputKind
    says: Sequence[str | Output] = ()
    error: Exception | None = None
    delay: float = 0.0
    timeout_s: float = 5.0
    quality: float = 0.5
    tokenizer: str = ""
    group: str = ""
    says_next: Callable[[tuple[int, ...]], NextToken] | None = None
    asked: list[ChatRequest] = field(default_factory=list)
    closed: bool = False

    def spec(self, name: str) -> ExpertSpec:
        return ExpertSpec(
            name=name,
            backend="experts.echo:Echo",
            inputs=frozenset(self.reads),  # type: ignore[arg-type]  # literals in the tests
            output=self.kind,
            card=Card(description=name),
            timeout_s=self.timeout_s,
            tokenizer=self.tokenizer,
            group=self.group,
            cost=0.5,
        )


class World:
    """Router and experts at once; the gate picks `weights` in order, then considers everyone else.

    Texts are alike where they are the same, or as `vectors` say; with `vectors` None they cannot be compared.
    """

    def __init__(self, weights: dict[str, float], **scripts: Script) -> None:
        self.weights = weights
        self.scripts = scripts
        self.vectors: dict[str, list[float]] | None = {}
        self.decided: list[tuple[ChatRequest, Policy]] = []

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        self.decided.append((request, policy))
        able = [name for name, script in self.scripts.items() if script.reads & request.modalities]
        picked = {name: weight for name, weight in self.weights.items() if name in able} or {able[0]: 1.0}
        total = sum(picked.values())
        chosen = tuple(
            Choice(expert=n, weight=w / total, probability=0.5, quality=self.scripts[n].quality)
            for n, w in picked.items()
        )
        considered = tuple(Considered(expert=n, probability=0.5, quality=0.5) for n in able)
        decision = Decision(
            chosen=chosen,
            considered=considered,
            propensity=0.25,
            explored=False,
            strategy="softmax",
            seed=1,
            gate_version=3,
            modalities=tuple(sorted(request.modalities)),  # type: ignore[arg-type]
            policy=policy,
        )
        return Routed(decision, b"vectors")

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        if self.vectors is None:
            raise Unavailable("the gate is being restarted")
        for text in texts:
            self.vectors.setdefault(text, np.eye(16)[len(self.vectors)].tolist())
        return [self.vectors[text] for text in texts]

    async def next_tokens(self, expert: str, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        says_next = self.scripts[expert].says_next
        if says_next is None:
            raise ExpertFailed(f"{expert!r} does not write token by token")
        await asyncio.sleep(self.scripts[expert].delay)
        self.scripts[expert].asked.append(request)
        return says_next(written)

    async def roster(self) -> tuple[ExpertSpec, ...]:
        return tuple(script.spec(name) for name, script in self.scripts.items())

    async def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        script = self.scripts[expert]
        script.asked.append(request)
        try:
            for piece in script.says or [""]:
                await asyncio.sleep(script.delay)
                yield Delta(text=piece) if isinstance(piece, str) else Delta(output=piece)
            if script.error:
                raise script.error
            yield Delta(usage=Usage(prompt_tokens=3, completion_tokens=2), finish="stop")
        finally:
            script.closed = True


def ask(*parts: Part) -> ChatRequest:
    return ChatRequest("chatcmpl-1", (Message("user", parts),))


async def run(
    world: World, request: ChatRequest, combine: Combine = "weighted", policy: Policy | None = None, **settings: object
) -> tuple[list[Event], Reply]:
    blend = BlendSpec.model_validate({"combine": combine, **settings})
    events = [event async for event in Mixture(world, world).answer(request, policy or Policy(), blend)]
    assert isinstance(events[0], Decided)
    assert isinstance(events[-1], Finished)
    return events, events[-1].reply


def spoken(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Spoken)]


def next_token(vocabulary: str = "v", **probabilities: float) -> NextToken:
    """Of words, which write themselves and a blank; `end` ends the answer. A word's id is its place in WORDS."""
    tokens = [
        Token(WORDS.index(word), math.log(p), b"" if word == "end" else f"{word} ".encode(), word == "end")
        for word, p in probabilities.items()
    ]
    return NextToken(tuple(sorted(tokens, key=lambda token: -token.logprob)), vocabulary, prompt_tokens=3)
