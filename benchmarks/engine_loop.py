"""One expert's engine by itself, without Ray and HTTP: what `throughput.py` compares the product with.

Reads from its standard input a line with the catalog entry and the questions, then a line for each loop it is to run;
answers each with a line. An engine that works in batches is handed batches back to back; llama.cpp's slots are kept
busy from as many threads; any other expert is asked through its contract, as many times at once.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from experts.llamacpp import Chat
from gateway.reading.fetch import Fetcher
from gateway.reading.schemas import ChatBody
from gateway.reading.wire import chat_request, read_json
from multimoe.backends import load_expert
from multimoe.config import ExpertSpec, Limits
from multimoe.expert import BatchExpert, Expert
from multimoe.media import decode_audio, decode_image
from multimoe.messages import AudioPart, ChatRequest, ImagePart
from multimoe.weights import Weights

Questions = Iterator[ChatRequest]
Work = Callable[[Questions, int, float], list[int]]  # by so many at once until then; the tokens (or 1) of each answer


class Plain:
    """Decodes where it is called: a bare engine has no processes for that."""

    async def image(self, data: bytes, param: str) -> ImagePart:
        return decode_image(data, Limits(), param)

    async def audio(self, data: bytes, param: str) -> AudioPart:
        return decode_audio(data, Limits(), param)


class Here(threading.local):
    """An event loop for each thread that decodes, kept: opening one costs more than decoding words."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()


HERE = Here()


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints is no reply
    told = json.loads(sys.stdin.readline())
    spec = ExpertSpec.model_validate(told["spec"])
    expert = load_expert(spec, Weights(Path(told["weights"])).find)
    bodies = [body.encode() for body in told["bodies"]]
    questions = [decoded(body) for body in bodies]
    work = work_of(expert)
    work(iter(questions), 1, time.perf_counter())  # the first loads kernels
    print(json.dumps({"sizes": sizes(spec, expert)}), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        source = map(decoded, cycle(bodies)) if asked["decode"] else cycle(questions)
        print(json.dumps(measured(work, source, asked["size"], asked["seconds"])), file=replies, flush=True)
    os._exit(0)  # llama.cpp's threads need no farewell


def decoded(body: bytes) -> ChatRequest:
    """As the gateway does it: JSON, base64, JPEG or WAV."""
    limits = Limits()
    sent = ChatBody.model_validate(read_json(body, limits.json_depth))
    return HERE.loop.run_until_complete(chat_request(sent, "benchmark", limits, Plain(), Fetcher()))


def sizes(spec: ExpertSpec, expert: Expert) -> list[int]:
    """The batch sizes, or numbers at once, among which the best is sought: powers of two to what the catalog allows."""
    most = spec.batch.size if isinstance(expert, BatchExpert) else spec.serve.max_ongoing_requests
    return [size for size in (1, 2, 4, 8, 16) if size < most] + [min(most, 32)]


def measured(work: Work, source: Questions, size: int, seconds: float) -> dict[str, float]:
    began, cpu = time.perf_counter(), time.process_time()
    units = work(source, size, began + seconds)
    taken = time.perf_counter() - began
    return {"done": len(units), "units": sum(units), "seconds": taken, "cpu": time.process_time() - cpu}


def work_of(expert: Expert) -> Work:
    if isinstance(expert, BatchExpert):
        return partial(_batches, expert)
    if isinstance(expert, Chat):
        return partial(_slots, expert)
    return lambda source, size, until: asyncio.run(_at_once(expert, source, size, until))


def _batches(expert: BatchExpert, source: Questions, size: int, until: float) -> list[int]:
    """Back to back, one at least."""
    units: list[int] = []
    while not units or time.perf_counter() < until:
        units += [1 for _ in expert.answer_batch(list(islice(source, size)))]
    return units


def _slots(expert: Chat, source: Questions, size: int, until: float) -> list[int]:
    """llama.cpp kept busy from `size` threads; it is not asked to hand over its words one by one to anybody."""

    def write(question: ChatRequest) -> int:
        tokens = 0

        def receive(chunk: dict[str, Any]) -> bool:
            nonlocal tokens
            tokens = chunk["usage"]["completion_tokens"] if chunk.get("usage") else tokens
            return False

        expert._engine.handle_chat_completions(expert._body(question), receive)
        return tokens

    def worker(first: ChatRequest) -> list[int]:
        units = [write(first)]
        while time.perf_counter() < until:
            units.append(write(next(source)))
        return units

    with ThreadPoolExecutor(size) as threads:
        return [tokens for units in threads.map(worker, islice(source, size)) for tokens in units]


async def _at_once(expert: Expert, source: Questions, size: int, until: float) -> list[int]:
    async def worker() -> list[int]:
        units: list[int] = []
        while not units or time.perf_counter() < until:
            question = await asyncio.to_thread(next, source)  # decoding runs an event loop of its own
            usages = [delta.usage async for delta in expert.answer(question)]
            units.append(sum(usage.completion_tokens for usage in usages if usage) or 1)
        return units

    return [tokens for units in await asyncio.gather(*(worker() for _ in range(size))) for tokens in units]


if __name__ == "__main__":
    main()
