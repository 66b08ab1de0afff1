"""An answer, whatever dies: kill -9 under load, experts that are slow, err, hang and lie, and clients that hang up.

Load runs at about half of what the machine can take, and every body is compared. A gateway that is killed takes what it
was answering with it: the openai client asks again by itself, and what came over the wire before that is told too.
"""

import asyncio
import itertools
import os
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx

from drills.arena import CONTROLLER, NAMES, Load, Product, catalog, place, product, until
from drills.row import Row, Scale

ANT = {"x_multimoe": {"top_k": 1, "explore": False}}
FAULTS = {"slow_seconds": 2.0}
LIMITS = {"request_seconds": 20.0}
VICTIMS = ("expert-ant", "gate", "expert-bee", CONTROLLER, "gateway")


def under_fire(scale: Scale) -> Iterator[Row]:
    """One product of three experts, two replicas of each, two gates and two gateways."""
    long = scale == "long"
    with place() as home:
        tree = catalog(home, faults=FAULTS, limits=LIMITS)
        for expert in tree["experts"]:
            expert["options"]["delay_s"] = 0.01
        with product(tree) as found, found.joined():
            rate = capacity(found, 6 if long else 3) / 2
            yield from killed(found, rate, every=30.0, seconds=125 if long else 20, goal=1.0, test="T30")
            # what is killed each second takes both cores to come back: little is asked meanwhile
            yield from killed(found, rate / 6, every=1.0, seconds=45 if long else 10, goal=0.999, test="T30")
            yield last_replica(found, rate)
            for mood in ({"mode": "slow", "seconds": 10.0}, {"mode": "errs", "share": 0.3}, {"mode": "hangs"}):
                yield grey(found, rate, mood, 20 if long else 5)  # a p99 of few answers is the slowest of them
            yield liar(found, rate, 16 if long else 8)
            yield from hung_up(found, 200 if long else 40)
            yield in_a_hurry(found, 20 if long else 5)
            yield a_wrong_body_is_seen(found, rate)


def without_retries(scale: Scale) -> Iterator[Row]:
    """One expert alone, whose replicas are killed: with retries nothing is lost, without them something must be."""
    for share in (0.0, 0.1):
        with place() as home:
            tree = catalog(home, gateways=1, names=("ant",), faults={"retries": share}, limits=LIMITS)
            tree["experts"][0]["options"]["delay_s"] = 0.05
            tree["gate"]["serve"]["num_replicas"] = 1
            with product(tree) as found, found.joined():
                with Load(found.url, 4, stream_each=10**9, retries=0) as load:
                    for _ in range(4 if scale == "long" else 2):
                        ready(found, "expert-ant", 2)
                        time.sleep(1.0)
                        os.kill(found.replicas("expert-ant")[0], signal.SIGKILL)
                    time.sleep(2.0)
                if share:
                    ready(found, "expert-ant", 2)
                    yield only_gateway(found)
        lost, control = load.failed(), share == 0.0
        yield Row(
            "T30",
            "replicas of the only expert killed, retries " + ("off" if control else "on"),
            f"{len(load.seen)} whole answers, {sum(load.raw.values())} over the wire",
            f"{lost} lost {told(load)}",
            "more than 0" if control else "0",
            lost > 0 if control else lost == 0,
            control,
        )


def capacity(found: Product, seconds: float) -> float:
    """Answers a second with eight callers at once."""

    async def run() -> float:
        async with httpx.AsyncClient(timeout=60) as client:
            over, done = time.monotonic() + seconds, 0

            async def caller() -> None:
                nonlocal done
                while time.monotonic() < over:
                    await client.post(f"{found.url}/v1/chat/completions", json=_body("warm up", ANT))
                    done += 1

            await asyncio.gather(*(caller() for _ in range(8)))
            return done / seconds

    return asyncio.run(run())


def killed(found: Product, rate: float, every: float, seconds: float, goal: float, test: str) -> Iterator[Row]:
    """In turn an expert's replica, a gate, another's, the controller and a gateway, where another of the kind is up.

    Who has no other now is left out; the controller, which has none ever, has its own turn and nobody else's.
    """
    kills: Counter[str] = Counter()
    away: list[float] = []
    victims = itertools.cycle(VICTIMS)
    with Load(found.url, rate) as load:
        over = time.monotonic() + seconds
        time.sleep(min(2.0, seconds / 4))
        while time.monotonic() < over:
            began = time.monotonic()
            for turn, victim in enumerate(itertools.islice(victims, len(VICTIMS))):
                there = _pids(found, victim) if victim != CONTROLLER or turn == 0 else []
                if len(there) >= (1 if victim == CONTROLLER else 2):
                    with suppress(ProcessLookupError):
                        os.kill(there[0], signal.SIGKILL)
                        kills[victim] += 1
                    if every > 5:
                        away.append(_back(found, victim, len(there), there[0], every))
                    break
            time.sleep(max(0.0, began + every - time.monotonic()))
    for application in ("gate", "gateway", *(f"expert-{name}" for name in NAMES)):
        ready(found, application, 2)
    whole = [s for s in load.seen if not s.streamed]
    failed = load.failed(streams=False)
    share = 1 - failed / max(len(whole), 1)
    tried = f"{sum(kills.values())} kills in {seconds:.0f} s ({_named(kills)}) at {rate:.1f}/s"
    back = f", back after {statistics.median(away):.0f} s, at most {max(away):.0f} s" if away else ""
    yield Row(
        test,
        f"kill -9 every {every:g} s, whole answers",
        tried,
        f"{failed} of {len(whole)} lost after the client's own retries{back} {told(load)}",
        f"{goal:.1%} answered, 0 wrong",
        share >= goal and bool(kills) and not _wrong(load),
    )
    streams = [s for s in load.seen if s.streamed]
    cut = sum(s.outcome == "cut stream" for s in streams)
    broken = sum(s.outcome == "broken stream" for s in streams)
    yield Row(
        test,
        f"kill -9 every {every:g} s, streams",
        f"{len(streams)} streams",
        f"{broken} ended in an error frame, {cut} cut with their gateway",
        "each ends whole or in an error (a cut line is one, too)",
        len(streams) > 0 and not any(s.outcome in ("wrong", "mixed") for s in streams),
    )


def last_replica(found: Product, rate: float) -> Row:
    with Load(found.url, rate, extra=ANT) as load:
        time.sleep(1.0)
        gone = found.replicas("expert-ant")
        at = time.time()
        for pid in gone:
            os.kill(pid, signal.SIGKILL)
        time.sleep(8.0)
    ready(found, "expert-ant", 2)
    after = [s for s in load.seen if s.at >= at]
    degraded = sum(s.degraded for s in after)
    return Row(
        "T30",
        "every replica of an expert killed at once",
        f"{len(gone)} replicas, {len(after)} questions after",
        f"{load.failed()} lost, {degraded} answered by another and said so, p99 {load.p99(at):.1f} s {told(load)}",
        "0 lost, 0 wrong, others say `degraded`",
        load.failed() == 0 and not _wrong(load) and degraded > 0,
    )


def only_gateway(found: Product) -> Row:
    """Nobody can answer then; what clients see is told, and the openai client's own retries bridge it."""
    with Load(found.url, 4, stream_each=10**9) as load:
        time.sleep(1.0)
        os.kill(found.replicas("gateway")[0], signal.SIGKILL)
        at = time.monotonic()
        time.sleep(2.0)
        ready(found, "gateway", 1)
        back = time.monotonic() - at
        time.sleep(2.0)
    return Row(
        "T30",
        "the only gateway killed",
        f"{len(load.seen)} questions by the openai client",
        f"{load.failed()} lost after its retries, back after {back:.0f} s, p99 {load.p99():.1f} s {told(load)}",
        "0 lost",
        load.failed() == 0,
    )


def grey(found: Product, rate: float, mood: dict[str, object], seconds: float) -> Row:
    """p99 in the time before, while it is new, and in the last of the two times that it lasts."""
    before = found.noted("ant").total()
    with Load(found.url, rate, extra=ANT) as load:
        time.sleep(seconds)
        at = time.time()
        found.mood("ant", **mood)
        asked_before = found.noted("ant").total()
        time.sleep(2 * seconds)
        settled = time.time() - seconds
    found.mood("ant")
    base, new, after = load.p99(until=at), load.p99(at, settled), load.p99(settled)
    asked = (found.noted("ant").total() - asked_before) / 2
    time.sleep(12.0)  # until a trial has let it in again
    steady = mood["mode"] == "errs"
    return Row(
        "T38",
        f"an expert that {mood['mode']}" + (" for 30 % of questions" if steady else ""),
        f"{len(load.seen)} questions, {asked:.0f} reached it after it began; {before / 2:.0f} before",
        f"{load.failed()} lost; p99 {base:.2f} s before, {new:.2f} s when new, {after:.2f} s then {told(load)}",
        "0 lost, p99 then at most 1.2x before",
        load.failed() == 0 and not _wrong(load) and after <= 1.2 * base,
    )


def liar(found: Product, rate: float, seconds: float) -> Row:
    """NaN, half characters, 100 MB, endless, the wrong kind, a million labels, bytes, a crash with a secret in it."""
    before = found.memory("ServeReplica:gateway:")
    with Load(found.url, rate, extra=ANT) as load:
        found.mood("ant", mode="lies")
        time.sleep(seconds)
    found.mood("ant")
    grown = (found.memory("ServeReplica:gateway:") - before) / 2**20
    time.sleep(12.0)
    return Row(
        "T38",
        "an expert that lies",
        f"{len(load.seen)} questions",
        f"{load.failed()} lost, {_wrong(load)} lies let through, gateways grew {grown:.0f} MiB {told(load)}",
        "0 lost, 0 let through, under 64 MiB",
        load.failed() == 0 and not _wrong(load) and grown < 64,
    )


def hung_up(found: Product, clients: int) -> Iterator[Row]:
    """A quarter of them while they upload; the others ask one expert, which takes 32 at once: the rest is queued."""
    found.mood("ant", mode="slow", seconds=60.0)
    already = found.noted("ant")["began hangup"]
    asking = clients * 3 // 4
    room = min(32, asking)

    async def run() -> float:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            body = {"model": "multimoe/ant", "messages": [{"role": "user", "content": "hangup " + "word " * 20}]}
            url = f"{found.url}/v1/chat/completions"
            asked = [asyncio.create_task(client.post(url, json=body | {"stream": i % 2 == 0})) for i in range(asking)]
            lines = [await _half_uploaded(found.url) for _ in range(clients - asking)]
            over = time.monotonic() + 30
            while found.noted("ant")["began hangup"] - already < room and time.monotonic() < over:
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)
            for one in asked:
                one.cancel()
            for line in lines:
                line.close()
            await asyncio.gather(*asked, return_exceptions=True)
            return time.monotonic()

    at = asyncio.run(run())
    took = float("inf")
    with suppress(TimeoutError):
        until(lambda: found.under_way("ant") <= 0, 20, "the expert is free")
        took = time.monotonic() - at
    began = found.noted("ant")["began hangup"] - already
    time.sleep(2.0)
    late = found.noted("ant")["began hangup"] - already - began
    found.mood("ant")
    answer = httpx.post(f"{found.url}/v1/chat/completions", json=_body("are you there", {}), timeout=60)
    yield Row(
        "T40",
        "clients hang up: streamed, whole, queued, uploading",
        f"{clients} clients, {began} begun, {asking - began} queued, {clients - asking} uploading",
        f"expert free after {took:.1f} s; {late} queued ones started then; next answer {answer.status_code}",
        "2 s, 0, 200",
        took <= 2.0 and late == 0 and answer.status_code == 200,
    )


def in_a_hurry(found: Product, count: int) -> Row:
    """Deadlines of 200 ms, on an expert that hangs."""
    found.mood("ant", mode="hangs")
    took, statuses = [], Counter[int]()
    with httpx.Client(timeout=60) as client:
        for _ in range(count):
            began = time.monotonic()
            wish = {"x_multimoe": {"timeout_s": 0.2}, "model": "multimoe/ant"}
            reply = client.post(f"{found.url}/v1/chat/completions", json=_body("hurry up", wish))
            took.append(time.monotonic() - began)
            statuses[reply.status_code] += 1
    free = float("inf")
    with suppress(TimeoutError):
        free = until(lambda: found.under_way("ant") <= 0, 20, "the expert is free")
    found.mood("ant")
    median, worst = statistics.median(took), max(took)
    return Row(
        "T38",
        "a deadline of 200 ms on an expert that hangs",
        f"{count} questions",
        f"{dict(statuses)}, median {median:.2f} s, worst {worst:.2f} s; the expert free {free:.1f} s later",
        "504 within 0.3 s (median), free within 2 s",
        set(statuses) == {504} and median <= 0.3 and free <= 2.0,
    )


def a_wrong_body_is_seen(found: Product, rate: float) -> Row:
    for name in NAMES:
        found.mood(name, mode="wrong")
    with Load(found.url, rate) as load:
        time.sleep(3.0)
    for name in NAMES:
        found.mood(name)
    seen = load.outcomes()["wrong"]
    return Row(
        "T30", "a wrong body", f"{len(load.seen)} questions", f"{seen} seen", "all", seen == len(load.seen) > 0, True
    )


def ready(found: Product, application: str, count: int) -> None:
    until(lambda: len(found.replicas(application)) >= count, 90, f"{count} of {application}")


def _pids(found: Product, victim: str) -> list[int]:
    return [w.pid for w in found.workers(CONTROLLER)] if victim == CONTROLLER else found.replicas(victim)


def _back(found: Product, victim: str, count: int, dead: int, most: float) -> float:
    """Seconds until as many are up as before."""
    try:
        return until(lambda: len(there := _pids(found, victim)) >= count and dead not in there, most, victim)
    except TimeoutError:
        return most


async def _half_uploaded(url: str) -> socket.socket:
    line = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    line.sendall(f"{head}content-length: 5000000\r\n\r\n".encode() + b'{"messages": "' + b"x" * 50_000)
    return line


def _body(text: str, more: dict[str, object]) -> dict[str, object]:
    return {"model": "multimoe", "messages": [{"role": "user", "content": text}], **more}


def _wrong(load: Load) -> int:
    outcomes = load.outcomes()
    return outcomes["wrong"] + outcomes["mixed"]


def told(load: Load) -> str:
    """What came over the wire that was no answer."""
    bad = {what: count for what, count in load.raw.items() if what != "200"}
    return f"(on the wire: {_named(bad) or 'nothing else'})"


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


DRILLS = (under_fire, without_retries)
