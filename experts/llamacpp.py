"""Generates text from a GGUF file with llama.cpp, inside the process: no second server to start, watch or stop.

Requests join and leave a running batch. It knows nothing of where its input came from: evidence from other experts
reaches it as words in the question.
"""

import asyncio
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import xllamacpp  # type: ignore[import-untyped]  # ships no types

from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig, BadInput, ExpertFailed
from multimoe.expert import Delta, FindWeights, NextToken, Token, TokenExpert, vocabulary_fingerprint
from multimoe.messages import ChatRequest
from multimoe.outputs import Usage

SYSTEM = "You are a helpful assistant. Answer briefly and correctly."
# Small models fall into loops. DRY taxes only repeated sequences: unlike a repeat penalty it spoils no arithmetic.
SAMPLING = {"dry_multiplier": 0.8, "dry_allowed_length": 4}

Turn = dict[str, str]  # role, content
Chunk = dict[str, Any]  # an OpenAI chat.completion.chunk, or {"error": {...}}

EVERY_TOKEN = 2**24  # more than any vocabulary has
PROMPTS_KEPT = 64  # of answers that are being written token by token


@dataclass(frozen=True)
class Vocabulary:
    """What each token writes, by its id, and the ids that end an answer."""

    pieces: tuple[bytes, ...]
    ends: frozenset[int]
    fingerprint: str


class Chat(TokenExpert):
    """Weights: `model`, a GGUF file with a chat template.

    Options: `system`, the prompt used where the conversation brings none; `context` (2048), tokens of one conversation,
    answer included; `parallel` (4), conversations at once, each of which reserves its context; `threads` (1);
    `max_tokens` (512), above which no answer goes; `sampling`, llama.cpp's own request fields.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        options = dict(spec.options)
        self._system = str(options.pop("system", SYSTEM))
        self._sampling = dict(options.pop("sampling", SAMPLING))
        self._limit = int(options.pop("max_tokens", 512))
        self._context = int(options.pop("context", 2048))
        parallel, threads = int(options.pop("parallel", 4)), int(options.pop("threads", 1))
        if options:
            raise BadConfig(f"expert {spec.name!r} has unknown options: {', '.join(options)}")
        self._threads = ThreadPoolExecutor(2 * parallel, "llamacpp")  # half of them may wait for a slot
        self._prompts: OrderedDict[tuple[str, str], list[int]] = OrderedDict()  # of answers being written by token
        self._vocabulary: Vocabulary | None = None
        self._spelling = threading.Lock()
        self._open(parallel, threads)

    def _open(self, parallel: int, threads: int) -> None:
        key = secrets.token_urlsafe()  # the engine opens a port on this machine; nobody else is to use it
        params = xllamacpp.CommonParams()
        params.model.path = str(self.weight("model"))
        params.n_ctx, params.n_parallel = self._context * parallel, parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_threads_http, params.ui, params.endpoint_slots = 2, False, False
        params.api_keys = [key]
        params.cache_ram_mib = 0  # by default it keeps up to 8 GiB of old conversations
        params.verbosity = -1
        try:
            self._engine = xllamacpp.Server(params)
        except RuntimeError as error:
            raise BadConfig(f"llama.cpp cannot load {params.model.path}: {error}") from error
        self._headers = {"Authorization": f"Bearer {key}"}
        self._letter = self._post("/tokenize", {"content": "a"})["tokens"][-1]

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
        body = await loop.run_in_executor(self._threads, self._body, request)
        closed = False

        def receive(chunk: Chunk) -> bool:
            """Runs in the engine's thread; True ends the generation."""
            if not closed:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            return closed

        generation = loop.run_in_executor(self._threads, self._engine.handle_chat_completions, body, receive)
        generation.add_done_callback(lambda _: chunks.put_nowait(None))
        try:
            async for delta in _deltas(chunks):
                yield delta
            await generation  # the engine's own failure, if any
        finally:
            closed = True

    async def next_tokens(self, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._next, request, written, top)

    def _next(self, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        prompt = self._prompt(request)
        if len(prompt) + len(written) >= self._context:
            raise ExpertFailed(f"expert {self.spec.name!r} has no room for more than {self._context} tokens")
        with self._spelling:
            vocabulary = self._vocabulary = self._vocabulary or self._read_vocabulary()
        listed = self._after([*prompt, *written], top)
        tokens = tuple(
            Token(entry["id"], entry["logprob"], vocabulary.pieces[entry["id"]], entry["id"] in vocabulary.ends)
            for entry in listed["top_logprobs"]
        )
        return NextToken(tokens, vocabulary.fingerprint, len(prompt))

    def _read_vocabulary(self) -> Vocabulary:
        """Every token's piece; the end marks are what cannot be drawn when the engine is told to ignore the end."""
        told = {"post_sampling_probs": True, "ignore_eos": True, "samplers": []}
        listed = self._after([self._letter], EVERY_TOKEN, bias=20, **told)  # with more, others would count as 0
        written = {entry["id"]: bytes(entry["bytes"]) for entry in listed["top_probs"]}
        pieces = tuple(written.get(id, b"") for id in range(max(written) + 1))
        return Vocabulary(pieces, frozenset(range(len(pieces))) - set(written), vocabulary_fingerprint(pieces))

    def _after(self, ids: list[int], top: int, bias: float = 100, **sampling: object) -> dict[str, Any]:
        """What may come after `ids`, the `top` likeliest. Of what was asked before only the new tokens are read."""
        came: list[Any] = []
        body = {"prompt": ids, "max_tokens": 1, "logprobs": top, "cache_prompt": True, "stream": False, **sampling}
        # of half a character nothing would come; what is drawn is of no interest, so let it be a letter
        body["logit_bias"] = [[self._letter, bias]]
        self._engine.handle_completions(body, came.append)
        if not came or "error" in came[0]:
            raise ExpertFailed(f"llama.cpp: {came[0]['error'].get('message') if came else 'no answer'}")
        after = came[0]["choices"][0]["logprobs"]
        if after is None:
            raise ExpertFailed("llama.cpp drew half a character and listed nothing; ask again")
        first: dict[str, Any] = after["content"][0]
        return first

    def _prompt(self, request: ChatRequest) -> list[int]:
        """The conversation's ids, kept while its answer is written."""
        key = request.id, request.text
        ids: list[int] | None = self._prompts.get(key)
        if ids is None:
            turns = self._fitted(self._turns(request), min(request.max_tokens, self._limit))
            prompt = self._post("/apply-template", {"messages": turns})["prompt"]
            ids = self._post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
            self._prompts[key] = ids
            while len(self._prompts) > PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        return ids

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        max_tokens = min(request.max_tokens, self._limit)
        body = {
            **self._sampling,
            "messages": self._fitted(self._turns(request), max_tokens),
            "max_tokens": max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stop),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return body if request.seed is None else body | {"seed": request.seed % 2**32}

    def _turns(self, request: ChatRequest) -> list[Turn]:
        turns = [{"role": m.role, "content": m.text} for m in request.messages if m.text]
        if not request.text:
            raise BadInput(f"expert {self.spec.name!r} reads text, and the last user message holds none")
        return turns if turns[0]["role"] == "system" else [{"role": "system", "content": self._system}, *turns]

    def _fitted(self, turns: list[Turn], max_tokens: int) -> list[Turn]:
        """The turns without the oldest, as many as must go so that the answer has room (a quarter is room enough)."""
        allowed = self._context - min(max_tokens, self._context // 4)
        while (tokens := self._count(turns, allowed)) > allowed:
            kept = _without_oldest(turns, 1 - allowed / tokens)
            if len(kept) == len(turns):
                raise BadInput(
                    f"the question has {tokens} tokens with its instructions; expert {self.spec.name!r} reads at most "
                    f"{allowed}: shorten it",
                    "messages",
                    "context_length_exceeded",
                )
            turns = kept
        return turns

    def _count(self, turns: list[Turn], allowed: int) -> int:
        """Tokens of the whole prompt; where it surely fits, only a bound: no token is shorter than a byte."""
        bound = sum(len(turn["content"].encode()) + 16 for turn in turns)  # 16 for a turn's marks in the template
        if bound <= allowed:
            return bound
        return int(self._post("/v1/chat/completions/input_tokens", {"messages": turns})["input_tokens"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{self._engine.listening_address}{path}"
        try:  # trust_env: a proxy must not come between the process and itself
            reply = httpx.post(url, json=body, headers=self._headers, timeout=30, trust_env=False)
            answer: dict[str, Any] = reply.raise_for_status().json()
            return answer
        except httpx.HTTPError as error:
            raise ExpertFailed(f"llama.cpp did not read the question: {error}") from error


def _without_oldest(turns: list[Turn], share: float) -> list[Turn]:
    """`turns` after about `share` of their text has gone, oldest first; system prompts and the last turn stay."""
    excess = share * sum(len(turn["content"]) for turn in turns)
    system, rest = [turn for turn in turns if turn["role"] == "system"], [t for t in turns if t["role"] != "system"]
    # an answer must not lead a conversation, so it goes with its question
    while len(rest) > 1 and (excess > 0 or rest[0]["role"] == "assistant"):
        excess -= len(rest.pop(0)["content"])
    return system + rest


async def _deltas(chunks: "asyncio.Queue[Chunk | None]") -> AsyncIterator[Delta]:
    usage, reason = Usage(), None
    while (chunk := await chunks.get()) is not None:
        if "error" in chunk:
            raise ExpertFailed(f"llama.cpp: {chunk['error'].get('message', chunk['error'])}")
        if chunk.get("usage"):
            counted = chunk["usage"]
            usage = Usage(prompt_tokens=counted["prompt_tokens"], completion_tokens=counted["completion_tokens"])
        for choice in chunk["choices"]:
            reason = choice["finish_reason"] or reason
            if choice["delta"].get("content"):
                yield Delta(text=choice["delta"]["content"])
    if reason is None:
        raise ExpertFailed("llama.cpp ended before the answer did")
    yield Delta(usage=usage, finish="length" if reason == "length" else "stop")
