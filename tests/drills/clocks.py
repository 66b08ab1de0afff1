"""A wall clock that jumps or stands still (T37) under a gateway that answers; and how old what is installed is.

The gateway is a real one, with its store, keys and limits, in a process of its own whose clock alone is moved.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from packaging.version import Version

from drills.row import Row, Scale

JUMPS = (  # seconds that the clock is off, and whether it runs
    ("on time", 0.0, True),
    ("a day back", -86_400.0, True),
    ("an hour on", 3_600.0, True),
    ("a leap second", -1.0, True),
    ("standing still", 0.0, False),
    ("on time again", 0.0, True),
)
FLOORS = {  # the first versions without the holes that are known of
    "ray": "2.54",
    "starlette": "1.3.0",
    "python-multipart": "0.0.27",
    "gradio": "6.20",
    "safetensors": "0.8.0",
    "fastapi": "0.163",
    "uvicorn": "0.54",
    "torch": "2.10",
}
WISHED = {"pillow": "13.0.0"}  # which Gradio does not allow yet
NEVER = ("litellm", "pysqlite3-binary", "fastapi-api-key")


@dataclass
class House:
    """A gateway, and the hand on its clock."""

    process: "subprocess.Popen[str]"
    url: str
    key: str
    brief: str

    def turn(self, away: float, ticks: bool) -> float:
        """How far its clock is from ours then, in s, by its own word."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps([away, ticks])}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline()) - time.time()


@contextmanager
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="mm-clock-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "drills._clock_house", f"{folder}/home"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            yield House(process, **json.loads(process.stdout.readline()))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()


@dataclass
class Seen:
    """What came of questions and ratings while the clock stood one way."""

    asked: Counter[int]
    rated: Counter[int]
    impossible: list[float]  # durations told that were negative, or longer than the client waited, in s
    brief: int  # the status that a key gets that expires half an hour after the start


def jumps(scale: Scale) -> Iterator[Row]:
    """Each way the clock may go wrong, while questions are asked and answers rated."""
    seconds = 0.5 if scale == "quick" else 5.0
    with house() as here, httpx.Client(base_url=here.url, timeout=30, trust_env=False) as client:
        client.headers["authorization"] = f"Bearer {here.key}"
        first = _ask(client)[1]["id"]
        _rate(client, first, 1)
        for name, away, ticks in JUMPS:
            off = here.turn(away, ticks)
            seen = _traffic(here, client, seconds)
            failed = {status: n for status, n in (seen.asked + seen.rated).items() if status >= 300}
            tried = f"{seen.asked.total()} questions, {seen.rated.total()} ratings; its clock {off:+.0f} s"
            yield Row("T37", f"clock {name}: refused or failed", tried, f"{failed or 0}", "0", not failed)
            figure, met = f"{len(seen.impossible)}", not seen.impossible
            yield Row("T37", f"clock {name}: impossible durations", tried, figure, "0", met)
            if away < -60:
                yield _rated_again(client, first)
            if away > 60:
                what, met = "a key whose half hour is over is refused", seen.brief == 401
                yield Row("T37", what, "the clock an hour on", f"{seen.brief}", "401", met, control=True)
            else:
                yield Row("T37", f"clock {name}: that key", "", f"{seen.brief}", "200", seen.brief == 200)
        yield _storm(here, client, seconds)


def supply(scale: Scale) -> Iterator[Row]:
    """What is installed, against the first versions without known holes; an advisory service need not be reachable."""
    behind = {name: version(name) for name, least in FLOORS.items() if Version(version(name)) < Version(least)}
    yield Row("T37", "packages older than their floor", f"{len(FLOORS)} floors", f"{behind or 0}", "0", not behind)
    behind = {name: version(name) for name, least in WISHED.items() if Version(version(name)) < Version(least)}
    yield Row("T37", "image decoder older than its floor", "pillow >= 13", f"{behind or 0}", "0", not behind)
    pinned = {line.partition("==")[0].lower() for line in CONSTRAINTS.read_text().splitlines()}
    found = sorted(pinned & set(NEVER))
    yield Row("T37", "packages that were or are compromised", ", ".join(NEVER), f"{found or 0}", "0", not found)


CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
DRILLS = (jumps, supply)


def _traffic(here: House, client: httpx.Client, seconds: float) -> Seen:
    seen = Seen(Counter(), Counter(), [], 0)
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        began = time.monotonic()
        status, answer = _ask(client)
        waited = time.monotonic() - began
        seen.asked[status] += 1
        if status == 200:
            told = [ms / 1000 for ms in answer["x_multimoe"]["timing_ms"].values()]
            seen.impossible += [s for s in told if not 0 <= s <= waited]
            seen.rated[_rate(client, answer["id"], 1)] += 1
    seen.brief = client.get("/models", headers={"authorization": f"Bearer {here.brief}"}).status_code
    return seen


def _storm(here: House, client: httpx.Client, seconds: float) -> Row:
    """The clock jumps while requests are under way: a duration taken from it would be a day long, or less than none."""
    over, turns = threading.Event(), 0

    def shake() -> None:
        nonlocal turns
        while not over.wait(0.005):
            here.turn(86_400.0 * (-1) ** turns, ticks=True)
            turns += 1

    with ThreadPoolExecutor(1) as hand:
        shaking = hand.submit(shake)
        seen = _traffic(here, client, seconds)
        over.set()
        shaking.result()
    here.turn(0.0, ticks=True)
    failed = {status: n for status, n in (seen.asked + seen.rated).items() if status >= 300}
    tried = f"{seen.asked.total()} questions, {turns} jumps of two days"
    figure = f"{failed or 0} failed, {len(seen.impossible)} durations impossible"
    what = "clock jumping to and fro in mid-request"
    return Row("T37", what, tried, figure, "0, 0", not failed and not seen.impossible and turns > seen.asked.total())


def _rated_again(client: httpx.Client, id: str) -> Row:
    """The last word counts, though its clock says that it was the first."""
    _rate(client, id, 0)
    scores = [rating["score"] for rating in client.get("/feedback", params={"completion_id": id}).json()["data"]]
    return Row("T37", "rated 1, then 0 with the clock a day back", "", f"{scores}", "[0]", scores == [0])


def _ask(client: httpx.Client) -> tuple[int, Any]:
    body = {"model": "multimoe", "messages": [{"role": "user", "content": "one two three"}]}
    reply = client.post("/chat/completions", json=body)
    return reply.status_code, reply.json()


def _rate(client: httpx.Client, id: str, score: int) -> int:
    return client.post("/feedback", json={"completion_id": id, "score": score, "user": "ann"}).status_code
