"""Generates text with any causal language model of a hub, dense or sparse (Mixtral, OLMoE), in transformers.

Requests join and leave a running batch. It knows nothing of where its input came from: evidence from other experts
reaches it as words in the question.
"""

import asyncio
import re
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import jinja2
import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.convert_slow_tokenizer import bytes_to_unicode

from multimoe import hub, tokens
from multimoe.config import ExpertSpec
from multimoe.continuous_batching import Draw, Engine
from multimoe.errors import BadConfig, ExpertFailed
from multimoe.expert import Delta, FindWeights, NextToken, Token, TokenExpert, vocabulary_fingerprint
from multimoe.messages import ChatRequest, Message
from multimoe.outputs import Usage
from multimoe.turns import conversation, fitted


class ChatOptions(hub.HubOptions):
    """`system` is the prompt where the conversation brings none; `context`, tokens of one conversation, answer
    included; `max_tokens`, above which no answer goes; `prefill`, tokens read in one step.
    """

    system: str = ""
    context: int = Field(default=4096, ge=64)
    max_tokens: int = Field(default=1024, ge=1)
    prefill: int = Field(default=1024, ge=16)


class Chat(TokenExpert):
    """Weights: `model`, a folder with safetensors, a fast tokenizer and a chat template.

    Options: those of `ChatOptions`. `batch.size` conversations are written at once, and memory for the `context` of
    each is taken at the start.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self._options = self.options(ChatOptions)
        folder = self.weight("model")
        self._tokenizer = hub.load_beside(AutoTokenizer, folder)
        self._template_takes_system = self._try_template()
        self._network = hub.load(AutoModelForCausalLM, folder, spec, self._options)
        longest = getattr(self._network.config, "max_position_embeddings", self._options.context)
        self._context = min(self._options.context, longest)
        self._ends = hub.end_tokens(self._network, self._tokenizer)
        self._pieces = _pieces(self._tokenizer)
        self._vocabulary = vocabulary_fingerprint(self._pieces)
        self._engine = Engine(
            spec.name, self._network, spec.batch.size, self._context, self._options.prefill, self._ends
        )
        self._read: OrderedDict[str, Reading] = OrderedDict()
        self._reading = threading.Lock()

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        prompt, room = await asyncio.to_thread(self._prompt, request)
        draw = Draw(request.temperature, request.top_p, request.seed)
        spelling = tokens.Spelling(self._tokenizer.backend_tokenizer, request.stop)
        written = 0
        ended = False
        async with aclosing(self._engine.write(prompt, room, draw)) as pieces:
            async for ids in pieces:
                written, ended = written + len(ids), ids[-1] in self._ends
                if text := spelling.write(ids):
                    yield Delta(text=text)
                if spelling.stopped:
                    break
        if text := spelling.rest():
            yield Delta(text=text)
        usage = Usage(prompt_tokens=len(prompt), completion_tokens=written)
        yield Delta(usage=usage, finish="stop" if ended or spelling.stopped else "length")

    async def next_tokens(self, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        return await asyncio.to_thread(self._next, request, written, top)

    def _prompt(self, request: ChatRequest) -> tuple[list[int], int]:
        """The ids of the conversation, as much of it as fits, and how many tokens the answer may have (a quarter of the
        context is room enough to keep old turns).
        """
        wanted = min(request.max_tokens, self._options.max_tokens)
        turns = conversation(request, frozenset(("text",)), self._options.system)
        turns = fitted(turns, self._context - min(wanted, self._context // 4), lambda some: len(self._ids(some)))
        ids = self._ids(turns)
        return ids, min(wanted, self._context - len(ids))

    def _ids(self, turns: Sequence[Message]) -> list[int]:
        plain = [{"role": turn.role, "content": turn.text} for turn in turns]
        if plain[0]["role"] == "system" and not self._template_takes_system:
            system, question, *rest = plain
            plain = [{"role": "user", "content": f"{system['content']}\n\n{question['content']}"}, *rest]
        ids: list[int] = self._tokenizer.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
        return ids

    def _try_template(self) -> bool:
        """Whether the chat template takes a system prompt. Raises BadConfig where it does not take a question."""
        question = {"role": "user", "content": "?"}
        try:
            self._tokenizer.apply_chat_template([question], add_generation_prompt=True)
        except (ValueError, jinja2.TemplateError) as error:
            raise BadConfig(f"expert {self.spec.name!r}: its tokenizer has no usable chat template: {error}") from error
        try:
            self._tokenizer.apply_chat_template([{"role": "system", "content": "."}, question])
        except jinja2.TemplateError:
            return False
        return True

    @torch.inference_mode()
    def _next(self, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        prompt, _ = self._prompt(request)
        if len(prompt) + len(written) >= self._context:
            raise ExpertFailed(f"expert {self.spec.name!r} has no room for more than {self._context} tokens")
        with self._reading, hub.running(self.spec.name):
            logits = self._logits_after([*prompt, *written], request.id)  # (vocabulary,)
        best = logits.float().log_softmax(dim=0)[: len(self._pieces)].topk(min(top, len(self._pieces)))
        likeliest = tuple(
            Token(id, logprob, self._pieces[id], id in self._ends)
            for logprob, id in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        return NextToken(likeliest, self._vocabulary, len(prompt))

    def _logits_after(self, ids: list[int], answer: str) -> Tensor:
        """Reads only what it has not read for this answer; remembers as many answers as a batch holds."""
        read = self._read.pop(answer, None)
        if read is None or ids[: len(read.ids)] != read.ids:
            read = Reading([], DynamicCache(config=self._network.config), torch.empty(0))
        if fresh := ids[len(read.ids) :]:
            batch = torch.tensor([fresh], device=self._network.device)  # (1, fresh)
            found = self._network(batch, past_key_values=read.cache, use_cache=True, logits_to_keep=1)
            read = Reading(ids, found.past_key_values, found.logits[0, -1])
        self._read[answer] = read
        while len(self._read) > self.spec.batch.size:
            self._read.popitem(last=False)
        return read.logits


@dataclass(frozen=True)
class Reading:
    """The ids read for one answer, their keys and values, and the logits (vocabulary,) of what comes next."""

    ids: list[int]
    cache: DynamicCache
    logits: Tensor


def _pieces(tokenizer: Any) -> list[bytes]:
    """What each token writes, in the order of their ids; marks write nothing."""
    added = tokenizer.added_tokens_decoder
    spell = _from_byte_level if "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder) else _from_sentencepiece
    pieces = []
    for id, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if id in added:
            pieces.append(b"" if added[id].special else added[id].content.encode())
        else:
            pieces.append(spell(token or ""))
    return pieces


_BYTES = {character: bytes([byte]) for byte, character in bytes_to_unicode().items()}


def _from_byte_level(token: str) -> bytes:
    return b"".join(_BYTES.get(character) or character.encode() for character in token)


def _from_sentencepiece(token: str) -> bytes:
    byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
