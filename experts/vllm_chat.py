"""Runs a language model with vLLM, by way of Ray's own `ray.serve.llm`: batching, paging and many GPUs are theirs.

The engine lives in the replica and has its workers in the replica's placement group, which the gateway asks for. It
speaks OpenAI's chat API without HTTP. vLLM is not among this project's dependencies: it goes onto the GPU workers.
"""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig, BadInput, ExpertFailed, MultimoeError
from multimoe.expert import Delta, Expert, FindWeights
from multimoe.messages import ChatRequest
from multimoe.openai_chat import Chunk, Json, chat_body, deltas

ABOUT_THE_INPUT = (400, 413, 415, 422)
EACH_TOKEN = {"stream_batching_interval_ms": 0}  # Ray would keep words back to save messages between its processes

Result = TypeVar("Result")
Hand = Callable[[Chunk | MultimoeError | None], None]


class VLLM(Expert):
    """Weights: `model`, the folder of a hub model (`hf://OWNER/REPO@REVISION/`).

    Options: the fields of `ray.serve.llm.LLMConfig` that say how the model runs, above all `engine_kwargs`, vLLM's own
    engine arguments (dtype, max_model_len, gpu_memory_utilization, tensor_parallel_size, ...). Each of the engine's
    workers has `num_gpus` of the expert's `serve.ray_actor_options`, which may be a fraction; with 0 it runs on CPUs.
    """

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        serve = _ray_serve_llm(spec)
        self._request = serve.ChatCompletionRequest
        self._loop = asyncio.new_event_loop()  # the engine's own: it outlives whoever asks
        threading.Thread(target=_turn, args=(self._loop,), name=f"vllm-{spec.name}", daemon=True).start()
        try:
            self._server = serve.LLMServer.sync_init(serve.LLMConfig(**self._config()))
            self._wait(self._server.start())
        except Exception as error:  # whatever engine and drivers raise, it is the catalog or the machine
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise BadConfig(f"vLLM does not start expert {spec.name!r}: {error}") from error

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        body = await asyncio.to_thread(chat_body, request, self.spec)
        async with aclosing(self._chunks(body)) as chunks:
            async for delta in deltas(chunks, self.spec.name):
                yield delta

    async def check_health(self) -> None:
        """The engine's processes may end where this one lives on."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._server.check_health(), self._loop))

    def _config(self) -> Json:
        options: Json = {"experimental_configs": EACH_TOKEN, **self.spec.options}
        gpus = _gpus(self.spec)
        return {
            **options,
            "model_loading_config": {"model_id": self.spec.name, "model_source": str(self.weight("model"))},
            "placement_group_config": {"bundle_per_worker": {"GPU": gpus} if gpus else {"CPU": 1}},
        }

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _chunks(self, body: Json) -> AsyncGenerator[Chunk, None]:
        """From the engine's event loop into this one. Closing it aborts the request in the engine."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | MultimoeError | None] = asyncio.Queue()
        work = asyncio.run_coroutine_threadsafe(self._generate(body, lambda item: _hand(loop, queue, item)), self._loop)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, MultimoeError):
                    raise item
                yield item
        finally:
            work.cancel()

    async def _generate(self, body: Json, hand: Hand) -> None:
        try:
            request = self._request(model=self.spec.name, **body)
            async with aclosing(await self._server.chat(request)) as batches:
                async for batch in batches:
                    for piece in batch if isinstance(batch, list) else [batch]:
                        for chunk in _read(piece, self.spec.name):
                            hand(chunk)
        except MultimoeError as error:
            hand(error)
        except Exception as error:  # handed to the caller, whose failure it is; the engine lives on
            hand(ExpertFailed(f"vLLM failed in expert {self.spec.name!r}: {error}"))
        finally:
            hand(None)


def _read(piece: Any, name: str) -> list[Chunk]:
    """The chunks in server-sent events, or the engine's refusal. Raises BadInput, ExpertFailed."""
    if not isinstance(piece, str):
        raise _refusal(piece.error.model_dump(), name)
    sent = [line.removeprefix("data: ") for line in piece.splitlines() if line.startswith("data: ")]
    trees = [json.loads(data) for data in sent if data != "[DONE]"]
    for tree in trees:
        if "error" in tree:
            raise _refusal(tree["error"], name)
    return [Chunk.model_validate(tree) for tree in trees]


def _refusal(error: Json, name: str) -> MultimoeError:
    if error.get("code") in ABOUT_THE_INPUT:
        return BadInput(f"expert {name!r} does not take this: {error['message']}")
    return ExpertFailed(f"vLLM failed in expert {name!r}: {error['message']}")


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _hand(loop: asyncio.AbstractEventLoop, queue: "asyncio.Queue[Any]", item: Any) -> None:
    if not loop.is_closed():  # whoever asked may be gone for good
        loop.call_soon_threadsafe(queue.put_nowait, item)


def _gpus(spec: ExpertSpec) -> float:
    """What each worker has, as the replica's placement group says; without one, as the catalog does."""
    from ray.util.placement_group import get_current_placement_group

    group = get_current_placement_group()
    return float(group.bundle_specs[0].get("GPU", 0)) if group else spec.serve.ray_actor_options.num_gpus


def _ray_serve_llm(spec: ExpertSpec) -> Any:
    """`ray.serve.llm` with what is used of it; it cannot be imported without vLLM. Raises BadConfig."""
    import ray

    try:
        from ray.serve import llm
        from ray.serve.llm.openai_api_models import ChatCompletionRequest
    except ImportError as error:
        raise BadConfig(
            f"expert {spec.name!r} needs vLLM where its replicas run: `pip install vllm` there, or 'ray[llm]', which "
            f"names the vLLM that this Ray knows ({error})"
        ) from error
    if not ray.is_initialized():
        raise BadConfig(f"expert {spec.name!r}: vLLM has its workers on Ray; `multimoe serve` starts it")
    return _Used(llm.LLMConfig, llm.LLMServer, ChatCompletionRequest)


@dataclass(frozen=True)
class _Used:
    LLMConfig: Any
    LLMServer: Any
    ChatCompletionRequest: Any
