"""Limits of keys under attack: several gateways in processes of their own, a store that dies, clocks that jump.

And what keys and ratings have to stand beside: guessing by time, greedy parameters, ratings by the thousand.
"""

import asyncio
import multiprocessing
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from api_world import World, said, served
from postgres import running
from sqlalchemy import text

from drills.row import Row, Scale
from gateway.access.meter import Meter
from gateway.access.quota import Allowance, Spent
from multimoe.errors import Unavailable
from multimoe.feedback import FeedbackLog, Key, Quota
from multimoe.feedback.counters import Counters
from multimoe.feedback.keys import matching

SPAWN = multiprocessing.get_context("spawn")
R = 300  # requests a minute
VARIANTS = 997  # strings a group, so that the place of one string in a table says nothing
LETTERS = string.ascii_letters + string.digits
LEAK = 4.5  # |t| above which a difference in time is there
JSON = {"content-type": "application/json"}


# T17: exactly so many, whoever counts


def gateway(url: str, name: str, clients: int, tries: int, start: float, told: Any, alone: bool = False) -> None:
    """One gateway's process. `alone` counts for itself, as where the store is away."""
    asyncio.run(_gateway(url, name, clients, tries, start, told, alone))


async def _gateway(url: str, name: str, clients: int, tries: int, start: float, told: Any, alone: bool) -> None:
    meter, allowed, took = Meter(Counters(url)), {"requests_per_minute": float(R)}, list[float]()
    if alone:
        meter._counters.update = _away  # type: ignore[method-assign]
    await meter.standing(name, allowed)
    left, admitted = tries, 0

    async def client() -> None:
        nonlocal left, admitted
        while left > 0:
            left -= 1
            began = time.perf_counter()
            standing = await meter.admit(name, allowed)
            took.append(time.perf_counter() - began)
            if not standing.refused:
                admitted += 1
                meter.settle(name, allowed, Spent())
            await asyncio.sleep(random.random() * 0.02)  # clients that do something else in between

    await asyncio.sleep(max(0.0, start - time.time()))
    await asyncio.gather(*(client() for _ in range(clients)))
    told.put((admitted, took))
    meter.close()


def _away(*_: Any) -> Any:
    raise Unavailable("away")


def admitted_by(url: str, name: str, gateways: int, alone: bool = False) -> tuple[int, list[float]]:
    told = SPAWN.Queue()
    start = time.time() + 8
    arguments = (url, name, 64 // gateways, 2 * R, start, told, alone)
    processes = [SPAWN.Process(target=gateway, args=arguments) for _ in range(gateways)]
    for process in processes:
        process.start()
    counts = [told.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(30)
    return sum(admitted for admitted, _ in counts), [second for _, took in counts for second in took]


def exact_rate(scale: Scale) -> Iterator[Row]:
    rounds = 3 if scale == "long" else 1
    with tempfile.TemporaryDirectory() as folder:
        sqlite = f"sqlite:///{folder}/log.db"
        yield _exact("SQLite", [admitted_by(sqlite, f"key{i}", 2) for i in range(rounds)])
        admitted, _ = admitted_by(sqlite, "alone", 2, alone=True)
        figure = f"{admitted} of {R}"
        off = abs(admitted - R) > R / 100
        yield Row("T17", "two gateways that do not share", "64 clients", figure, "over ±1 %", off, control=True)
    if scale == "long":
        with running() as server:
            url = server.fresh()
            yield _exact("PostgreSQL", [admitted_by(url, f"key{i}", 2) for i in range(rounds)])


def _exact(store: str, counts: list[tuple[int, list[float]]]) -> Row:
    took = sorted(second for _, seconds in counts for second in seconds)
    figure = (
        f"{', '.join(str(admitted) for admitted, _ in counts)} of {R}; counting took "
        f"p50 {took[len(took) // 2] * 1000:.1f} ms, p99 {took[len(took) * 99 // 100] * 1000:.0f} ms"
    )
    met = all(abs(admitted - R) <= R / 100 for admitted, _ in counts)
    tried = f"2 gateways, 64 clients, {4 * R} tries, x{len(counts)}"
    return Row("T17", f"requests admitted in a window, {store}", tried, figure, f"{R} ± 1 %", met)


def cost_of_counting(scale: Scale) -> Iterator[Row]:
    """What counting adds to one request that comes alone; a flushed commit in the log's own file is the control."""
    rounds = 300 if scale == "long" else 60
    with tempfile.TemporaryDirectory() as folder:
        log = FeedbackLog.open(f"sqlite:///{folder}/log.db")
        alone = asyncio.run(_alone(f"sqlite:///{folder}/log.db", rounds))
        flushed = []
        for i in range(rounds // 3):
            began = time.perf_counter()
            log.create_key(f"k{i}", ["chat"])
            flushed.append(time.perf_counter() - began)
        log.close()
    counted, commit = statistics.median(alone) * 1000, statistics.median(flushed) * 1000
    figure = f"{counted:.2f} ms (p50); a flushed commit {commit:.2f} ms"
    yield Row("T17", "what counting costs a request, SQLite", f"{rounds}", figure, "< 5 ms", counted < 5)


async def _alone(url: str, rounds: int) -> list[float]:
    meter, took = Meter(Counters(url)), []
    allowed: Allowance = {"requests_per_minute": 1e6, "tokens_per_day": 1e9, "concurrent_requests": 100}
    for _ in range(rounds):
        began = time.perf_counter()
        await meter.admit("ann", allowed)
        took.append(time.perf_counter() - began)
        meter.settle("ann", allowed, Spent(tokens=10))
        await asyncio.sleep(0.002)
    meter.close()
    return took


def jumping_clock(scale: Scale) -> Iterator[Row]:
    for step in (3600.0, -3600.0):
        with tempfile.TemporaryDirectory() as folder:
            after, later = asyncio.run(_jumped(f"sqlite:///{folder}/log.db", step))
        figure = f"{after} right after, {later} three minutes later"
        met = after <= R and abs(later - R) <= R / 100
        yield Row("T17", f"clock jumps {step / 3600:+.0f} h", f"{3 * R} tries each", figure, f"≤ {R}, then {R}", met)


async def _jumped(url: str, step: float) -> tuple[int, int]:
    began = 1_800_000_000.0
    clock, counted = [began], []
    for moment in (0.0, step, step + 180):
        clock[0] = began + moment
        meter = Meter(Counters(url, now=lambda: clock[0]), now=lambda: clock[0])
        tries = [await meter.admit("ann", {"requests_per_minute": R}) for _ in range(R + 20)]
        counted.append(sum(not standing.refused for standing in tries))
        meter.close()
    return counted[1], counted[2]


def store_away(scale: Scale) -> Iterator[Row]:
    """PostgreSQL is killed under two gateways; SQLite's counters are held by another program."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/log.db"
        with closing(Counters(url)) as counters:
            counters.update(["x"], lambda windows, now: None)
            with counters._opened().begin():  # holds the writer's place
                yield _away_row("SQLite locked", *asyncio.run(_without_store(url)))
    if scale == "long":
        with running() as server:
            url = server.fresh()
            yield _away_row("PostgreSQL stopped", *asyncio.run(_without_store(url, server.stop)))


async def _without_store(url: str, stop: Callable[[], None] | None = None) -> tuple[int, list[float]]:
    meters, allowed, took = [Meter(Counters(url)) for _ in range(2)], {"requests_per_minute": float(R)}, list[float]()
    if stop is not None:
        for meter in meters:
            await meter.admit("ann", allowed)
        await asyncio.to_thread(stop)
    admitted = 0

    async def counted(meter: Meter) -> None:
        nonlocal admitted
        for _ in range(R // 8):
            began = time.perf_counter()
            standing = await meter.admit("ann", allowed)
            took.append(time.perf_counter() - began)
            admitted += not standing.refused

    await asyncio.gather(*(counted(meter) for meter in meters for _ in range(16)))
    for meter in meters:
        meter.close()
    return admitted, took


def _away_row(what: str, admitted: int, took: list[float]) -> Row:
    figure = f"{admitted} admitted by 2 gateways, slowest {max(took):.2f} s"
    met = R * 0.98 <= admitted <= 2 * R and max(took) < 5
    return Row("T17", f"store away ({what}): own buckets", f"{len(took)} tries", figure, f"{R} to {2 * R}, < 5 s", met)


HAMMER = """
import sys
from multimoe.feedback.counters import Counters, Window
counters, n = Counters(sys.argv[1]), 0
def count(windows, now):
    before = windows.get(("ann", "requests"), Window(0.0))
    windows["ann", "requests"] = Window(0.0, before.used + 1)
    windows["bob", str(before.used % 50)] = Window(before.used)
while True:
    counters.update(["ann", "bob"], count)
    n += 1
    print(n, flush=True)
"""


def killed_while_counting(scale: Scale) -> Iterator[Row]:
    """A gateway that dies in the middle of counting takes no count along and damages nothing."""
    rounds, lost, damaged, counted = (15 if scale == "long" else 2), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/log.db"
        for _ in range(rounds):
            process = subprocess.Popen([sys.executable, "-c", HAMMER, url], stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
            time.sleep(0.1 + random.random() * 0.2)
            process.kill()
            rest = process.stdout.read().split()
            process.wait()
            counted += int(rest[-1]) if rest else 1  # what it said it had counted
            with closing(Counters(url)) as counters:
                kept = counters.update(["ann"], lambda windows, now: windows[("ann", "requests")].used)
                lost += max(0, counted - int(kept))
                counted = int(kept)
                with counters._opened().connect() as connection:
                    damaged += connection.execute(text("PRAGMA integrity_check")).scalar_one() != "ok"
    figure = f"{lost} of {counted} counts lost, {damaged} files damaged"
    yield Row("T17", "gateway killed while it counts", f"{rounds} kills", figure, "0, 0", not lost and not damaged)


# T17: a key that floods


@contextmanager
def gateway_of_keys(quotas: dict[str, Quota]) -> Iterator[tuple[str, dict[str, str]]]:
    """A gateway over HTTP, in this process, and the headers of each key."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "home")
        sent = {name: world.log.create_key(name, ["chat", "rate"], quota=quota)[1] for name, quota in quotas.items()}
        try:
            with served(world) as url:
                yield url.removesuffix("/v1"), {name: f"Bearer {key}" for name, key in sent.items()}
        finally:
            world.services.meter.close()
            world.log.close()


FLOOD = """
import http.client, json, sys, time
host, key, seconds, rate = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
body = json.dumps({"model": "multimoe", "messages": [{"role": "user", "content": "hi"}]})
line, began, took, statuses = http.client.HTTPConnection(host), time.perf_counter(), [], {}
for i in range(int(seconds * rate)):
    time.sleep(max(0.0, began + i / rate - time.perf_counter()))
    start = time.perf_counter()
    line.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", "authorization": key})
    reply = line.getresponse(); reply.read()
    took.append(time.perf_counter() - start)
    statuses[reply.status] = statuses.get(reply.status, 0) + 1
print(json.dumps({"took": took, "statuses": statuses}))
"""


def _asks(url: str, key: str, seconds: float, rate: float) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", FLOOD, url.removeprefix("http://"), key, str(seconds), str(rate)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def _heard(process: "subprocess.Popen[str]") -> dict[str, Any]:
    import json

    out, _ = process.communicate(timeout=120)
    heard: dict[str, Any] = json.loads(out)
    return heard


def fairness(scale: Scale) -> Iterator[Row]:
    """A quiet key asks ten times a second while another, whose minute is used up, asks for twenty times what it may."""
    seconds = 20.0 if scale == "long" else 3.0
    quotas = {"quiet": Quota(requests_per_minute=6000), "noisy": Quota(requests_per_minute=60)}
    with gateway_of_keys(quotas) as (url, keys):
        _heard(_asks(url, keys["noisy"], 2.0, 40.0))
        alone = _heard(_asks(url, keys["quiet"], seconds, 10.0))
        flood = _asks(url, keys["noisy"], seconds, 20.0)
        beside = _heard(_asks(url, keys["quiet"], seconds, 10.0))
        flooded = _heard(flood)
    quiet, loud = sorted(alone["took"]), sorted(beside["took"])
    p99 = [values[int(0.99 * (len(values) - 1))] for values in (quiet, loud)]
    figure = f"p99 {p99[0] * 1000:.0f} ms alone, {p99[1] * 1000:.0f} ms beside; flood heard {flooded['statuses']}"
    yield Row("T17", "a quiet key beside one that floods 20x", f"{len(loud)}", figure, "≤ 1.2x", p99[1] <= 1.2 * p99[0])


# T18: parameters that ask for too much


ODD: tuple[dict[str, Any], ...] = (
    {"n": 10**6},
    {"n": 2**70},
    {"max_tokens": 10**9},
    {"max_completion_tokens": 10**9},
    {"chat_template": "{% for x in range(10**9) %}{% endfor %}"},
    {"chat_template_kwargs": {"a": "b" * 1000}},
    {"guided_regex": "(a+)+$"},
    {"extra_body": {"guided_json": {}}},
    {"logit_bias": {str(i): 100 for i in range(1000)}},
    {"stop": ["x"] * 17},
    {"top_logprobs": 10**6},
    {"best_of": 10**6},
    {"seed": 2**65},
    {"temperature": 1e9},
    {"tools": [{"type": "function", "function": {"name": "f" * 1000, "parameters": {}}}] * 100},
    {"x_multimoe": {"top_k": 10**6}},
    {"x_multimoe": {"strategy": "os.system"}},
    {"user": "u" * 10_000},
)


def greedy_parameters(scale: Scale) -> Iterator[Row]:
    values = 10_000 if scale == "long" else 200
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "home")
        asyncio_rows = asyncio.run(_greedy(world, values))
        world.log.close()
    yield from asyncio_rows


async def _greedy(world: World, values: int) -> list[Row]:
    reached: list[Any] = []
    ask = world.cluster.ask

    def spied(expert: str, request: Any, *more: Any, **named: Any) -> Any:
        reached.append(request)
        return ask(expert, request, *more, **named)

    world.cluster.ask = spied  # type: ignore[method-assign]
    statuses: Counter[int] = Counter()
    async with world.client() as client:
        for odd in ODD:
            statuses[(await client.post("/v1/chat/completions", json=said("hi", **odd))).status_code] += 1
        asked = max((request.max_tokens for request in reached), default=0)
        words = [repr(request) for request in reached]
        leaked = sum(any(sign in word for sign in ("(a+)+", "range(10**9)", "guided", "ffff")) for word in words)
        await _many(client, min(values, 200))
        before = psutil.Process().memory_full_info().uss
        heard = await _many(client, values)
        grown = (psutil.Process().memory_full_info().uss - before) / 2**20
    most = world.catalog.limits.max_tokens
    figure = f"{dict(statuses)}; most tokens an expert was asked for {asked}; foreign fields that reached one {leaked}"
    met = set(statuses) <= {200, 400} and asked <= most and not leaked and bool(reached)
    small = grown <= 32 and max(heard) < 500
    told = f"{dict(heard)}; +{grown:.0f} MiB"
    return [
        Row("T18", "parameters that ask for too much", f"{len(ODD)}", figure, f"200 or 400, ≤ {most}, 0", met),
        Row(
            "T18",
            "as many models, users and paths",
            f"{values}",
            told,
            "≤ 32 MiB, 0 5xx",
            small,
        ),
    ]


async def _many(client: Any, values: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    for i in range(values):
        body = said("hi", model=f"multimoe/m{i}", user=f"u{i}", metadata={f"label{i}": "x"})
        match i % 3:
            case 0:
                reply = await client.post("/v1/chat/completions", json=body)
            case 1:
                reply = await client.get(f"/v1/none/{i}")
            case _:
                reply = await client.get("/v1/models", headers={"authorization": f"Bearer mm-{i:012x}-x"})
        statuses[reply.status_code] += 1
    return statuses


def quotas_by_day(scale: Scale) -> Iterator[Row]:
    """Tokens and US$ a day: asked until refused, on one gateway after the other."""
    for quota, name in ((Quota(tokens_per_day=400), "tokens"), (Quota(cost_per_day=0.05), "cost")):
        with tempfile.TemporaryDirectory() as folder:
            answered, used, limit = asyncio.run(_until_refused(Path(folder), quota, name))
        figure = f"{answered} answered, {used:g} of {limit:g} used"
        met = limit <= used < 1.1 * limit
        yield Row("T18", f"{name} a day, over 2 gateways", "until both refuse", figure, "100 to 110 %", met)


async def _until_refused(folder: Path, quota: Quota, counted: str) -> tuple[int, float, float]:
    worlds = [World(folder / "home") for _ in range(2)]
    _, sent = worlds[0].log.create_key("ann", ["chat"], quota=quota)
    answered, refused, used, limit = 0, set[int](), 0.0, 0.0
    for turn in range(400):
        world = worlds[turn % 2]
        async with world.client(headers={"authorization": f"Bearer {sent}"}) as client:
            reply = await client.post("/v1/chat/completions", json=said("how much of it is left for me today?"))
            answered += reply.status_code == 200
            if reply.status_code == 429:
                assert reply.json()["error"]["code"] == "insufficient_quota"
                refused.add(turn % 2)
            if len(refused) == 2:
                (level,) = (await client.get("/v1/limits")).json()["yours"].values()
                windows = world.services.meter._known
                used, limit = (
                    max(window.used for (_, what), window in windows.items() if what == counted),
                    level["limit"],
                )
                break
    for world in worlds:
        world.services.meter.close()
        world.log.close()
    return answered, used, limit


# T15: what the time of a refusal tells


def key_timing(scale: Scale) -> Iterator[Row]:
    calls = 100_000 if scale == "long" else 20_000
    with tempfile.TemporaryDirectory() as folder, FeedbackLog.open(f"sqlite:///{folder}/log.db") as log:
        made = [log.create_key(f"k{i}", ["chat"]) for i in range(20)]
    known = {key.digest: key for key, _ in made}
    sent, chance = made[7][1], random.Random(0)
    begins = sent.index("-", 3) + 1
    first = [_altered(sent, begins, begins + 4, chance) for _ in range(VARIANTS)]
    last = [_altered(sent, len(sent) - 4, len(sent), chance) for _ in range(VARIANTS)]
    unknown = [f"mm-{chance.randbytes(6).hex()}-{one[begins:]}" for one in last]
    pairs = (("first or last letters wrong", first, last), ("secret wrong or id unknown", last, unknown))
    for what, one, other in pairs:
        t = min((welch(lambda s: matching(s, known), one, other, calls) for _ in range(2)), key=abs)
        yield Row(
            "T15", f"time of a refusal: {what}", f"{calls} calls", f"|t| {abs(t):.1f}", f"< {LEAK}", abs(t) < LEAK
        )
    t = welch(lambda s: _leaky(s, sent), first, last, calls)
    yield Row(
        "T15",
        "letters compared one by one",
        f"{calls} calls",
        f"|t| {abs(t):.1f}",
        f"> {LEAK}",
        abs(t) > LEAK,
        control=True,
    )


def _altered(sent: str, begin: int, end: int, chance: random.Random) -> str:
    """With other letters there."""
    middle = "".join(chance.choice([letter for letter in LETTERS if letter != old]) for old in sent[begin:end])
    return sent[:begin] + middle + sent[end:]


def _leaky(sent: str, key: str) -> Key | None:
    for a, b in zip(sent, key, strict=False):
        if a != b:
            return None
    return None


def welch(verify: Callable[[str], Any], one: list[str], other: list[str], calls: int) -> float:
    """Welch's t of two groups' times, in random order, without the slowest tenth, which others made slow."""
    order = np.random.default_rng(0).integers(0, 2, calls).tolist()
    inputs, times = (one, other), np.empty(calls)
    clock = time.perf_counter_ns
    for i, group in enumerate(order):
        value = inputs[group][i % VARIANTS]
        began = clock()
        verify(value)
        times[i] = clock() - began
    kept = times <= np.quantile(times, 0.9)
    groups = [times[kept & (np.array(order) == group)] for group in (0, 1)]
    spread = sum(group.var(ddof=1) / len(group) for group in groups)
    return float((groups[0].mean() - groups[1].mean()) / np.sqrt(spread))


# T26: one key that rates as fast as it can


def rating_flood(scale: Scale) -> Iterator[Row]:
    tries = 10_000 if scale == "long" else 300
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "home")
        statuses, rows, took = asyncio.run(_flood_ratings(world, tries))
        per_minute = world.catalog.limits.ratings_per_minute
        world.log.close()
    most = int(per_minute * 10 * (1 + took / 60)) + 10
    figure = f"{dict(statuses)}; {rows} rows in {took:.0f} s"
    met = set(statuses) <= {200, 201, 429} and rows <= most
    yield Row("T26", "ratings of one key under ever new names", f"{tries}", figure, f"≤ {most} rows, 0 5xx", met)


async def _flood_ratings(world: World, tries: int) -> tuple[Counter[int], int, float]:
    _, sent = world.log.create_key("ann", ["chat", "rate"])
    statuses: Counter[int] = Counter()
    async with world.client(headers={"authorization": f"Bearer {sent}"}) as client:
        id = (await client.post("/v1/chat/completions", json=said("hi"))).json()["id"]
        began = time.monotonic()
        for i in range(tries):
            rating = {"completion_id": id, "score": i % 2, "user": f"bot{i}"}
            statuses[(await client.post("/v1/feedback", json=rating)).status_code] += 1
        took = time.monotonic() - began
    with world.log.database.reading() as connection:
        rows: int = connection.execute(text("SELECT count(*) FROM ratings")).scalar_one()
    return statuses, rows, took


DRILLS = (
    exact_rate,
    cost_of_counting,
    jumping_clock,
    store_away,
    killed_while_counting,
    fairness,
    quotas_by_day,
    greedy_parameters,
    key_timing,
    rating_flood,
)
