"""Zero-downtime change: gates swapped, experts upgraded, added, scaled, removed, gateways rolled and stopped.

All of it happens under load. Every body is compared, and every answer's gate version must be one and the same from its
header to its last chunk.
"""

import asyncio
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import yaml

from drills.arena import Load, Product, catalog, place, product, until, victim
from drills.faults import capacity, ready, told
from drills.row import Row, Scale
from gateway.client import Client
from multimoe.config import parse
from multimoe.errors import MultimoeError

GRACE = 10.0
SEEN = 5  # of the first swaps a decision has to see


def under_load(scale: Scale) -> Iterator[Row]:
    long = scale == "long"
    with place() as home:
        tree = catalog(home, names=("ant", "bee"))
        versions = write_versions(tree, 8)
        with product(tree) as found, found.joined(), Client(found.url) as client:
            rate = capacity(found, 5 if long else 3) / 2
            yield swapped(found, client, rate, versions, 45 if long else 10)
            yield changed(
                found, rate, "an expert is upgraded in place", lambda: upgraded(found, client, 2 if long else 1)
            )
            yield changed(found, rate, "an upgrade that does not come up is taken back", lambda: refused(client, home))
            yield changed(found, rate, "an expert is added, scaled, removed", lambda: came_and_went(found, client))
            yield changed(found, rate, "gateways are rolled", lambda: rolled(found, 3 if long else 1))


def gate_alone(scale: Scale) -> Iterator[Row]:
    """A thousand swaps of one gate process while others decide, which no cluster here does in minutes."""
    with place() as home:
        yield swapped_alone(home, 1000 if scale == "long" else 10)


def told_to_stop(scale: Scale) -> Iterator[Row]:
    for signals in (1, 2) if scale == "long" else (1,):
        with place() as home:
            # without admission, which would begin fewer at once
            tree = catalog(home, replicas=1, gateways=1, names=("ant",), limits={"admission": "off"})
            tree["server"]["grace_seconds"] = GRACE
            tree["experts"][0]["serve"] |= {"max_ongoing_requests": 32}
            with product(tree) as found:
                yield drained(found) if signals == 1 else ended_at_once(found)


def swapped(found: Product, client: Client, rate: float, versions: list[int], seconds: float) -> Row:
    swaps = 0
    with Load(found.url, rate) as load:
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            client.promote(versions[swaps % len(versions)])
            swaps += 1
    mixed, seen = load.outcomes()["mixed"], {s.version for s in load.seen if s.outcome == "ok"}
    return Row(
        "T42",
        "gates swapped under load",
        f"{swaps} swaps of two gates in {seconds:.0f} s, {len(load.seen)} questions",
        f"{load.failed()} lost, {mixed} of mixed versions, {len(seen)} versions answered; {_p99(load)}",
        "0 lost, 0 mixed",
        load.failed() == 0 and swaps > 0 and len(seen) > 1,
    )


def changed(found: Product, rate: float, what: str, change: Callable[[], str]) -> Row:
    with Load(found.url, rate) as load:
        time.sleep(2.0)
        before = time.time()
        done = change()
        time.sleep(2.0)
    base, during = load.p99(until=before), load.p99(before)
    return Row(
        "T42",
        what,
        f"{done}, {len(load.seen)} questions",
        f"{load.failed()} lost, {load.outcomes()['broken stream']} broken; "
        f"p99 {base:.2f} s before, {during:.2f} s during {told(load)}",
        "0 lost, 0 broken",
        load.outcomes()["ok"] == len(load.seen) > 0,
    )


def upgraded(found: Product, client: Client, times: int) -> str:
    for edition in range(times):
        before = set(found.replicas("expert-ant"))
        client.replace_expert(victim("ant", found.home, edition=str(edition)))
        until(lambda before=before: not before & set(found.replicas("expert-ant")), 60, "the old edition gone")  # type: ignore[misc]
    return f"{times} editions"


def refused(client: Client, home: Path) -> str:
    broken = victim("ant", home)
    del broken["options"]["folder"]
    try:
        client.replace_expert(broken)
    except MultimoeError as error:
        return f"1 broken edition, {error.code}"
    return "a broken edition was taken"


def came_and_went(found: Product, client: Client) -> str:
    client.add_expert(victim("dog", found.home, 1))
    ready(found, "expert-dog", 1)
    client.scale("bee", 1, 3)
    client.scale("bee", 3, 3)
    ready(found, "expert-bee", 3)
    client.remove_expert("dog")
    client.scale("bee", 2, 2)
    return "1 added, scaled to 3 and 2, removed"


def rolled(found: Product, times: int) -> str:
    """As a new version of the product would be: the gateway's application with other arguments."""
    from gateway.deployment.ray_cluster import deploy, deployed_config

    for turn in range(times):
        before = set(found.replicas("gateway"))
        config = deployed_config()
        (gateway,) = [app for app in config["applications"] if app["name"] == "gateway"]
        gateway["args"]["catalog"]["limits"]["hops"] = 5 + turn
        deploy(config)
        until(lambda before=before: not before & set(found.replicas("gateway")), 120, "the old gateways gone")  # type: ignore[misc]
        ready(found, "gateway", 2)
    return f"{times} times 2 gateways"


def swapped_alone(home: Path, swaps: int) -> Row:
    from gateway.deployment.gate_service import GateService
    from multimoe.decision import Policy
    from multimoe.messages import ChatRequest, Message, TextPart
    from multimoe.weights import Weights

    tree = catalog(home)
    versions = write_versions(tree, 8)
    settings = parse(tree)
    service = GateService(settings.gate, settings.gates, Weights(settings.weights).find)
    service.configure(0, settings.experts)
    stop, wrong, seen = threading.Event(), list[str](), Counter[int]()

    def decide(who: int) -> None:
        while not stop.is_set():
            request = ChatRequest("chatcmpl-1", (Message("user", (TextPart(f"ask the ant {who}"),)),))
            try:
                decision = service.decide(request, Policy()).decision
            except Exception as error:
                wrong.append(repr(error))
                continue
            seen[decision.gate_version] += 1
            if {c.expert for c in decision.considered} != {spec.name for spec in settings.experts}:
                wrong.append("an incomplete roster")
            time.sleep(0.005)  # the swaps are what is tried here

    askers = [threading.Thread(target=decide, args=(who,)) for who in range(2)]
    for asker in askers:
        asker.start()
    for swap in range(swaps):
        before = seen.total()
        service.configure(versions[swap % len(versions)], settings.experts)
        while swap < SEEN and seen.total() == before and not wrong:  # a swap is quicker than a decision may be
            time.sleep(0.001)
    stop.set()
    for asker in askers:
        asker.join()
    return Row(
        "T42",
        "one gate process swapped while it decides",
        f"{swaps} swaps, {seen.total()} decisions",
        f"{len(wrong)} failed, {len(seen)} versions decided",
        "0 failed",
        not wrong and seen.total() > 0 and len(seen) > 1,
    )


def drained(found: Product) -> Row:
    """Twenty answers of three seconds under way, half of them streamed, and a rating given a moment ago."""
    found.mood("ant", mode="ok")
    url = f"{found.url}/v1/chat/completions"
    first = httpx.post(url, json=_body("rate me"), timeout=60).json()
    rating = {"completion_id": first["id"], "score": 1, "user": "ann"}
    found.mood("ant", mode="slow", seconds=3.0)

    async def run() -> tuple[list[httpx.Response], httpx.Response, httpx.Response | None, float]:
        async with httpx.AsyncClient(timeout=60) as client:
            bodies = [_body(f"n{i} to the end") | {"stream": i % 2 == 0} for i in range(20)]
            asked = [asyncio.create_task(client.post(url, json=body)) for body in bodies]
            over = time.monotonic() + 20
            while found.under_way("ant") < 20 and time.monotonic() < over:
                await asyncio.sleep(0.05)
            assert found.under_way("ant") == 20
            rated = await client.post(f"{found.url}/v1/feedback", json=rating)
            found.process.send_signal(signal.SIGTERM)
            at, refused = time.monotonic(), None
            while not all(one.done() for one in asked) and refused is None:
                ready = await client.get(f"{found.url}/ready")
                if ready.status_code == 503:
                    refused = await client.post(url, json=_body("too late"))
                await asyncio.sleep(0.05)
            return await asyncio.gather(*asked), rated, refused, at

    answers, rated, refused, at = asyncio.run(run())
    right = sum(a.status_code == 200 and f"n{i}" in a.text and "end" in a.text for i, a in enumerate(answers))
    until(lambda: found.process.poll() is not None, 60, "it has ended")
    took = time.monotonic() - at
    with sqlite3.connect(found.home / "multimoe.db") as store:
        (kept,) = store.execute("select count(*) from ratings").fetchone()
    sent_away = refused is not None and refused.status_code == 503 and "retry-after" in refused.headers
    return Row(
        "T41",
        "SIGTERM with 20 answers under way, half of them streams",
        "1 signal, 1 rating just given",
        f"{right} of 20 whole, /ready 503 and new ones refused: {sent_away}, "
        f"{kept} rating kept ({rated.status_code}), ended {took:.1f} s later with {found.process.returncode}",
        "20 of 20, refused, 1 kept, ended within grace and a stop",
        right == 20 and sent_away and kept == 1 and found.process.returncode == 0,
    )


def ended_at_once(found: Product) -> Row:
    found.mood("ant", mode="slow", seconds=60.0)
    asked = threading.Thread(target=lambda: _quietly(found.url), daemon=True)
    asked.start()
    until(lambda: found.under_way("ant") > 0, 20, "an answer under way")
    found.process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    waited = found.process.poll() is None
    found.process.send_signal(signal.SIGTERM)
    took = until(lambda: found.process.poll() is not None, 60, "it has ended")
    left = [p for p in psutil.process_iter(["cmdline"]) if str(found.home) in " ".join(p.info["cmdline"] or ())]
    return Row(
        "T41",
        "a second SIGTERM",
        "an answer of a minute under way",
        f"waited at first: {waited}; ended {took:.1f} s after the second, {len(left)} processes left",
        f"under the grace of {GRACE:g} s, 0 left",
        waited and took < GRACE and not left,
    )


def write_versions(tree: dict[str, object], count: int) -> list[int]:
    """Gate versions that know nothing more than the cards, but carry a number of their own."""
    from multimoe.checkpoint import Manifest, Registry
    from multimoe.quality import Learned

    settings = parse(yaml.safe_load(yaml.safe_dump(tree)))
    learned = Learned().rows([spec.name for spec in settings.experts])
    return [Registry(settings.gates).write(learned, Manifest()).version for _ in range(count)]


def _quietly(url: str) -> None:
    with suppress(httpx.HTTPError):
        httpx.post(f"{url}/v1/chat/completions", json=_body("for a minute"), timeout=120)


def _body(text: str) -> dict[str, object]:
    return {"model": "multimoe", "messages": [{"role": "user", "content": text}]}


def _p99(load: Load) -> str:
    return f"p99 {load.p99():.2f} s"


DRILLS = (under_load, gate_alone, told_to_stop)
