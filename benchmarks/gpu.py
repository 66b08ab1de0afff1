"""Language models on a GPU: throughput by batch size against the bare model loop, replicas that share one GPU by
fractions, and the memory that comes back when one of them dies.

    python benchmarks/gpu.py [--model FOLDER | --size tiny|half|seven] [--share 0.4] [--replicas 2]

Without a model it takes random weights of a size: of Qwen2.5-0.5B (`half`) or -7B (`seven`), whose speed is that of
trained ones, or `tiny`, which shows that it runs. Without a GPU it runs on the CPU: there memory is that of processes,
and the batch sizes are compared in processor time, which others on the machine do not change.
"""

import argparse
import asyncio
import multiprocessing as processes
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from experts.transformers_chat import Chat
from multimoe.config import Card, ExpertSpec
from multimoe.messages import ChatRequest, Message, TextPart

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_models  # as the tests make them

SIZES: dict[str, dict[str, int]] = {
    "tiny": {},
    "half": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "seven": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}
QUESTION = "What is the capital of France, and what would you see there? " * 4
NEVER = 1 << 30  # no token has this id: answers are as long as asked for
SETTLED_S = 20.0  # within which memory must have come back


def main() -> None:
    settings = arguments()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as scratch:
        folder = settings.model or random_model(Path(scratch), settings.size)
        on = "GPU" if settings.share else "CPU"
        console.print(f"{folder.name if settings.model else settings.size} on {on}, {settings.tokens} tokens an answer")
        console.print(throughput(folder, settings))
        console.print(sharing(folder, settings))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder of a hub model")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--share", type=float, default=0.4 if torch.cuda.is_available() else 0.0)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=64)
    return parser.parse_args()


def random_model(folder: Path, size: str) -> Path:
    tiny = tiny_models.language_model(folder, "qwen2")
    if size == "tiny":
        return tiny
    config = transformers.AutoConfig.from_pretrained(
        tiny, vocab_size=151_936, num_key_value_heads=SIZES[size]["num_attention_heads"] // 7, **SIZES[size]
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


# --- throughput ---


def throughput(folder: Path, settings: argparse.Namespace) -> Table:
    unit = "tokens/s" if settings.share else "tokens/cpu-s"
    table = Table("batch", f"bare loop, {unit}", f"expert, {unit}", "share of it", title="by batch size")
    for size in settings.batches:
        bare, own = (in_process(loop, folder, size, settings) for loop in (bare_loop, expert_loop))
        table.add_row(str(size), f"{bare:.0f}", f"{own:.0f}", f"{own / bare:.0%}")
    return table


def in_process(loop: Any, folder: Path, size: int, settings: argparse.Namespace) -> float:
    """Each figure comes from a process of its own, whose memory nobody has used."""
    ours, theirs = processes.get_context("spawn").Pipe()
    process = processes.get_context("spawn").Process(target=loop, args=(theirs, folder, size, settings))
    process.start()
    theirs.close()
    found: float = ours.recv()
    process.join()
    return found


def bare_loop(out: Connection, folder: Path, size: int, settings: argparse.Namespace) -> None:
    """transformers' own `generate`, batch after batch of one length."""
    device = "cuda" if settings.share else "cpu"
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    ids = torch.tensor([prompt["input_ids"]] * size, device=device)
    made = transformers.GenerationConfig(
        max_new_tokens=settings.tokens, do_sample=False, eos_token_id=NEVER, pad_token_id=0
    )
    for seconds in timed(2, settings):  # the first loads kernels
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=made)
        taken = seconds()
    out.send(size * settings.tokens / taken)


def expert_loop(out: Connection, folder: Path, size: int, settings: argparse.Namespace) -> None:
    """The expert through its contract, asked so many times at once."""
    expert = Chat(spec(size, settings), lambda _: folder)
    expert._engine._generation.eos_token_id = NEVER
    for seconds in timed(2, settings):
        written = asyncio.run(together(expert, size, settings.tokens))
        taken = seconds()
    out.send(written / taken)


async def together(expert: Chat, size: int, tokens: int) -> int:
    return sum(await asyncio.gather(*(answered(expert, tokens) for _ in range(size))))


async def answered(expert: Chat, tokens: int) -> int:
    request = ChatRequest("benchmark", (Message("user", (TextPart(QUESTION),)),), max_tokens=tokens)
    deltas = [delta async for delta in expert.answer(request)]
    return deltas[-1].usage.completion_tokens if deltas[-1].usage else 0


def timed(times: int, settings: argparse.Namespace) -> Any:
    """A stopwatch for each turn."""
    clock = time.perf_counter if settings.share else time.process_time
    for _ in range(times):
        begun = clock()
        yield lambda begun=begun: clock() - begun


# --- sharing ---


def sharing(folder: Path, settings: argparse.Namespace) -> Table:
    """Replicas in processes of their own, as Ray has them: all at work, then one of them killed."""
    table = Table("replicas", "tokens/s, each", "tokens/s, all", "memory, GiB", title="sharing one device")
    before = memory([])
    replicas: list[tuple[Any, Connection]] = []
    for count in range(1, settings.replicas + 1):
        replicas.append(started(folder, settings))
        speeds = at_once([pipe for _, pipe in replicas])
        held = memory([process.pid for process, _ in replicas]) - before
        each = ", ".join(f"{speed:.0f}" for speed in speeds)
        table.add_row(str(count), each, f"{sum(speeds):.0f}", f"{held:.2f}")
    victim, _ = replicas.pop()
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()
    victim.join()
    left = [process.pid for process, _ in replicas]
    goal = held * len(replicas) / settings.replicas
    while (now := memory(left) - before) > 1.05 * goal and time.monotonic() - killed < SETTLED_S:
        time.sleep(0.05)
    table.add_row("one killed", "", "", f"{now:.2f} after {time.monotonic() - killed:.1f} s")
    for process, _ in replicas:
        process.kill()
    return table


def started(folder: Path, settings: argparse.Namespace) -> tuple[Any, Connection]:
    ours, theirs = processes.get_context("spawn").Pipe()
    process = processes.get_context("spawn").Process(target=replica, args=(theirs, folder, settings))
    process.start()
    ours.recv()
    return process, ours


def replica(pipe: Connection, folder: Path, settings: argparse.Namespace) -> None:
    size = max(settings.batches)
    expert = Chat(spec(size, settings), lambda _: folder)
    expert._engine._generation.eos_token_id = NEVER
    asyncio.run(together(expert, size, settings.tokens))
    pipe.send("ready")
    while pipe.recv():
        begun = time.perf_counter()
        written = asyncio.run(together(expert, size, settings.tokens))
        pipe.send(written / (time.perf_counter() - begun))


def at_once(pipes: Sequence[Connection]) -> list[float]:
    for pipe in pipes:
        pipe.send(True)
    return [pipe.recv() for pipe in pipes]


def memory(pids: Sequence[int]) -> float:
    """GiB in use: of the GPU by anybody, or else by the processes."""
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        return (whole - free) / 2**30
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**30


def spec(size: int, settings: argparse.Namespace) -> ExpertSpec:
    return ExpertSpec.model_validate(
        {
            "name": "benchmark",
            "backend": "experts.transformers_chat:Chat",
            "inputs": ["text"],
            "output": "text",
            "card": Card(description="Writes."),
            "weights": {"model": "file:/model"},
            "options": {"dtype": "bfloat16", "context": 1024},
            "batch": {"size": size},
            "serve": {"ray_actor_options": {"num_gpus": settings.share}},
        }
    )


if __name__ == "__main__":
    main()
