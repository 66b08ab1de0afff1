"""How much a call grows two processes on bare Ray Serve: what the soak finds beyond it is multimoe's own.

Memory is that which belongs to a process alone (USS), read after every round and once garbage is collected; the slope
is by Theil and Sen, with its 95 % interval.
"""

import argparse
import asyncio
import gc
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from rich.console import Console
from rich.table import Table
from scipy import stats

WARM = 2  # rounds that do not count


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Nothing:
    async def once(self, words: str) -> str:
        return words

    async def piecewise(self, words: str) -> AsyncIterator[str]:
        yield words


async def grown(call: Callable[[], Awaitable[None]], rounds: int, calls: int) -> list[tuple[float, float, float]]:
    """Bytes a call, in the caller and in the replica: slope, low and high end."""
    pids = [
        p.pid for p in psutil.process_iter(["cmdline"]) if "ServeReplica:nothing:" in " ".join(p.info["cmdline"] or ())
    ]
    processes = [psutil.Process(), psutil.Process(pids[0])]
    asked: list[int] = []
    held: list[list[int]] = [[] for _ in processes]
    for number in range(rounds + WARM):
        for _ in range(calls):
            await call()
        gc.collect()
        if number >= WARM:
            asked.append(number * calls)
            for memory, process in zip(held, processes, strict=True):
                memory.append(process.memory_full_info().uss)
    fitted = [stats.theilslopes(memory, asked, 0.95) for memory in held]
    return [(float(slope), float(low), float(high)) for slope, _, low, high in fitted]


async def both(handle: DeploymentHandle[Any], rounds: int, calls: int) -> Table:
    streamed = handle.options(stream=True)

    async def once() -> None:
        await handle.once.remote("one two three")

    async def piecewise() -> None:
        async for _ in streamed.piecewise.remote("one two three"):
            pass

    shown = Table("bytes a call (95 %)", "caller", "replica", title=f"{rounds} rounds of {calls} calls")
    for name, call in (("one answer", once), ("a stream", piecewise)):
        figures = await grown(call, rounds, calls)
        shown.add_row(name, *(f"{slope:.0f} ({low:.0f} to {high:.0f})" for slope, low, high in figures))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-growth-") as folder:
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, logging_level="error", log_to_driver=False)
        try:
            handle = serve.run(Nothing.bind(), name="nothing", route_prefix=None)
            Console().print(asyncio.run(both(handle, asked.rounds, asked.calls)))
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
