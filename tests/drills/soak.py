"""Soak (T43): does anything grow for as long as the product answers? A leak planted in an expert must be found.

Mixed traffic, bad and broken off too, on the whole product; every process's memory (proportional, so that what is
shared counts once), files and threads are read again and again, and lines fitted after a warm-up. By `make drill` it
lasts four minutes, by its name (`python -m drills soak`) thirty.
"""

import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from scipy import stats

from drills.perimeter import ROOT, TEXT, end, until
from drills.row import Row, Scale
from gateway.demo.product import free_port
from multimoe import config
from multimoe.checkpoint import Manifest, Registry
from multimoe.quality import Learned

CATALOG = f"""
gate: {{encoders: {{text: {{backend: "multimoe.encoder:TextEncoder", revision: t, weights: {{model: "{TEXT}"}}}}}}}}
limits: {{ratings_per_minute: 100000}}
experts:
  - {{name: parrot, backend: "experts.echo:Echo", inputs: [text], output: text, card: {{description: Says it again.}}}}
  - {{name: slow, backend: "experts.echo:Echo", options: {{delay_s: 0.05}}, inputs: [text], output: text,
      card: {{description: Says it again slowly.}}}}
  - {{name: leaky, backend: "drills._leaky:Leaky", inputs: [text], output: text, card: {{description: It leaks.}}}}
"""
CALLERS = 6
EVERY = 3.0  # seconds between two readings
SWAP = 10.0  # seconds between two swaps of the gate
NAMED = "soak" in sys.argv[1:]
LENGTHS = {  # minutes in all, of which so many seconds are a warm-up, and so many the control
    "quick": (2.0, 30.0, 25.0),
    "long": (4.0, 60.0, 40.0),
    "named": (30.0, 180.0, 60.0),
}
MIB, KB = 2**20, 1000.0
HOURLY = MIB  # most growth in memory an hour, where it lasts long enough to tell
A_REQUEST = 1 * KB  # most growth in memory a request, where it does not
ROW_BYTES = 16 * KB  # most that the store keeps of one answer with its rating


@dataclass
class Reading:
    """One look at all processes: seconds, requests so far, and by process what it holds."""

    at: float
    asked: int
    memory: dict[str, float] = field(default_factory=dict)
    files: dict[str, float] = field(default_factory=dict)
    threads: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A slope by Theil and Sen, with its 95 % interval."""

    slope: float
    low: float
    high: float


def line(x: list[float], y: list[float]) -> Line:
    slope, _, low, high = stats.theilslopes(y, x, 0.95)
    return Line(float(slope), float(low), float(high))


@dataclass
class Product:
    url: str
    home: Path
    process: "subprocess.Popen[str]"
    asked: Counter[str] = field(default_factory=Counter)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # when, and how long, in s

    def reading(self, began: float) -> Reading:
        now = Reading(time.monotonic() - began, self.asked.total())
        first = psutil.Process(self.process.pid)
        for process in (first, *first.children(recursive=True)):
            with suppress(psutil.Error, OSError):
                who = f"{_kind(process)} {process.pid}"
                now.memory[who] = float(process.memory_full_info().pss)
                now.files[who] = float(process.num_fds())
                now.threads[who] = float(process.num_threads())
        return now


@contextmanager
def product() -> Iterator[Product]:
    with tempfile.TemporaryDirectory(prefix="mm-soak-") as folder:
        home, log, catalog, port = Path(folder), Path(folder) / "log", Path(folder) / "catalog.yaml", free_port()
        catalog.write_text(CATALOG)
        versions(config.load(catalog).model_copy(update={"home": home}))
        given = {"MULTIMOE_HOME": folder, "PYTHONPATH": str(ROOT / "tests")}
        command = [sys.executable, "-m", "gateway.cli", "serve", "--no-pull", f"--port={port}", f"--catalog={catalog}"]
        with log.open("w") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | given, stdout=out, stderr=out, text=True)
        try:
            until(lambda: "ready after" in log.read_text() or process.poll() is not None, "the product is up")
            assert process.poll() is None, log.read_text()[-2000:]
            yield Product(f"http://127.0.0.1:{port}", home, process)
        finally:
            end(process)


def versions(catalog: config.Catalog) -> None:
    """Two gate versions to swap between, that know nothing more than the cards."""
    for _ in range(2):
        Registry(catalog.gates).write(Learned().rows([spec.name for spec in catalog.experts]), Manifest())


def soak(scale: Scale) -> Iterator[Row]:
    minutes, warm, control = LENGTHS["named" if NAMED else scale]
    with product() as up:
        stored = _store_bytes(up.home)
        readings = asyncio.run(watched(up, mixed, minutes * 60 - control))
        grown, answers = _store_bytes(up.home) - stored, up.asked["ok"]
        yield from _grown(up, [reading for reading in readings if reading.at >= warm])
        figure, met = f"{grown / answers / KB:.1f} kB", grown / answers <= ROW_BYTES
        yield Row("T43", "store, an answer", f"{answers} answers, some rated", figure, "<= 16 kB", met)
        wrong = {what: n for what, n in up.asked.items() if what.startswith("wrong")}
        tried = ", ".join(f"{n} {what}" for what, n in up.asked.most_common())
        yield Row("T43", "answers other than expected", tried, f"{wrong or 0}", "0", not wrong)
        if NAMED:
            yield _drift(up)
        found = growing(asyncio.run(watched(up, leaking, control)))
        name, most = max(found.items(), key=lambda item: item[1].low)
        met = "leaky" in name and most.low > A_REQUEST and sum(one.low > A_REQUEST for one in found.values()) == 1
        figure = f"{name}: {most.slope / KB:.0f} kB a request"
        yield Row(
            "T43",
            "an expert that leaks 100 kB a request",
            f"{control:.0f} s",
            figure,
            "found, and it alone",
            met,
            control=True,
        )


DRILLS = (soak,)


async def watched(
    up: Product, traffic: Callable[[Product, httpx.AsyncClient], Awaitable[None]], seconds: float
) -> list[Reading]:
    """Readings while `traffic` runs again and again, by several at once."""
    began = time.monotonic()
    readings: list[Reading] = []

    async def call() -> None:
        while time.monotonic() - began < seconds:
            await traffic(up, client)

    async def swap() -> None:
        while time.monotonic() - began < seconds:
            await asyncio.sleep(min(SWAP, seconds))
            reply = await client.put("/v1/gate/aliases/champion", json={"version": random.choice((1, 2))})
            up.asked["swap" if reply.status_code < 300 else f"wrong swap {reply.status_code}"] += 1

    async def read() -> None:
        while time.monotonic() - began < seconds:
            readings.append(await asyncio.to_thread(up.reading, began))
            await asyncio.sleep(EVERY)

    async with httpx.AsyncClient(base_url=up.url, timeout=60, trust_env=False) as client:
        await asyncio.gather(read(), swap(), *(call() for _ in range(CALLERS)))
    return readings


async def mixed(up: Product, client: httpx.AsyncClient) -> None:
    """One of what comes to a gateway in an ordinary hour."""
    words, chance = " ".join(random.choices(["one", "two", "three", "four", "five", "six"], k=8)), random.random()
    if chance < 0.1:
        await _break_off(up, client, words)
    elif chance < 0.2:
        content = random.choice((b"{", b'{"model": 1}', b"[" * 100, b'{"model": "multimoe/nobody", "messages": []}'))
        reply = await client.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        up.asked["bad" if 400 <= reply.status_code < 500 else f"wrong bad {reply.status_code}"] += 1
    elif chance < 0.25:
        reply = await client.get(random.choice(("/v1/models", "/v1/experts", "/metrics", "/ready", "/v1/gate")))
        up.asked["look" if reply.is_success else f"wrong look {reply.status_code}"] += 1
    else:
        await _ask(up, client, "multimoe/parrot" if chance < 0.7 else "multimoe/slow", words, rate=chance < 0.5)


async def leaking(up: Product, client: httpx.AsyncClient) -> None:
    await _ask(up, client, "multimoe/leaky", "one two", rate=False)


def growing(readings: list[Reading]) -> dict[str, Line]:
    """Bytes a request, of every process that was there all the time."""
    lasting = set.intersection(*(set(reading.memory) for reading in readings))
    asked = [float(reading.asked) for reading in readings]
    return {who: line(asked, [reading.memory[who] for reading in readings]) for who in lasting}


async def _ask(up: Product, client: httpx.AsyncClient, model: str, words: str, rate: bool) -> None:
    began = time.monotonic()
    body = {"model": model, "messages": [{"role": "user", "content": words}]}
    reply = await client.post("/v1/chat/completions", json=body)
    up.latencies.append((began, time.monotonic() - began))
    right = reply.is_success and reply.json()["choices"][0]["message"]["content"] == words
    up.asked["ok" if right else f"wrong {reply.status_code}"] += 1
    if right and rate and not reply.json()["x_multimoe"]["rateable"]:
        up.asked["not rateable yet"] += 1  # the store was busy for a second, and the answer said so
    elif right and rate:
        rating = {"completion_id": reply.json()["id"], "score": 1, "user": f"u{random.randrange(50)}"}
        rated = await client.post("/v1/feedback", json=rating)
        up.asked["rated" if rated.is_success else f"wrong rating {rated.status_code}"] += 1


async def _break_off(up: Product, client: httpx.AsyncClient, words: str) -> None:
    body = {"model": "multimoe/slow", "stream": True, "messages": [{"role": "user", "content": words}]}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for _ in reply.aiter_lines():
            break
    up.asked["broken off"] += 1


def _grown(up: Product, readings: list[Reading]) -> Iterator[Row]:
    hours = [reading.at / 3600 for reading in readings]
    lasting = set.intersection(*(set(reading.memory) for reading in readings))
    total = [sum(reading.memory[who] for who in lasting) for reading in readings]
    hourly = line(hours, total)
    requests = readings[-1].asked - readings[0].asked
    tried = f"{len(lasting)} processes, {(hours[-1] - hours[0]) * 60:.1f} min, {requests} requests"
    if NAMED:  # in minutes an hour's growth cannot be told
        figure = f"{hourly.slope / MIB:.1f} MiB/h ({hourly.low / MIB:.1f} to {hourly.high / MIB:.1f})"
        yield Row("T43", "memory of all", tried, figure, "upper end <= 1 MiB/h", hourly.high <= HOURLY)
    each = growing(readings)
    worst = max(each, key=lambda who: each[who].low)
    over = [who for who in each if each[who].low > A_REQUEST]
    figure = f"{worst}: {each[worst].slope / KB:.2f} kB ({each[worst].low / KB:.2f} to {each[worst].high / KB:.2f})"
    yield Row("T43", "memory a request, worst process", tried, figure, "lower end <= 1 kB", not over)
    for what in ("files", "threads"):
        held: dict[str, list[float]] = defaultdict(list)
        for reading in readings:
            for who in lasting:
                held[who].append(getattr(reading, what)[who])
        more = {who: grown for who, y in held.items() if (grown := line(hours, y).low * (hours[-1] - hours[0])) >= 1}
        counts = f"{sum(y[0] for y in held.values()):.0f} at first, {sum(y[-1] for y in held.values()):.0f} at last"
        yield Row(
            "T43", f"{what} held", tried, f"{counts}{f', more in {sorted(more)}' if more else ''}", "no slope", not more
        )


def _drift(up: Product) -> Row:
    times = [took for _, took in up.latencies[len(up.latencies) // 4 :]]
    halves = (times[: len(times) // 2], times[len(times) // 2 :])
    early, late = (sorted(half)[int(0.99 * len(half))] for half in halves)
    figure = f"{early * 1000:.0f} ms, then {late * 1000:.0f} ms"
    return Row(
        "T43", "p99, first and second half", f"{len(times)} answers", figure, "+10 % at most", late <= 1.1 * early
    )


def _store_bytes(home: Path) -> float:
    return float(sum(file.stat().st_size for file in home.glob("multimoe.db*")))


def _kind(process: psutil.Process) -> str:
    """Such as `expert-parrot`, `ProxyActor`, `raylet`."""
    name = process.name() if process.name().startswith("ray::") else (process.cmdline() or [process.name()])[0]
    return re.sub(r"^ray::(ServeReplica:)?|\..*$", "", Path(name).name if "/" in name else name) or "?"
