"""Models in the folders of a hub, loaded by Hugging Face's transformers: their settings, their device, and what to say
when there is no room for them.

Nothing is fetched here, nothing is unpickled, and no code that a repository brings is run: a folder of safetensors
comes in, a model in eval mode comes out. What the model is for, its expert knows.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from pydantic import Field
from safetensors import SafetensorError

from multimoe.config import ExpertSpec, Settings
from multimoe.errors import BadConfig, ExpertFailed, WeightsError

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)


class HubOptions(Settings):
    """`dtype` "auto" is that of the file. `attention` None is what the model itself prefers. `threads` on a CPU."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    threads: int = Field(default=1, ge=1)


def device(spec: ExpertSpec) -> torch.device:
    """The GPU where the spec asks for a share of one, else the CPU. Raises BadConfig where there is no GPU."""
    share = spec.serve.ray_actor_options.num_gpus
    if not share:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadConfig(
            f"expert {spec.name!r} asks for num_gpus {share:g}, and this process sees no GPU: start it where there is "
            "one, or set serve.ray_actor_options.num_gpus to 0"
        )
    if share < 1:  # Ray only counts shares; this holds the process to its own
        torch.cuda.set_per_process_memory_fraction(share)
    return torch.device("cuda")


def load(auto: Any, folder: Path, spec: ExpertSpec, options: HubOptions) -> Any:
    """The model that `auto`, one of transformers' Auto classes, finds in `folder`, in eval mode on the expert's device.

    Raises BadConfig where there is no such device, WeightsError where weights are missing or of another shape,
    ExpertFailed where they do not fit into memory.
    """
    target = device(spec)
    torch.set_num_threads(options.threads)
    transformers.logging.disable_progress_bar()
    with running(spec.name), _reading(folder):
        model, found = auto.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=options.dtype,
            attn_implementation=options.attention,
            output_loading_info=True,
        )
    if wrong := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise WeightsError(f"{folder} lacks {len(wrong)} weights of its {type(model).__name__}, first {wrong[0]}")
    with running(spec.name):
        return model.to(target).eval()


def load_beside(auto: Any, folder: Path, **settings: Any) -> Any:
    """The tokenizer, feature extractor or processor that `auto` finds in `folder`. Raises WeightsError."""
    with _reading(folder):
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)


def end_tokens(network: Any, tokenizer: Any) -> frozenset[int]:
    """The marks with which an answer ends: those of the model's generation settings, and the tokenizer's own."""
    named = network.generation_config.eos_token_id
    listed = named if isinstance(named, list) else [named]
    return frozenset(id for id in (*listed, tokenizer.eos_token_id) if id is not None)


@contextlib.contextmanager
def running(name: str) -> Iterator[None]:
    """Running out of memory in here raises ExpertFailed, which says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError
        if not _memory_ran_out(error):
            raise
        raise failure(name, error) from error


def failure(name: str, error: Exception | str) -> ExpertFailed:
    if _memory_ran_out(error):
        logger.warning("out of memory", extra={"expert": name, "error": str(error)})
        return ExpertFailed(
            f"expert {name!r} ran out of memory: ask less at once (batch.size, options), take a smaller dtype, or give "
            "it a larger share of a GPU (serve.ray_actor_options.num_gpus)"
        )
    return ExpertFailed(f"expert {name!r} failed: {error}")


def _memory_ran_out(error: Exception | str) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in said for words in ("out of memory", "can't allocate memory", "memory footprint")
    )


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        if _memory_ran_out(error):
            raise
        raise WeightsError(f"transformers cannot read {folder}: {error}") from error
