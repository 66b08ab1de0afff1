"""What is each way of combining texts worth, and how long does it take?

    python benchmarks/blend_texts.py [--tokens 24] [--timed 6]

The chat expert of the catalog that ships plays several parts, which share its weights and differ in their system
prompt. They answer the questions of `blend_texts.tsv`, greedily; an answer is right where one of the accepted words
stands in it as a word. Each way of combining goes through the product's own `Mixture`; only the gate is replaced: its
weights are even, or those to which it would come by ratings, the softmax at the gate's own temperature of each part's
share right, learned on one half of the questions and used on the other, both ways round. That share is also the quality
which "auto" goes by; with "all asked" none is taken to be good enough alone. "disagree" is the share of questions where
some parts are right and some wrong: only there can one way of choosing do better than another.

An expert's answer to the same words is taken from memory, so that the ways are compared on the same candidates. For the
times nothing is: they are medians over the first `--timed` questions, with the parts side by side in one process.
"""

import argparse
import asyncio
import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from experts.llamacpp import Chat
from multimoe.config import BlendSpec, Catalog, ExpertSpec, load
from multimoe.decision import Choice, Considered, Decision, Policy
from multimoe.encoder import TextEncoder
from multimoe.expert import Delta, NextToken
from multimoe.messages import ChatRequest, Message, TextPart
from multimoe.mixture import Mixture
from multimoe.outputs import Text
from multimoe.reply import Finished, Reply, Routed
from multimoe.weights import Weights

PARTS = {
    "plain": "You are a helpful assistant. Answer briefly and correctly.",
    "terse": "Answer with one word only, the correct one.",
    "teacher": "You are a teacher of young children. Say the right answer in one full sentence.",
}
WAYS = {
    "best": BlendSpec(combine="best"),
    "vote": BlendSpec(combine="vote"),
    "fuse": BlendSpec(combine="fuse"),
    "auto": BlendSpec(combine="auto"),
    "auto, all asked": BlendSpec(combine="auto", enough_quality=1.0),
    "tokens": BlendSpec(combine="tokens"),
}


@dataclass(frozen=True)
class Question:
    text: str
    accepted: re.Pattern[str]

    def right(self, answer: str) -> bool:
        return self.accepted.search(answer) is not None


class Parts:
    """The experts, and a gate that weighs and predicts as it is told."""

    def __init__(self, catalog: Catalog) -> None:
        weights = Weights(catalog.weights).find
        chat = catalog.expert("chat")
        self.specs = {name: _part(chat, name, system) for name, system in PARTS.items()}
        self.chats = {name: Chat(spec, weights) for name, spec in self.specs.items()}
        self.encoder = TextEncoder(catalog.gate.encoders["text"], weights)
        self.quality = dict.fromkeys(PARTS, 0.5)
        self.weights = dict.fromkeys(PARTS, 1 / len(PARTS))
        self.remembers = True
        self._said: dict[tuple[str, str], list[Delta]] = {}

    async def roster(self) -> tuple[ExpertSpec, ...]:
        return tuple(self.specs.values())

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        chosen = tuple(
            Choice(expert=name, weight=self.weights[name], probability=1.0, quality=self.quality[name])
            for name in sorted(self.specs, key=lambda name: -self.weights[name])
        )
        considered = tuple(Considered(expert=c.expert, probability=1.0, quality=c.quality) for c in chosen)
        settled = {"propensity": 1.0, "explored": False, "strategy": "softmax", "seed": 0, "gate_version": 0}
        decision = Decision.model_validate(
            {"chosen": chosen, "considered": considered, "modalities": ("text",), **settled}
        )
        return Routed(decision, b"")

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        vectors = await asyncio.to_thread(self.encoder.embed_texts, texts)
        return [[float(x) for x in vector] for vector in vectors]

    async def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        key = (expert, request.text)
        if self.remembers and key in self._said:
            for delta in self._said[key]:
                yield delta
            return
        said = []
        async for delta in self.chats[expert].answer(request):
            said.append(delta)
            yield delta
        self._said[key] = said

    async def next_tokens(self, expert: str, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        return await self.chats[expert].next_tokens(request, written, top)


@dataclass(frozen=True)
class Way:
    """One way of combining, by the learned weights or by even ones."""

    kind: str
    learned: bool

    @property
    def name(self) -> str:
        return f"{self.kind}; {'learned' if self.learned else 'even'} weights"


async def measure(parts: Parts, questions: Sequence[Question], tokens: int, timed: int, console: Console) -> None:
    right: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        for name in PARTS:
            right[name].append(question.right(await _alone(parts, name, _request(question, tokens))))
    worth = np.array([right[name] for name in PARTS], dtype=float)  # (parts, questions)
    ways = [Way(kind, learned) for kind in WAYS for learned in (True, False)]
    replies: dict[str, list[Reply]] = defaultdict(list)
    for at, question in enumerate(questions):
        other_half = worth[:, [i for i in range(len(questions)) if i % 2 != at % 2]].mean(axis=1)  # (parts,)
        for way in ways:
            _weigh(parts, other_half, way.learned)
            reply = await _answer(parts, WAYS[way.kind], _request(question, tokens))
            replies[way.name].append(reply)
            right[way.name].append(question.right(_words(reply)))
    times = await _times(parts, questions[:timed], tokens, worth.mean(axis=1))
    console.print(_table(right, replies, times))
    console.print(f"disagree: {np.mean(worth.min(axis=0) < worth.max(axis=0)):.0%} of {len(questions)} questions")
    console.print(f"right, could one choose the right part each time: {worth.max(axis=0).mean():.0%}")
    console.print(_by_agreement(replies["vote; learned weights"], right["vote; learned weights"]))


async def _times(
    parts: Parts, questions: Sequence[Question], tokens: int, quality: "np.ndarray[tuple[int], np.dtype[np.float64]]"
) -> dict[str, tuple[float, float]]:
    """Median seconds to the first and to the last word of each way, with nothing from memory."""
    parts.remembers = False
    _weigh(parts, quality, learned=True)
    took = {}
    for kind, blend in WAYS.items():
        replies = [await _answer(parts, blend, _request(question, tokens)) for question in questions]
        first, whole = ([reply.timing_ms[key] / 1000 for reply in replies] for key in ("first_token", "answer"))
        took[kind] = (statistics.median(first), statistics.median(whole))
    return took


def _weigh(parts: Parts, quality: "np.ndarray[tuple[int], np.dtype[np.float64]]", learned: bool) -> None:
    parts.quality = dict(zip(PARTS, (float(q) for q in quality), strict=True))
    temperature = 0.12  # of the gate that ships
    shares = np.exp((quality - quality.max()) / temperature) if learned else np.ones(len(quality))
    parts.weights = dict(zip(PARTS, (float(s) for s in shares / shares.sum()), strict=True))


async def _alone(parts: Parts, name: str, request: ChatRequest) -> str:
    return "".join([delta.text async for delta in parts.ask(name, request)])


async def _answer(parts: Parts, blend: BlendSpec, request: ChatRequest) -> Reply:
    events = [event async for event in Mixture(parts, parts).answer(request, Policy(), blend)]
    last = events[-1]
    if not isinstance(last, Finished):
        raise RuntimeError("the mixture ended without Finished")
    return last.reply


def _words(reply: Reply) -> str:
    return reply.output.text if isinstance(reply.output, Text) else reply.text


def _request(question: Question, tokens: int) -> ChatRequest:
    return ChatRequest(question.text, (Message("user", (TextPart(question.text),)),), max_tokens=tokens)


def _part(chat: ExpertSpec, name: str, system: str) -> ExpertSpec:
    options = {"system": system, "context": 1024, "parallel": 1, "sampling": {}}
    return chat.model_copy(update={"name": name, "options": options, "tokenizer": "smollm2"})


def _table(
    right: dict[str, list[bool]], replies: dict[str, list[Reply]], times: dict[str, tuple[float, float]]
) -> Table:
    table = Table("way", "right", "really made as", "first word", "whole answer")
    for name, outcomes in right.items():
        made = [reply.combine for reply in replies.get(name, [])]
        made_as = ", ".join(f"{way} {made.count(way)}" for way in dict.fromkeys(made))
        first, whole = times.get(name.split(";")[0], (0.0, 0.0))
        seconds = (f"{first:.2f} s", f"{whole:.2f} s") if "learned" in name else ("", "")
        table.add_row(name, f"{sum(outcomes)} of {len(outcomes)}, {np.mean(outcomes):.0%}", made_as, *seconds)
    return table


def _by_agreement(replies: Sequence[Reply], right: Sequence[bool]) -> Table:
    """How often the voted text is right, by how much the texts agree: what a threshold on agreement can go by."""
    table = Table("agreement", "questions", "the voted one right")
    agreement = np.array([reply.agreement or 0.0 for reply in replies])
    edges = [-1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01]
    for low, high in itertools.pairwise(edges):
        here = (agreement >= low) & (agreement < high)
        if here.any():
            share = f"{np.mean(np.array(right)[here]):.0%}"
            table.add_row(f"{max(low, 0):.1f} to {min(high, 1):.1f}", str(int(here.sum())), share)
    return table


def read(path: Path) -> list[Question]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [Question(text, re.compile(rf"(?<!\w)({accepted})(?!\w)", re.IGNORECASE)) for text, accepted in rows]


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", type=Path, default=here.parent / "deploy" / "local.yaml")
    parser.add_argument("--questions", type=Path, default=here / "blend_texts.tsv")
    parser.add_argument("--tokens", type=int, default=24, help="that an answer may have")
    parser.add_argument("--timed", type=int, default=6, help="questions that the times are taken on")
    args = parser.parse_args()
    console = Console()
    asyncio.run(measure(Parts(load(args.catalog)), read(args.questions), args.tokens, args.timed, console))


if __name__ == "__main__":
    main()
