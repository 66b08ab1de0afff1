"""Gateways that start in milliseconds and are killed without a word: one process loads everything and forks each.

What is served is the whole API of `api_world` over a store that the test names.
"""

import http.client
import json
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

LOADED = ("api_world", "uvicorn", "multimoe.gate", "multimoe.golden", "gateway.change.retraining")
FAST = {"limits": {"ratings_per_minute": 10**6}}
BROKEN = (OSError, http.client.HTTPException, ValueError)  # what a client sees of a gateway that dies


@dataclass
class Nursery:
    """Of one store."""

    pipe: Connection

    @contextmanager
    def gateway(self) -> Iterator["Gateway"]:
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.pipe.send(listener)
        gateway = Gateway(self.pipe.recv(), listener.getsockname()[1])
        listener.close()
        try:
            yield gateway
        finally:
            gateway.kill()


@dataclass
class Gateway:
    pid: int
    port: int
    answers: list[tuple[int, Any]] = field(default_factory=list)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def line(self, timeout_s: float = 60.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def ask(self, text: str = "hello") -> dict[str, Any]:
        """Until it answers: on a busy machine its first look at the keys may come too late for the first question."""
        for _ in range(20):
            status, answer, _headers = post(self.line(), "/v1/chat/completions", asked(text))
            if status != 503:
                break
        assert status == 200, answer
        return answer


def asked(text: str) -> dict[str, Any]:
    return {"model": "multimoe/parrot", "messages": [{"role": "user", "content": text}]}


def post(line: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
    line.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = line.getresponse()
    return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}


def rate_until_it_dies(gateway: Gateway, completion: str, rater: str, acknowledged: list[tuple[str, str]]) -> None:
    """One rating after the other; those answered 201 are noted."""
    line = gateway.line(10)
    with suppress(*BROKEN):
        for number in range(10**6):
            user = f"{rater}-{number}"
            status, _, _ = post(line, "/v1/feedback", {"completion_id": completion, "score": 1, "user": user})
            if status == 201:
                acknowledged.append((completion, user))
            else:
                time.sleep(0.01)
    line.close()


def raters(
    gateway: Gateway, completion: str, name: str, count: int, noted: list[tuple[str, str]]
) -> list[threading.Thread]:
    threads = [
        threading.Thread(target=rate_until_it_dies, args=(gateway, completion, f"{name}-{n}", noted), daemon=True)
        for n in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads


def forks() -> ForkServerContext:
    """Processes that begin with everything loaded."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["api_world", "uvicorn", "multimoe.retrain", "multimoe.golden", "gateway.change.retraining"]
    )
    return context


@contextmanager
def nursery(home: Path, url: str, answer_s: float = 0.0) -> Iterator[Nursery]:
    context = forks()
    ours, theirs = context.Pipe()
    process = context.Process(target=_bear, args=(theirs, str(home), url, answer_s), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(120), "the gateways' parent did not start"
        assert ours.recv() == "ready"
        yield Nursery(ours)
    finally:
        ours.close()
        process.kill()
        process.join()


def _bear(pipe: Connection, home: str, url: str, answer_s: float) -> None:
    """Load everything once, then a gateway per listener that comes."""
    import uvicorn
    from api_world import CATALOG, World

    logging.disable(logging.CRITICAL)  # what fails here is meant to
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # collected by the system
    slowly = {"name": "parrot", "options": {"delay_s": answer_s}}
    experts = [expert | slowly if expert["name"] == "parrot" else expert for expert in CATALOG["experts"]]
    world = World(Path(home), store={"url": url}, experts=experts, **FAST)
    world.log.database.engine.dispose()
    pipe.send("ready")
    while True:
        try:
            listener = pipe.recv()
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            pipe.close()
            server = uvicorn.Server(uvicorn.Config(world.app, log_level="critical", lifespan="off"))
            server.run(sockets=[listener])
            os._exit(0)
        listener.close()
        pipe.send(pid)
