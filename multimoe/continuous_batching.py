"""Text from a language model for many callers at once, who join and leave a running batch: transformers' own
continuous batching, in a thread of its own, for callers that await.

It knows token ids, and neither text nor templates. Of transformers it uses some names that are not documented: the
version is pinned, and the tests compare with `generate`.
"""

import asyncio
import contextlib
import logging
import secrets
import threading
import weakref
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import cb_logits_processors as processors
from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from multimoe import hub, tokens
from multimoe.errors import ExpertFailed

PAGE = 256  # tokens of key-value cache that are given out at once
STOP_SECONDS = 10.0  # for the engine to end its last step

Stream = tuple[asyncio.AbstractEventLoop, "asyncio.Queue[Any]"]  # where the outputs of one request are awaited


@dataclass(frozen=True)
class Draw:
    """How one caller's tokens are drawn: with `temperature` 0 the likeliest, with no `seed` by a new one each time."""

    temperature: float
    top_p: float
    seed: int | None

    def arguments(self) -> dict[str, float | int]:
        """As the processors of `_sampling` take them."""
        if self.temperature == 0:
            return {}
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return {"temperature": float(self.temperature), "top_p": float(self.top_p), "seed": 2 * seed + 1}  # never 0


class Engine:
    """Writes for `places` callers at once, each with `context` tokens, prompt included.

    Of a prompt `prefill` tokens at most are read in one step. The memory for all of it is taken at the start. Begun
    anew after it has died.
    """

    def __init__(self, name: str, network: Any, places: int, context: int, prefill: int, ends: frozenset[int]) -> None:
        self._name, self._network = name, network
        self._generation = GenerationConfig(do_sample=False, max_new_tokens=context, eos_token_id=sorted(ends) or -1)
        self._batching = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=places * -(-context // PAGE),
            max_batch_tokens=max(prefill, places),
            max_requests_per_batch=places,
            auto_switch_to_flash=False,  # it would look for kernels on the hub
        )
        # it estimates free memory with psutil, where that is installed; the sizes above leave nothing to estimate
        logging.getLogger("ContinuousBatchingLogger").addFilter(lambda record: "psutil" not in record.getMessage())
        self._starting = threading.Lock()
        self._manager: Any = None
        self._streams: dict[str, Stream] = {}
        self._start()

    async def write(self, prompt: list[int], room: int, draw: Draw) -> AsyncGenerator[list[int], None]:
        """The new token ids of every step, the end mark included. Closing it ends the generation."""
        if not self._manager.is_running():
            await asyncio.to_thread(self._start)
        manager, streams, name = self._manager, self._streams, secrets.token_hex(8)
        awaited: asyncio.Queue[Any] = asyncio.Queue()
        streams[name] = (asyncio.get_running_loop(), awaited)
        seen, finished = 0, False
        try:
            taken = manager.add_request(prompt, name, room, streaming=True, **draw.arguments())
            while taken and not finished:
                if (output := await awaited.get()) is None:
                    break
                if output.error is not None:
                    raise hub.failure(self._name, output.error)
                finished = output.is_finished()
                if fresh := output.generated_tokens[seen:]:
                    yield fresh
                seen += len(fresh)
            if not finished:
                raise ExpertFailed(f"expert {self._name!r}: its engine died; it is begun anew with the next request")
        finally:
            del streams[name]
            if not finished:
                manager.cancel_request(name)

    def _start(self) -> None:
        with self._starting:
            if self._manager is not None and self._manager.is_running():
                return  # another request was faster
            if self._manager is not None:
                self._manager.stop()  # gives back the memory of the one that died
            with hub.running(self._name):
                manager = self._network.init_continuous_batching(self._generation, self._batching)
                manager.logit_processor = _sampling()
                manager.warmup()  # takes the memory
            self._manager, self._streams = manager, {}
            starter = threading.Thread(target=manager.start, daemon=True)  # what a daemon starts is one, too
            starter.start()
            starter.join()
            threading.Thread(target=_hand_out, args=(manager, self._streams), daemon=True).start()
            weakref.finalize(self, _stop, manager)


def _hand_out(manager: Any, streams: dict[str, Stream]) -> None:
    """Puts every output where it is awaited; None everywhere once the engine has ended."""
    while manager.is_running():
        _give(streams, manager.get_result(timeout=1.0))
    while (late := manager.get_result(timeout=0.0)) is not None:
        _give(streams, late)
    for name in list(streams):
        _give(streams, None, name)


def _give(streams: dict[str, Stream], output: Any, name: str = "") -> None:
    stream = streams.get(name or getattr(output, "request_id", ""))
    if stream is not None:  # else its reader has gone
        loop, awaited = stream
        with contextlib.suppress(RuntimeError):  # so has its event loop
            loop.call_soon_threadsafe(awaited.put_nowait, output)


def _stop(manager: Any) -> None:
    if manager.is_running():
        manager.stop(timeout=STOP_SECONDS, hard_stop=True)


class _TopP(processors.ContinuousBatchingTopPLogitsWarper):
    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        if scores.device.type == "cpu" and (tensor_arg[: len(scores)].view(torch.float32) >= 1).all():
            return scores  # sorting a vocabulary takes a CPU longer than a small model's step
        return super().__call__(scores, tensor_arg)


class _Draw(processors.ContinuousBatchingLogitsProcessor):
    """Makes the engine's argmax a draw, by each request's own seed, whoever else is in the batch; `seed` 0 is none."""

    supported_kwargs = {"seed": int}
    ignored_kwargs = ()

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        states = [request.state for request in requests_with_new_token]
        seeds = [state.logit_processor_kwargs.get("seed", 0) for state in states]
        keys = [seed and tokens.key(seed, state.position_offset) for seed, state in zip(seeds, states, strict=True)]
        return torch.tensor(keys, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        keys = tensor_arg[: len(scores)]
        if scores.device.type == "cpu" and not keys.any():
            return scores
        return scores + tokens.gumbel(keys, scores.shape[1])


def _sampling() -> processors.ContinuousBatchingLogitsProcessorList:
    each = [
        processors.ContinuousBatchingTemperatureLogitsWarper(TemperatureLogitsWarper(1.0)),
        _TopP(TopPLogitsWarper(1.0)),
        _Draw(),
    ]
    listed = processors.ContinuousBatchingLogitsProcessorList(LogitsProcessorList(each))
    listed.tensors_required = len(each)
    return listed
