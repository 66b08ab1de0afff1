"""What each expert gives through the gateway, beside its bare engine loop: the same engine, without Ray and HTTP.

    python benchmarks/throughput.py [--experts chat vision-fast] [--callers 1 4 16] [--seconds 3] [--rounds 4]

Starts the product with one replica of each expert and asks it by name (`multimoe/NAME`; chat streams) with questions
made on the spot. The engine (`engine_loop.py`) has a process of its own and is handed the same questions back to back,
already decoded, at the batch size that suits it best; and once more, decoding JSON, base64 and media itself. All take
turns in every round. A ratio is the geometric mean of the rounds', with a 95 % interval (Student's t).

The product shares the machine's cores with the callers. So beside the rates stands the processor time a request (or
a token) costs: the engine's alone, the replica's, and what gateway, gate (it embeds what a named expert is asked, for
its ratings to teach), HTTP proxy and the rest of Ray add. Where the engine works in batches, a second replica with
batches of one says what batching is worth. Linux only.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from scipy import stats

from gateway.deployment.launch import Step, running
from multimoe.config import Catalog, ExpertSpec, Limits, load
from multimoe.media import decode_audio, encode_wav
from multimoe.messages import SAMPLE_RATE

GOAL = 0.9  # of the engine's own throughput
TOKENS = 48  # that an answer may have
ALONE = "-alone"  # ends the name of an expert's double that works without batches
TICKS = os.sysconf("SC_CLK_TCK")
PARTS = ("replica", "gateway", "gate", "proxy", "ray")  # the product's processes, in the order their costs are shown

QUESTIONS = (
    "What is the capital of France?",
    "Explain how a bicycle stays upright.",
    "Write a short poem about the sea.",
    "Why is the sky blue in the day and red at dusk?",
    "Give me three tips for a job interview.",
    "How does a vaccine work?",
    "Tell me a story about a dog that could fly.",
    "What should I cook with rice, eggs and spinach?",
)
REVIEWS = (
    "An awful film: two hours of my life that I will never get back.",
    "I loved every minute of it, and the ending is wonderful!",
    "The parcel came on Tuesday. It holds a lamp and a cable.",
    "Great battery, but the screen is dim and the support was rude.",
)
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "If it rains tomorrow we shall stay at home and read.",
    "Please send the report to the office before Friday.",
    "She sells sea shells by the sea shore.",
)
LINES = (("FRESH COFFEE", "OPEN DAILY"), ("NO PARKING", "ANY TIME"), ("PLATFORM 9", "DEPARTS 10:45"))
TUNES = ((60, 64, 67, 72), (62, 65, 69, 65), (57, 60, 64, 69))

Body = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """What one stretch of load came to: answers, tokens (or answers again), and processor seconds by part."""

    done: int
    units: int
    seconds: float
    cpu: dict[str, float]
    took_ms: tuple[float, ...] = ()
    first_ms: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        return self.units / self.seconds


Loads = dict[str, list[Load]]  # by who bore it, a round after the other


# --- what is asked ---


def questions(spec: ExpertSpec) -> list[Body]:
    """Chat bodies for the expert, made on the spot."""
    contents: list[list[Body]] = [[{"type": "text", "text": text}] for text in _texts(spec)]
    if "image" in spec.inputs:
        contents = [[{"type": "image_url", "image_url": {"url": url}}] for url in _pictures(spec)]
    elif "audio" in spec.inputs:
        contents = [[{"type": "input_audio", "input_audio": {"data": d, "format": "wav"}}] for d in _recordings(spec)]
    body = {"model": f"multimoe/{spec.name}", "max_tokens": TOKENS, "temperature": 0}
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if spec.output == "text" else {}
    return [{**body, **streamed, "messages": [{"role": "user", "content": content}]} for content in contents]


def _texts(spec: ExpertSpec) -> Sequence[str]:
    if spec.name == "content-type":
        lines = Path(__file__).read_text().splitlines()
        return ["\n".join(lines[at : at + 40]) for at in range(0, 160, 40)]
    return QUESTIONS if spec.output == "text" else REVIEWS


def _pictures(spec: ExpertSpec) -> list[str]:
    if spec.output == "words":
        pictures = [_sign(lines) for lines in LINES]
    else:
        taken = (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
        pictures = [Image.fromarray(pixels) for pixels in taken]
    return [f"data:image/jpeg;base64,{_base64(_jpeg(picture))}" for picture in pictures]


def _sign(lines: Sequence[str]) -> Image.Image:
    sign = Image.new("RGB", (640, 320), (246, 240, 220))
    draw = ImageDraw.Draw(sign)
    for line, y in zip(lines, (100, 220), strict=True):
        draw.text((320, y), line, fill=(40, 30, 25), font=ImageFont.load_default(64), anchor="mm")
    return sign


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def _recordings(spec: ExpertSpec) -> list[str]:
    if spec.output == "transcript":
        return [_base64(_spoken(sentence)) for sentence in SENTENCES]
    return [_base64(encode_wav(_melody(tune))) for tune in TUNES]


def _spoken(sentence: str) -> bytes:
    command = ["espeak-ng", "-v", "en-us", "-s", "160", "--stdout", sentence]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    return encode_wav(decode_audio(wav, Limits()).samples)


def _melody(notes: Sequence[int]) -> NDArray[np.float32]:
    """MIDI numbers plucked one after the other, 0.7 s each, with five harmonics."""
    time = np.arange(round(0.7 * SAMPLE_RATE)) / SAMPLE_RATE
    fading = 0.3 * np.minimum(time / 0.01, 1) * np.exp(-2 * time)
    pitches = [440 * 2 ** ((note - 69) / 12) for note in notes]
    plucked = [sum(np.sin(2 * np.pi * pitch * n * time) / n**1.5 for n in range(1, 6)) for pitch in pitches]
    return np.concatenate([(fading * wave).astype(np.float32) for wave in plucked])


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- the product under load ---


def measured_catalog(catalog: Catalog, names: Sequence[str], doubled: bool, port: int, home: Path) -> Catalog:
    """One replica of each expert, always up, and where `doubled` of each that batches a second one that does not."""
    chosen = [spec for spec in catalog.experts if not names or spec.name in names]
    fixed = [
        spec.model_copy(update={"serve": spec.serve.model_copy(update={"num_replicas": 1, "max_queued_requests": -1})})
        for spec in chosen
    ]
    alone = {"batch": catalog.experts[0].batch.model_copy(update={"size": 1})}
    doubles = [
        spec.model_copy(update={"name": spec.name + ALONE, **alone}) for spec in fixed if doubled and _batches(spec)
    ]
    tree = catalog.model_dump(mode="json") | {"home": str(home)}
    tree["experts"] = [spec.model_dump(mode="json") for spec in [*fixed, *doubles]]
    tree["server"] = {"host": "127.0.0.1", "port": port}
    return Catalog.model_validate(tree)


def _batches(spec: ExpertSpec) -> bool:
    return spec.output != "text" and spec.batch.size > 1


async def load_of(url: str, name: str, bodies: Sequence[bytes], callers: int, seconds: float) -> Load:
    """`callers` ask the expert, each again as soon as it has its answer, until `seconds` have passed."""
    turn, took, first, units = count(), list[float](), list[float](), list[int]()
    before, began = processor_seconds(name), time.perf_counter()

    async def caller(client: aiohttp.ClientSession) -> None:
        while not took or time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            async with client.post("/v1/chat/completions", data=bodies[next(turn) % len(bodies)]) as reply:
                reply.raise_for_status()
                heard, tokens = await _read(reply)
            took.append((time.perf_counter() - asked) * 1000)
            first.append((heard - asked) * 1000)
            units.append(tokens)

    headers, limit = {"content-type": "application/json"}, aiohttp.ClientTimeout(300)
    async with aiohttp.ClientSession(url, headers=headers, timeout=limit) as client:
        await asyncio.gather(*(caller(client) for _ in range(callers)))
    taken = time.perf_counter() - began
    after = processor_seconds(name)
    cpu = {part: after[part] - before[part] for part in (*PARTS, "callers")}
    return Load(len(took), sum(units), taken, cpu, tuple(took), tuple(first))


async def _read(reply: aiohttp.ClientResponse) -> tuple[float, int]:
    """When the first words came, and how many tokens there were; 1 for an answer that is not streamed."""
    if reply.content_type == "application/json":
        await reply.read()
        return time.perf_counter(), 1
    heard, tokens = 0.0, 0
    async for line in reply.content:
        if line.startswith(b"data: {"):
            heard = heard or (time.perf_counter() if b'"delta":{"content"' in line else 0.0)
            usage = json.loads(line[6:]).get("usage") or {}
            tokens = usage.get("completion_tokens", tokens)
    return heard, tokens


def processor_seconds(expert: str) -> dict[str, float]:
    """What the processes beneath this one have used so far: the expert's replica, gateway, proxy, the rest of Ray."""
    used: dict[str, float] = defaultdict(float)
    parents: dict[int, list[int]] = defaultdict(list)
    times: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(fields[1])].append(int(path.parent.name))
        times[int(path.parent.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        used[_part(pid, expert)] += times.get(pid, 0.0)
        waiting += parents[pid]
    return used


def _part(pid: int, expert: str) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return "gone"
    marks = {
        f"expert-{expert}:": "replica",
        "gateway:Gateway": "gateway",
        "gate:Gate": "gate",
        "ProxyActor": "proxy",
        "engine_loop": "engine",
    }
    found = next((part for mark, part in marks.items() if mark in command), "ray")
    return "callers" if pid == os.getpid() else found


# --- the engine by itself ---


class Engine:
    """`engine_loop.py` in a process of its own, at the size that gave most in a short trial."""

    def __init__(self, spec: ExpertSpec, weights: Path, bodies: Sequence[bytes]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("engine_loop.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        told = {"spec": spec.model_dump(mode="json"), "weights": str(weights), "bodies": [b.decode() for b in bodies]}
        sizes = self._ask(told)["sizes"]
        tried = {size: self.load(False, 1.0, size).rate for size in sizes}
        self.size = max(tried, key=lambda size: tried[size])

    def load(self, decode: bool, seconds: float, size: int | None = None) -> Load:
        told = self._ask({"decode": decode, "seconds": seconds, "size": size or self.size})
        return Load(int(told["done"]), int(told["units"]), told["seconds"], {"engine": told["cpu"]})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, told: Body) -> Body:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(told), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine's process ended: {self._process.wait()}")
        reply: Body = json.loads(line)
        return reply


# --- one expert, measured ---


def measure(url: str, spec: ExpertSpec, catalog: Catalog, options: argparse.Namespace) -> Loads:
    callers, seconds, rounds = options.callers, options.seconds, options.rounds
    double = any(other.name == spec.name + ALONE for other in catalog.experts)
    bodies = [json.dumps(body).encode() for body in questions(spec)]
    doubled = [body.replace(spec.name.encode(), (spec.name + ALONE).encode(), 1) for body in bodies]
    engine = Engine(spec, catalog.weights, bodies)
    turns: dict[str, Callable[[], Load]] = {
        f"engine, {engine.size} at once": lambda: engine.load(False, seconds),
        "engine that decodes": lambda: engine.load(True, seconds),
        **{_callers(n): partial(_asked, url, spec.name, bodies, n, seconds) for n in callers},
    }
    if double:
        turns["engine, no batches"] = lambda: engine.load(False, seconds, 1)
        most = max(callers)
        turns[f"{_callers(most)}, no batches"] = lambda: _asked(url, spec.name + ALONE, doubled, most, seconds)
    loads: Loads = defaultdict(list)
    with closing(engine):
        for name, sent in ((spec.name, bodies), (spec.name + ALONE, doubled))[: 1 + double]:
            _asked(url, name, sent, 4, 1.0)  # warm
        for _ in range(rounds):
            for who, bear in turns.items():
                loads[who].append(bear())
    return loads


def _callers(count: int) -> str:
    return f"{count} caller" + "s" * (count > 1)


def _asked(url: str, name: str, bodies: Sequence[bytes], callers: int, seconds: float) -> Load:
    return asyncio.run(load_of(url, name, bodies, callers, seconds))


def ratio(ours: Sequence[Load], theirs: Sequence[Load]) -> tuple[float, float, float]:
    """Of the rates, round by round: geometric mean and its 95 % interval."""
    logs = np.log([one.rate / other.rate for one, other in zip(ours, theirs, strict=True)])
    spread = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)) if len(logs) > 1 else np.nan
    middle, low, high = np.exp([logs.mean(), logs.mean() - spread, logs.mean() + spread])
    return float(middle), float(low), float(high)


def summary(loads: Loads) -> dict[str, Body]:
    """A row for each who bore a load. Processor time in ms a request or token; ratios are to the engine's own rate."""
    bare, decoding = list(loads)[:2]
    rows = {}
    for who, rounds in loads.items():
        took = [ms for load in rounds for ms in load.took_ms]
        first = [ms for load in rounds for ms in load.first_ms]
        done, units = sum(load.done for load in rounds), sum(load.units for load in rounds)
        rows[who] = {
            "requests": done,
            "units": units,
            "rate": statistics.median(load.rate for load in rounds),
            "p50_ms": statistics.median(took) if took else None,
            "p95_ms": float(np.quantile(took, 0.95)) if took else None,
            "first_ms": statistics.median(first) if first else None,
            "cpu_ms": {part: 1000 * sum(load.cpu[part] for load in rounds) / units for part in rounds[0].cpu},
            "to_engine": ratio(rounds, loads[bare]),
            "to_decoding_engine": ratio(rounds, loads[decoding]),
        }
    return rows


def show(spec: ExpertSpec, rows: dict[str, Body], console: Console) -> None:
    unit = "tokens/s" if spec.output == "text" else "requests/s"
    table = Table(
        "",
        unit,
        "p50 ms",
        "p95",
        "first word",
        f"CPU ms a {unit.split('s/')[0]}",
        "to engine",
        "decoding",
        title=spec.name,
    )
    for who, row in rows.items():
        cpu = " + ".join(f"{row['cpu_ms'][part]:.1f}" for part in PARTS if part in row["cpu_ms"])
        latencies = [
            row[key] for key in ("p50_ms", "p95_ms", "first_ms" if spec.output == "text" else "-") if key in row
        ]
        cells = [f"{ms:.0f}" if ms else "" for ms in [*latencies, None]][:3]
        middle, low, high = row["to_engine"]
        ratios = [f"{middle:.0%} ({low:.0%} to {high:.0%})", f"{row['to_decoding_engine'][0]:.0%}"]
        table.add_row(who, f"{row['rate']:.1f}", *cells, cpu or f"{row['cpu_ms']['engine']:.1f}", *ratios)
    console.print(table)


def verdicts(reports: dict[str, dict[str, Body]], console: Console) -> None:
    """The product at its busiest against the goal: by the clock, and by processor time, which other work disturbs less.

    By processor time: what the engine alone would have answered in the replica's, and in all the product's.
    """
    columns = (
        "expert",
        "by the clock",
        f"{GOAL:.0%}",
        "decoding",
        f"{GOAL:.0%}",
        "replica's CPU",
        f"{GOAL:.0%}",
        "all CPU",
    )
    table = Table(*columns, "batches", "in the engine")
    for name, rows in reports.items():
        bare = next(iter(rows.values()))["cpu_ms"]["engine"]
        busiest = [who for who in rows if who.endswith(("caller", "callers"))][-1]
        row = rows[busiest]
        shares = (row["to_engine"][0], row["to_decoding_engine"][0], bare / row["cpu_ms"]["replica"])
        cells = [cell for share in shares for cell in (f"{share:.0%}", "met" if share >= GOAL else "not met")]
        everything = f"{bare / sum(row['cpu_ms'][part] for part in PARTS):.0%}"
        gains = []
        if f"{busiest}, no batches" in rows:
            pairs = ((row, rows[f"{busiest}, no batches"]), (next(iter(rows.values())), rows["engine, no batches"]))
            gains = [f"{one['rate'] / other['rate']:.2f}x" for one, other in pairs]
        table.add_row(name, *cells, everything, *gains)
    console.print(table)


def main() -> None:
    options = _arguments()
    console = Console(width=130)
    if shutil.which("espeak-ng") is None:
        raise SystemExit("speech is spoken by espeak-ng: apt-get install espeak-ng")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the engine by itself as in its replica
    chosen = load(options.catalog)
    reports: dict[str, dict[str, Body]] = {}
    with tempfile.TemporaryDirectory() as home:
        catalog = measured_catalog(chosen, options.experts, options.batching, options.port, Path(home))
        with running(catalog, _quiet) as url:
            for spec in catalog.experts:
                if not spec.name.endswith(ALONE):
                    reports[spec.name] = summary(measure(url, spec, catalog, options))
                    show(spec, reports[spec.name], console)
    verdicts(reports, console)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1))


def _quiet(_: list[Step]) -> None:
    pass


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--catalog", type=Path, default=Path("deploy/local.yaml"))
    arguments.add_argument("--experts", nargs="+", default=[])
    arguments.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16])
    arguments.add_argument("--seconds", type=float, default=3.0)
    arguments.add_argument("--rounds", type=int, default=4)
    arguments.add_argument("--batching", action=argparse.BooleanOptionalAction, default=True)
    arguments.add_argument("--port", type=int, default=8770)
    arguments.add_argument("--json", type=Path)
    return arguments.parse_args()


if __name__ == "__main__":
    main()
