"""NOT vLLM: a stand-in for the classes of vLLM 0.2x that Ray's `ray.serve.llm` uses, for machines without a GPU.

Everything from our expert through Ray's LLMServer and VLLMEngine down to these is real; the engine and its endpoint
here only say a question back, a word a token. Names of arguments and fields are vLLM's; unknown ones are refused.
"""

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncGenerator
from types import ModuleType, SimpleNamespace
from typing import Any

from pydantic import BaseModel, ConfigDict

RUNNING: list[str] = []  # requests that the engine works on
SEEN: list[Any] = []  # requests as they came
STARTED: list["AsyncEngineArgs"] = []
DEAD: list[bool] = []


@dataclasses.dataclass
class AsyncEngineArgs:
    model: str = ""
    served_model_name: list[str] | None = None
    distributed_executor_backend: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_num_seqs: int | None = None
    enforce_eager: bool = False
    trust_remote_code: bool = False
    enable_log_requests: bool = False
    disable_log_stats: bool = False

    def create_engine_config(self, usage_context: Any) -> SimpleNamespace:
        if self.dtype not in ("auto", "bfloat16", "float16", "float32"):
            raise ValueError(f"Unknown dtype: {self.dtype}")
        return SimpleNamespace(
            model_config=SimpleNamespace(model=self.model, hf_config=SimpleNamespace(architectures=["Fake"])),
            cache_config=SimpleNamespace(block_size=16),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=2048),
            parallel_config=SimpleNamespace(placement_group=None),
        )


@dataclasses.dataclass
class FrontendArgs:
    chat_template: str | None = None


class VLLMClientError(Exception):
    pass


class ErrorInfo(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(BaseModel):
    error: ErrorInfo


class ChatCompletionRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    request_id: str = "unset"


class Unused(BaseModel):
    pass


class AsyncLLM:
    def __init__(
        self, vllm_config: Any, executor_class: Any, log_requests: bool, log_stats: bool, stat_loggers: Any
    ) -> None:
        self.loop = asyncio.get_running_loop()  # vLLM's own starts its output handler there

    async def check_health(self) -> None:
        if DEAD:
            raise RuntimeError("EngineCore encountered an issue")

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)


class OpenAIServingChat:
    """Says the last message's text back; "too long", "break" and "die" in it do what a real engine may do."""

    def create_error_response(self, error: Exception) -> ErrorResponse:
        return ErrorResponse(error=ErrorInfo(message=str(error), type="BadRequestError", code=400))

    async def create_chat_completion(self, request: Any, raw_request: Any = None) -> AsyncGenerator[str, None]:
        SEEN.append(request)
        content = request.messages[-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words = " ".join(part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in parts).split()
        if words[:2] == ["too", "long"]:
            raise ValueError("This model's maximum context length is 8 tokens")
        if words[:1] == ["die"]:
            raise RuntimeError("EngineCore died")
        return self.stream(request, words)

    async def stream(self, request: Any, words: list[str]) -> AsyncGenerator[str, None]:
        RUNNING.append(request.request_id)
        try:
            yield frame({"role": "assistant", "content": ""})
            for at, word in enumerate(words[: request.max_tokens]):
                await asyncio.sleep(0.001 if at < 50 else 0.05)
                if word == "break":
                    error = {"message": "CUDA error: out of memory", "type": "InternalServerError", "code": 500}
                    yield f"data: {json.dumps({'error': error})}\n\n"
                    yield "data: [DONE]\n\n"
                    return
                yield frame({"content": " " * (at > 0) + word})
            cut = len(words) > (request.max_tokens or 10**9)
            yield frame({}, "length" if cut else "stop")
            usage = {"prompt_tokens": len(words), "completion_tokens": min(len(words), request.max_tokens)}
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            RUNNING.remove(request.request_id)


def frame(delta: dict[str, str], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


async def init_app_state(engine_client: Any, state: Any, args: Any, supported_tasks: Any = None) -> None:
    STARTED.append(args)
    state.openai_serving_models = SimpleNamespace(lora_requests={}, load_lora_adapter=None)
    state.openai_serving_chat = OpenAIServingChat()


UNUSED = {
    "vllm.entrypoints.openai.chat_completion.protocol": ("ChatCompletionResponse", "ChatCompletionStreamResponse"),
    "vllm.outputs": ("RequestOutput",),
    "vllm.sampling_params": ("RequestOutputKind",),
    "vllm.entrypoints.openai.completion.protocol": (
        *("CompletionRequest", "CompletionResponse", "CompletionStreamResponse"),
    ),
    "vllm.entrypoints.pooling.embed.protocol": (
        *("EmbeddingChatRequest", "EmbeddingCompletionRequest", "EmbeddingResponse"),
    ),
    "vllm.entrypoints.pooling.scoring.protocol": ("ScoreResponse", "ScoreTextRequest"),
    "vllm.entrypoints.serve.tokenize.protocol": (
        *("DetokenizeRequest", "DetokenizeResponse", "TokenizeChatRequest"),
        *("TokenizeCompletionRequest", "TokenizeResponse"),
    ),
    "vllm.entrypoints.speech_to_text.transcription.protocol": (
        *("TranscriptionRequest", "TranscriptionResponse", "TranscriptionStreamResponse"),
    ),
}
USED: dict[str, dict[str, Any]] = {
    "vllm.engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
    "vllm.entrypoints.launchers.cli_args": {"FrontendArgs": FrontendArgs},
    "vllm.entrypoints.serve.engine.protocol": {"ErrorInfo": ErrorInfo, "ErrorResponse": ErrorResponse},
    "vllm.entrypoints.openai.chat_completion.protocol": {"ChatCompletionRequest": ChatCompletionRequest},
    "vllm.entrypoints.openai.api_server": {"init_app_state": init_app_state},
    "vllm.exceptions": {"VLLMClientError": VLLMClientError},
    "vllm.usage.usage_lib": {"UsageContext": SimpleNamespace(OPENAI_API_SERVER="server")},
    "vllm.platforms": {"current_platform": SimpleNamespace(get_device_capability=lambda: None)},
    "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    "vllm.v1.executor.abstract": {"Executor": SimpleNamespace(get_class=lambda config: None)},
    "vllm.v1.metrics.ray_wrappers": {"RayPrometheusStatLogger": None},
}


def _module(path: str) -> ModuleType:
    """Registered, with those above it; `vllm` itself is this file."""
    if path not in sys.modules:
        parent, _, name = path.rpartition(".")
        sys.modules[path] = ModuleType(path)
        setattr(_module(parent), name, sys.modules[path])
    return sys.modules[path]


for _path in {**UNUSED, **USED}:
    _found = _module(_path)
    vars(_found).update({name: type(name, (Unused,), {}) for name in UNUSED.get(_path, ())} | USED.get(_path, {}))
