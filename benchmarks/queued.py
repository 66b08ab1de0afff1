"""What is left of a replica where calls wait for it, by how often Ray Serve looks whether there is room again.

A replica of bare Ray Serve serves four at once, each in so long; sixteen callers ask without end, so that twelve always
wait in the caller's router. The reference is what the replica can do, four in so long. Intervals take turns in rounds;
0.5 s is Ray's default, and multimoe's own is in `gateway/deployment/render.py`.
"""

import argparse
import asyncio
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import psutil
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from rich.console import Console
from rich.table import Table

from gateway.deployment.render import HAND_ON_SECONDS

AT_ONCE, CALLERS = 4, 16
INTERVALS = tuple(sorted({0.5, 0.1, HAND_ON_SECONDS, 0.025}, reverse=True))


class Clerk:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def __call__(self) -> None:
        await asyncio.sleep(self.seconds)


def clerk(seconds: float, interval: float) -> DeploymentHandle[Clerk]:
    router: dict[str, Any] = {"max_backoff_s": interval}
    deployment: Any = serve.deployment(
        name="clerk",
        max_ongoing_requests=AT_ONCE,
        max_queued_requests=-1,
        ray_actor_options={"num_cpus": 0},
        request_router_config=RequestRouterConfig(**router),
    )(Clerk)
    return serve.run(deployment.bind(seconds), name="clerk", route_prefix=None)


async def crowd(handle: DeploymentHandle[Clerk], lasts: float) -> tuple[float, float]:
    """Answers a second, and the share of a core that this process took."""
    await handle.remote()
    me, began, done = psutil.Process(), time.monotonic(), 0
    busy = sum(me.cpu_times()[:2])

    async def caller() -> None:
        nonlocal done
        while time.monotonic() - began < lasts:
            await handle.remote()
            done += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    took = time.monotonic() - began
    return done / took, (sum(me.cpu_times()[:2]) - busy) / took


def measure(each: Sequence[float], rounds: int, lasts: float) -> Table:
    table = Table(
        "each takes", "looks every", "of what can be done", "of a core, in the caller", title=f"{rounds} rounds"
    )
    figures: dict[tuple[float, float], list[tuple[float, float]]] = {}
    for _, seconds, interval in itertools.product(range(rounds), each, INTERVALS):
        rate, busy = asyncio.run(crowd(clerk(seconds, interval), lasts))
        serve.delete("clerk")
        figures.setdefault((seconds, interval), []).append((rate * seconds / AT_ONCE, busy))
    for (seconds, interval), found in figures.items():
        shares, busy_shares = zip(*found, strict=True)
        row = (f"{statistics.median(shares):.0%}", f"{statistics.median(busy_shares):.0%}")
        table.add_row(f"{seconds:g} s", f"{interval:g} s", *row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 0.3, 0.05], help="that an answer takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lasts", type=float, default=8.0, help="seconds of a round")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-queued-") as folder:
        ray.init(
            num_cpus=2, include_dashboard=False, _temp_dir=folder, logging_level=logging.ERROR, log_to_driver=False
        )
        try:
            Console().print(measure(asked.seconds, asked.rounds, asked.lasts))
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
