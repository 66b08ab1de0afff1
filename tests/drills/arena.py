"""The product on a Ray cluster of its own with experts that can be told to fail, load on it, and the means to hurt it.

Every answer is compared with what it must be: experts here echo, and every question is another one.
"""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import yaml

from gateway.demo.product import free_port

ROOT = Path(__file__).parents[2]
NAMES = ("ant", "bee", "cat")
START_SECONDS, STOP_SECONDS = 300.0, 40.0
CONTROLLER = "ServeController"
TOKEN = os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # so that the drill may join what it starts


def catalog(
    home: Path, replicas: int = 2, gateways: int = 2, names: tuple[str, ...] = NAMES, **more: Any
) -> dict[str, Any]:
    """As YAML would hold it: experts that echo, and a gate that reads text alone."""
    shipped = yaml.safe_load((ROOT / "deploy" / "local.yaml").read_text())
    return {
        "home": str(home),
        "server": {"port": free_port(), "replicas": gateways},
        "gate": {
            "top_k": 2,
            "explore": 0.1,
            "encoders": {"text": shipped["gate"]["encoders"]["text"]},
            "rollout": {"shadow_requests": 0, "canary_share": 0},
            "serve": {"num_replicas": replicas, "max_ongoing_requests": 64},
        },
        "experts": [victim(name, home, replicas) for name in names],
        **more,
    }


def victim(name: str, home: Path, replicas: int = 2, **options: Any) -> dict[str, Any]:
    return {
        "name": name,
        "backend": "drills.victims:Victim",
        "inputs": ["text"],
        "output": "text",
        "card": {"description": f"Says back what it hears, as the {name} does."},
        "options": {"folder": str(home), **options},
        "latency_ms": 50,
        "serve": {"num_replicas": replicas, "max_ongoing_requests": 16},
    }


@dataclass
class Product:
    """One that runs, as a process of its own."""

    url: str
    home: Path
    process: "subprocess.Popen[bytes]"
    log: Path
    key: str = ""

    def mood(self, expert: str, **mood: Any) -> None:
        """From the next question on; written whole or not at all."""
        new = self.home / f".{expert}.new"
        new.write_text(json.dumps(mood or {"mode": "ok"}))
        new.replace(self.home / f"{expert}.json")

    def noted(self, expert: str) -> Counter[str]:
        """What the replicas of an expert wrote: "began TAG", "ended TAG"."""
        lines: Counter[str] = Counter()
        for path in self.home.glob(f"{expert}-*.log"):
            lines.update(path.read_text().splitlines())
        return lines

    def under_way(self, expert: str) -> int:
        """By the replicas that live; one that was killed has ended nothing."""
        logs = (log for log in self.home.glob(f"{expert}-*.log") if psutil.pid_exists(int(log.stem.rpartition("-")[2])))
        lines = Counter(line.partition(" ")[0] for log in logs for line in log.read_text().splitlines())
        return lines["began"] - lines["ended"]

    def replicas(self, application: str) -> list[int]:
        """The process ids of an application's replicas that run, as the controller has it and the machine; needs
        `joined`.
        """
        from ray.serve.context import _get_global_client

        found = _get_global_client().get_serve_details()["applications"].get(application, {})
        deployments = found.get("deployments", {}).values()
        running = (r["pid"] for d in deployments for r in d["replicas"] if r["state"] == "RUNNING")
        return [pid for pid in running if psutil.pid_exists(pid)]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """With this process as a driver on the product's cluster."""
        raylet = next(c for c in psutil.Process(self.process.pid).children(recursive=True) if c.name() == "raylet")
        address = next(a for a in raylet.cmdline() if a.startswith("--gcs-address=")).partition("=")[2]
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        import ray
        from ray.serve.context import _set_global_client

        ray.init(address, namespace="serve", log_to_driver=False, logging_level="error")
        try:
            yield
        finally:
            ray.shutdown()
            _set_global_client(None)  # Serve would go on asking this product's controller

    def workers(self, title: str) -> list[psutil.Process]:
        """Its processes of that title that are up."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE and title in " ".join(process.cmdline()[:1]):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def memory(self, title: str) -> int:
        """Bytes of its own that the processes of that title have, all together."""
        return sum(process.memory_full_info().uss for process in self.workers(title))


@contextmanager
def product(tree: dict[str, Any], key: str = "", **environment: str) -> Iterator[Product]:
    """Up and ready. `key` is for where its catalog asks for one."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends the drill ends the product
    home = Path(tree["home"])
    home.mkdir(parents=True, exist_ok=True)
    path, log = home / "catalog.yaml", home / "serve.log"
    path.write_text(yaml.safe_dump(tree))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve", "--no-pull", f"--catalog={path}"],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
            | {"PYTHONPATH": f"{ROOT / 'tests'}", "MULTIMOE_HOME": str(home), "RAY_AUTH_TOKEN": TOKEN}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    found = Product(f"http://127.0.0.1:{tree['server']['port']}", home, process, log, key)
    try:
        wanted = {spec["name"]: spec["serve"]["num_replicas"] for spec in tree["experts"]}
        try:
            until(lambda: _up(found, wanted), START_SECONDS, "the product is up")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{log.read_text()[-4000:]}") from error
        yield found
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """As Ctrl-C would; what does not end in time is killed with all it started. Ray gives each a group of its own."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for left in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(left.pid) == process.pid:
                left.kill()


def _up(found: Product, wanted: dict[str, int]) -> bool:
    if found.process.poll() is not None:
        raise RuntimeError(f"it ended while starting:\n{found.log.read_text()[-4000:]}")
    try:
        headers = {"authorization": f"Bearer {found.key}"} if found.key else None
        experts = httpx.get(f"{found.url}/v1/experts", headers=headers, timeout=10).json()["data"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False
    there = {expert["name"]: expert["replicas"] for expert in experts}
    return all(there.get(name, 0) >= count for name, count in wanted.items())


@contextmanager
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mm-drill-") as folder:
        yield Path(folder)


def until(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds it took. Raises TimeoutError."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - began


@dataclass(frozen=True)
class Seen:
    """One question's fate: `outcome` "ok", "wrong", "broken stream" (ended by an error frame), or what went wrong."""

    at: float
    seconds: float
    outcome: str
    streamed: bool
    degraded: bool = False
    version: int = -1


@dataclass
class Load:
    """Questions at an even rate, every `stream_each`-th streamed, by way of the openai client with its own retries."""

    url: str
    rate: float
    stream_each: int = 3
    retries: int = 2
    timeout: float = 60.0
    extra: dict[str, Any] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    raw: Counter[str] = field(default_factory=Counter)  # what came over the wire, before any retry
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    async def _run(self) -> None:
        transport = Counting(self.raw)
        client = httpx.AsyncClient(transport=transport, timeout=self.timeout, limits=httpx.Limits(max_connections=512))
        async with openai.AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key="none",
            max_retries=self.retries,
            timeout=self.timeout,
            http_client=client,
        ) as api:
            asked: set[asyncio.Task[None]] = set()
            number = 0
            begin = time.monotonic()
            while not self._over.is_set():
                number += 1
                task = asyncio.create_task(self._ask(api, number))
                asked.add(task)
                task.add_done_callback(asked.discard)
                await asyncio.sleep(max(0.0, begin + number / self.rate - time.monotonic()))
            await asyncio.gather(*asked)

    async def _ask(self, api: openai.AsyncOpenAI, number: int) -> None:
        text = f"q{number:06d} what does the ant say here, and what the bee {number * 7919 % 10007}"
        streamed = number % self.stream_each == 0
        began, at = time.monotonic(), time.time()
        wish: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "model": "multimoe"}
        try:
            fate = await (self._stream if streamed else self._whole)(api, wish, text)
        except openai.APIStatusError as error:
            fate = {"outcome": str(error.status_code)}
        except openai.APIConnectionError as error:
            fate = {"outcome": type(error).__name__}
        except openai.APIError:  # an error frame
            fate = {"outcome": "broken stream"}
        except httpx.HTTPError as error:  # cut in the middle
            fate = {"outcome": "cut stream" if streamed else type(error).__name__}
        self.seen.append(Seen(at, time.monotonic() - began, streamed=streamed, **fate))

    async def _whole(self, api: openai.AsyncOpenAI, wish: dict[str, Any], text: str) -> dict[str, Any]:
        sent = await api.chat.completions.with_raw_response.create(**wish, extra_body=self.extra)
        reply = json.loads(sent.text)
        routing, version = reply["x_multimoe"], reply["x_multimoe"]["gate"]["version"]
        right = reply["choices"][0]["message"]["content"] == text and sent.headers["x-multimoe-gate"] == str(version)
        mixed = reply["system_fingerprint"] != f"gate-{version}"
        outcome = "mixed" if mixed else "ok" if right else "wrong"
        return {"outcome": outcome, "degraded": routing["degraded"], "version": version}

    async def _stream(self, api: openai.AsyncOpenAI, wish: dict[str, Any], text: str) -> dict[str, Any]:
        words, versions, finish, degraded = "", set(), None, False
        async for chunk in await api.chat.completions.create(**wish, stream=True, extra_body=self.extra):
            if chunk.choices:
                words += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
            versions.add(chunk.system_fingerprint)
            routing = (chunk.model_extra or {}).get("x_multimoe")
            if routing:
                versions.add(f"gate-{routing['gate']['version']}")
                degraded = routing["degraded"]
        if finish is None:
            return {"outcome": "cut stream"}
        outcome = "mixed" if len(versions) != 1 else "ok" if words == text else "wrong"
        return {"outcome": outcome, "degraded": degraded, "version": int(str(versions.pop()).removeprefix("gate-"))}

    def outcomes(self) -> Counter[str]:
        return Counter(seen.outcome for seen in self.seen)

    def failed(self, streams: bool = True) -> int:
        """Those that ended neither right nor, of streams, by an honest error frame."""
        return sum(s.outcome not in ("ok", "broken stream") for s in self.seen if streams or not s.streamed)

    def p99(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Seconds, of those asked in that time that were answered."""
        took = [s.seconds for s in self.seen if since <= s.at < until and s.outcome == "ok"]
        return float(np.quantile(took, 0.99)) if took else float("inf")


class Counting(httpx.AsyncHTTPTransport):
    """Counts every answer and every broken line as they are, whatever the client then makes of it."""

    def __init__(self, raw: Counter[str]) -> None:
        super().__init__(limits=httpx.Limits(max_connections=512, max_keepalive_connections=64))
        self.raw = raw

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await super().handle_async_request(request)
        except httpx.TransportError as error:
            self.raw[type(error).__name__] += 1
            raise
        self.raw[str(response.status_code) + (await _code(response) if response.is_error else "")] += 1
        return response


async def _code(response: httpx.Response) -> str:
    try:
        return f" {json.loads(await response.aread())['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return " not ours"
