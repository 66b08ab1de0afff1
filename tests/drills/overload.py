"""More than can be served, for real: open-loop load on the whole product, from half of what it can do to ten times it.

Among those who ask are OpenAI's own client with its retries, senders that never finish and uploads of full size. The
control is the same product with `limits.admission` off.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil

from drills import arena
from drills.row import Row, Scale
from gateway.demo.product import free_port
from multimoe.config import ExpertSpec
from multimoe.expert import Delta, Expert, FindWeights
from multimoe.messages import ChatRequest

CLERKS, SECONDS = 4, 1.0  # the expert's: it serves so many at once, each in so long
CAPACITY = CLERKS / SECONDS  # requests a second
SLO = 4.0  # seconds: four times what an answer takes where nothing else goes on
CURVE = (0.5, 1.0, 2.0, 5.0, 10.0)
SWAMPED = 14.0  # seconds of the control: in the first eight even whoever only queues is in time
BODY = {"model": "multimoe/ant", "messages": [{"role": "user", "content": "word"}]}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"
UPLOAD = 24 * 2**20
SLOW_SHARE, UPLOADS_A_SECOND = 0.2, 0.5
SDK_EACH = 40  # at ten times the capacity one a second: what they still ask after the storm is part of the calm


@dataclass
class Step:
    """What came of one rate. Times in seconds."""

    rate: float
    seconds: float
    in_time: int = 0  # answers that came while it lasted, whenever asked, not later than twice what is promised
    good: list[float] = field(default_factory=list)
    shed: list[float] = field(default_factory=list)
    unsaid: int = 0
    others: Counter[str] = field(default_factory=Counter)
    ended: list[tuple[float, bool, float]] = field(default_factory=list)  # begun at, whether it went well, took

    @property
    def goodput(self) -> float:
        return self.in_time / self.seconds


@dataclass(frozen=True)
class Plain:
    """The gateway alone, in a process of its own without Ray; it has the memory of the whole."""

    url: str
    process: "subprocess.Popen[bytes]"

    def memory(self, title: str) -> int:
        return int(psutil.Process(self.process.pid).memory_full_info().uss)


PLAIN = """
import sys
from pathlib import Path
import uvicorn
from api_world import World
from drills.overload import CLERK
world = World(Path(sys.argv[1]), experts=[CLERK], limits={"admission": sys.argv[3]})
uvicorn.run(world.app, port=int(sys.argv[2]), log_level="error", lifespan="off")
"""
CLERK: dict[str, Any] = {
    "name": "ant",
    "backend": "drills.overload:Clerks",
    "inputs": ["text"],
    "output": "text",
    "card": {"description": "Serves."},
}


class Clerks(Expert):
    """So many at once, each in so long; others wait, as behind a real engine."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self.free = asyncio.Semaphore(CLERKS)

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        async with self.free:
            await asyncio.sleep(SECONDS)
        yield Delta(text=request.text, finish="stop")


@contextmanager
def plain(admission: str) -> Iterator[Plain]:
    port = free_port()
    with arena.place() as home:
        command = [sys.executable, "-c", PLAIN, str(home / "home"), str(port), admission]
        environment = os.environ | {"PYTHONPATH": str(arena.ROOT / "tests")}
        process = subprocess.Popen(command, env=environment, cwd=arena.ROOT)
        try:
            found = Plain(f"http://127.0.0.1:{port}", process)
            arena.until(lambda: _answers(found.url), 60, "the gateway is up")
            yield found
        finally:
            process.terminate()
            process.wait(20)


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    return False


@dataclass
class Storm:
    """One run of the whole curve against one product."""

    product: "arena.Product | Plain"
    client: httpx.AsyncClient
    sdk: openai.AsyncOpenAI
    health: list[float] = field(default_factory=list)
    sdk_said: Counter[str] = field(default_factory=Counter)
    slow_said: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    answered: list[tuple[float, float]] = field(default_factory=list)  # when, and after how long

    async def step(self, times: float, seconds: float, hostile: bool, rest: float) -> Step:
        mine, began = [], time.perf_counter()
        step = Step(times * CAPACITY, seconds)
        for i in range(int(step.rate * seconds)):
            await asyncio.sleep(max(0.0, began + i / step.rate - time.perf_counter()))
            mine.append(asyncio.create_task(self.ask(step)))
            if i % SDK_EACH == 0:
                self.tasks.append(asyncio.create_task(self.ask_by_sdk()))
            if hostile and i % round(1 / SLOW_SHARE) == 0:
                self.tasks.append(asyncio.create_task(self.send_slowly()))
            if hostile and i % round(step.rate / UPLOADS_A_SECOND) == 0:
                self.tasks.append(asyncio.create_task(self.upload(step)))
        over = time.perf_counter()
        step.seconds = over - began  # a busy machine may have sent them more slowly
        step.in_time = sum(at >= began for at, taken in self.answered if taken <= 2 * SLO)
        _, unanswered = await asyncio.wait(mine, timeout=rest)
        step.others["not answered"] += len(unanswered)
        self.tasks += unanswered
        return step

    async def ask(self, step: Step) -> None:
        began = time.perf_counter()
        try:
            reply = await self.client.post("/v1/chat/completions", json=BODY)
        except httpx.HTTPError as error:
            step.others[type(error).__name__] += 1
            step.ended.append((began, False, time.perf_counter() - began))
            return
        taken = time.perf_counter() - began
        step.ended.append((began, reply.status_code == 200, taken))
        if reply.status_code == 200:
            step.good.append(taken)
            self.answered.append((began + taken, taken))
        elif reply.status_code in (429, 503):
            step.shed.append(taken)
            step.unsaid += not reply.headers.get("retry-after", "").isdigit()
        else:
            step.others[str(reply.status_code)] += 1

    async def ask_by_sdk(self) -> None:
        try:
            await self.sdk.chat.completions.create(**BODY)
            self.sdk_said["answered"] += 1
            self.answered.append((time.perf_counter(), 0.0))  # how much of its time was its own pauses, it does not say
        except openai.APIStatusError as error:
            self.sdk_said[str(error.status_code)] += 1
        except openai.APIError as error:
            self.sdk_said[type(error).__name__] += 1

    async def send_slowly(self) -> None:
        """A byte a second of a body that is never whole."""
        host, port = self.product.url.removeprefix("http://").split(":")
        with suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(HEAD % 1000)
                said = asyncio.create_task(reader.read(16))
                for _ in range(60):
                    await asyncio.wait({said}, timeout=1.0)
                    if said.done():
                        self.slow_said[said.result()[9:12].decode() or "closed"] += 1
                        return
                    writer.write(b"{")
                    await writer.drain()
                self.slow_said["never told"] += 1
            finally:
                writer.close()

    async def upload(self, step: Step) -> None:
        with suppress(httpx.HTTPError):
            reply = await self.client.post("/v1/chat/completions", content=b"x" * UPLOAD)
            step.others[f"upload {reply.status_code}"] += 1

    async def watch(self) -> None:
        """Health and memory, until cancelled."""
        while True:
            began = time.perf_counter()
            with suppress(httpx.HTTPError):
                reply = await self.client.get("/health")
                self.health.append(time.perf_counter() - began if reply.status_code == 200 else 60.0)
            self.memory.append(await asyncio.to_thread(self.product.memory, "ServeReplica:gateway:"))
            await asyncio.sleep(0.5)


def storm_on_one_gateway(scale: Scale) -> Iterator[Row]:
    """Without Ray: what the gateway does by itself, and what becomes of it with admission off."""
    seconds = 12.0 if scale == "long" else 5.0
    with plain("adaptive") as product:
        storm, steps = asyncio.run(_curve(product, CURVE, seconds))
    yield from _rows(storm, steps, seconds, "gateway alone")
    with plain("off") as product:
        _, (one, ten, _) = asyncio.run(_curve(product, (1.0, 10.0), SWAMPED, rest=SLO))
    yield _unhindered(one, ten, "gateway alone")


def storm(scale: Scale) -> Iterator[Row]:
    """On Ray, with proxy, gateway, gate and expert in processes of their own."""
    seconds = 12.0 if scale == "long" else 6.0
    with arena.place() as home, arena.product(_catalog(home, "adaptive")) as product:
        storm, steps = asyncio.run(_curve(product, CURVE, seconds))
    yield from _rows(storm, steps, seconds, "on Ray")


def storm_without_admission(scale: Scale) -> Iterator[Row]:
    """The control."""
    with arena.place() as home, arena.product(_catalog(home, "off")) as product:
        _, (one, ten, _) = asyncio.run(_curve(product, (1.0, 10.0), SWAMPED, rest=SLO))
    yield _unhindered(one, ten, "on Ray")


def _unhindered(one: Step, ten: Step, where: str) -> Row:
    figure = f"{ten.goodput:.1f} of {one.goodput:.1f} a second; p50 {_at(ten.good, 0.5):.1f} s"
    met = ten.goodput < 0.9 * one.goodput
    tried = f"{len(ten.ended)} asked"
    return Row(
        "T39", f"{where}, admission off: in time at 10x, against 1x", tried, figure, "under 90 %", met, control=True
    )


def _catalog(home: Any, admission: str) -> dict[str, Any]:
    tree = arena.catalog(home, replicas=1, gateways=1, names=("ant",), limits={"admission": admission})
    (ant,) = tree["experts"]
    ant["options"]["delay_s"] = SECONDS
    ant["serve"]["max_ongoing_requests"] = CLERKS
    ant["serve"]["max_queued_requests"] = 1000  # so that it is the gateway that holds back, or nobody
    return tree


async def _curve(
    product: "arena.Product | Plain", curve: tuple[float, ...], seconds: float, rest: float = 45.0
) -> tuple[Storm, list[Step]]:
    """One rate after the other, so many seconds each, then half of what can be served; `rest` for what is left then."""
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=200)
    async with (
        httpx.AsyncClient(base_url=product.url, limits=limits, timeout=60, trust_env=False) as client,
        openai.AsyncOpenAI(base_url=f"{product.url}/v1", api_key="none", max_retries=2, timeout=60) as sdk,
    ):
        storm = Storm(product, client, sdk)
        for _ in range(4):
            await client.post("/v1/chat/completions", json=BODY)
        watching = asyncio.create_task(storm.watch())
        steps = [await storm.step(times, seconds, times >= 5, rest) for times in curve]
        steps.append(await storm.step(0.5, seconds, False, rest))
        watching.cancel()
        await asyncio.wait(storm.tasks, timeout=rest)
        for task in storm.tasks:
            task.cancel()
        await asyncio.gather(*storm.tasks, watching, return_exceptions=True)
    return storm, steps


def _rows(storm: Storm, steps: list[Step], seconds: float, where: str) -> Iterator[Row]:
    *curve, after = steps
    first, *_, ten = curve
    peak = max(step.goodput for step in curve)
    tried = f"{sum(len(step.ended) for step in curve)} asked in {seconds * len(curve):.0f} s"
    told = ", ".join(f"{times:g}x {step.goodput:.1f}" for times, step in zip(CURVE, curve, strict=True))
    what, met = f"{where}: answers within {2 * SLO:g} s, a second", ten.goodput >= 0.9 * peak
    yield Row("T39", what, tried, told, "10x ≥ 90 % of peak", met)
    hurried = _at(ten.good, 0.99)
    yield Row(
        "T39",
        f"{where}: admitted at 10x, p99",
        f"{len(ten.good)}",
        f"{hurried:.2f} s",
        f"≤ {2 * SLO:g} s",
        hurried <= 2 * SLO,
    )
    shed = [taken for step in curve for taken in step.shed]
    late = _at(shed, 0.99)
    figure = f"p50 {_at(shed, 0.5) * 1000:.0f} ms, p99 {late * 1000:.0f} ms"
    yield Row("T39", f"{where}: refused, how fast", f"{len(shed)}", figure, "p99 < 100 ms", late < 0.1)
    unsaid = sum(step.unsaid for step in steps)
    others = sum((step.others for step in steps), Counter[str]())
    wrong = {what: n for what, n in others.items() if not what.startswith("upload 4") and what != "upload 503"}
    figure = f"{unsaid} without Retry-After, otherwise {dict(wrong) or 'none'}"
    yield Row(
        "T39", f"{where}: refusals say when to come back", f"{len(shed)}", figure, "0, none", not unsaid and not wrong
    )
    slowest = _at(storm.health, 0.99)
    yield Row(
        "T39", f"{where}: /health meanwhile, p99", f"{len(storm.health)}", f"{slowest:.2f} s", "< 1 s", slowest < 1.0
    )
    grown = (max(storm.memory) - storm.memory[0]) / 2**20
    yield Row(
        "T39",
        f"{where}: gateway's memory",
        f"{len(storm.memory)} looks",
        f"+{grown:.0f} MiB",
        "≤ 256 MiB",
        grown <= 256,
    )
    back = _recovered(after, 2 * max(_at(first.good, 0.99), SECONDS))
    yield Row(
        "T39",
        f"{where}: back to normal after the drop to 0.5x",
        f"{len(after.ended)}",
        f"{back:.1f} s",
        "≤ 10 s",
        back <= 10,
    )
    told = ", ".join(f"{n} {what}" for what, n in storm.sdk_said.most_common())
    met = set(storm.sdk_said) <= {"answered", "503"}
    yield Row("T39", f"{where}: OpenAI's client, 2 retries", f"{storm.sdk_said.total()}", told, "answered or 503", met)
    told = ", ".join(f"{n} {what}" for what, n in storm.slow_said.most_common())
    met = set(storm.slow_said) <= {"408", "503"}
    yield Row("T39", f"{where}: senders that never finish", f"{storm.slow_said.total()}", told, "408 or 503", met)


def _recovered(after: Step, usual: float) -> float:
    """Seconds from the drop until nothing begun later failed or was late."""
    began = min(at for at, _, _ in after.ended)
    bad = [at for at, well, taken in after.ended if not well or taken > usual]
    return max(bad) - began if bad else 0.0


def _at(values: list[float], share: float) -> float:
    """The quantile; infinite where there is nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


DRILLS = (storm_on_one_gateway, storm, storm_without_admission)
