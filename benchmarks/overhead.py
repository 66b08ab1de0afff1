"""What the product adds to a request: an echo expert through gate, blend and store, against two bare no-op hops.

    python benchmarks/overhead.py [--requests 200] [--callers 1 8]

Both run in the same Ray cluster, one after the other in alternating rounds, so that the ratio holds on a busy machine.
Also prints what the gate takes to embed and decide, by modality, as the replies report it.
"""

import argparse
import asyncio
import base64
import io
import os
import statistics
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from gateway.deployment.launch import Step, running
from multimoe.config import Catalog, load

ROUNDS = 5
ECHO = {
    "name": "echo",
    "backend": "experts.echo:Echo",
    "inputs": ["text", "image", "audio"],
    "output": "text",
    "card": {"description": "Says back what it was sent."},
    "serve": {"max_ongoing_requests": 256},
}


def echo_catalog(catalog: Catalog, port: int, home: Path) -> Catalog:
    tree = catalog.model_dump(mode="json") | {"home": str(home), "experts": [ECHO]}
    tree["server"] = {"host": "127.0.0.1", "port": port}
    return Catalog.model_validate(tree)


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    reply = await client.post(path, json=body)
    reply.raise_for_status()
    return (time.perf_counter() - started) * 1000, reply.json()


async def load_of(client: httpx.AsyncClient, path: str, callers: int, count: int) -> tuple[list[float], float]:
    """Latencies in ms of `count` requests by `callers` at once, and requests a second."""
    body = {"model": "multimoe", "messages": [{"role": "user", "content": "hello there"}]}
    left = iter(range(count))

    async def caller() -> list[float]:
        return [(await ask(client, path, body))[0] for _ in left]

    started = time.perf_counter()
    taken = [ms for caller_ms in await asyncio.gather(*(caller() for _ in range(callers))) for ms in caller_ms]
    return taken, count / (time.perf_counter() - started)


def parts() -> dict[str, list[dict[str, Any]]]:
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (320, 320, 3), np.uint8)).save(picture, "JPEG")
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((3000 * np.sin(np.arange(48_000) / 9)).astype("<i2").tobytes())
    image = f"data:image/jpeg;base64,{base64.b64encode(picture.getvalue()).decode()}"
    audio = {"data": base64.b64encode(sound.getvalue()).decode(), "format": "wav"}
    return {
        "text, 12 words": [{"type": "text", "text": "What would you say is the best way to learn the guitar quickly?"}],
        "picture, 320x320": [{"type": "image_url", "image_url": {"url": image}}],
        "sound, 3 s": [{"type": "input_audio", "input_audio": audio}],
    }


async def measure(url: str, callers: list[int], count: int, console: Console) -> None:
    table = Table(
        "callers", "path", "p50 ms", "p95 ms", "requests/s", title="echo through multimoe against two bare hops"
    )
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for n in callers:
            taken: dict[str, list[float]] = {"/bare/chat/completions": [], "/v1/chat/completions": []}
            rates: dict[str, list[float]] = {path: [] for path in taken}
            for path in taken:
                await load_of(client, path, n, 20)
            for _ in range(ROUNDS):
                for path, all_ms in taken.items():
                    ms, rate = await load_of(client, path, n, count // ROUNDS)
                    all_ms += ms
                    rates[path].append(rate)
            p50 = {path: statistics.median(ms) for path, ms in taken.items()}
            for path, ms in taken.items():
                p95 = statistics.quantiles(ms, n=20)[-1]
                table.add_row(str(n), path, f"{p50[path]:.1f}", f"{p95:.1f}", f"{statistics.mean(rates[path]):.0f}")
            bare, ours = (p50[path] for path in taken)
            table.add_row(
                str(n), "ratio of p50; added", f"{ours / bare:.2f}x", f"+{ours - bare:.1f} ms", "", style="bold"
            )
        console.print(table)
        gate = Table("question", "embed ms", "decide ms", title="the gate, median of 30")
        for name, content in parts().items():
            body = {"model": "multimoe", "messages": [{"role": "user", "content": content}]}
            replies = [(await ask(client, "/v1/chat/completions", body))[1] for _ in range(30)]
            timing = [reply["x_multimoe"]["timing_ms"] for reply in replies]
            gate.add_row(name, *(f"{statistics.median(t[step] for t in timing):.1f}" for step in ("embed", "route")))
        console.print(gate)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--catalog", type=Path, default=Path("deploy/local.yaml"))
    arguments.add_argument("--requests", type=int, default=200)
    arguments.add_argument("--callers", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--port", type=int, default=8765)
    options = arguments.parse_args()
    console = Console(width=120)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

    def quiet(_: list[Step]) -> None:
        pass

    with tempfile.TemporaryDirectory() as home:
        catalog = echo_catalog(load(options.catalog), options.port, Path(home))
        with running(catalog, quiet) as url:
            from ray import serve

            from gateway.deployment.ray_cluster import deploy, deployed_config

            config = deployed_config()
            config["applications"].append({"name": "bare", "import_path": "bare:app", "route_prefix": "/bare"})
            deploy(config)
            while serve.status().applications["bare"].status != "RUNNING":
                time.sleep(0.5)
            asyncio.run(measure(url, options.callers, options.requests, console))


if __name__ == "__main__":
    main()
