"""More than can be served: what is let in, what waits, what is told to come later, and what slow senders can do."""

import asyncio
import pickle
import random
import selectors
import socket
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from api_world import World, said, served

from gateway.access import intake
from gateway.access.admission import CALM, FIRST, LEAST, MOST_WAITING, Admission, Overloaded
from gateway.access.intake import Intake
from multimoe.errors import Unavailable
from multimoe.expert import Delta, Expert
from multimoe.messages import ChatRequest

CHAT = "/v1/chat/completions"


class Clerks(Expert):
    """A counter with `OPEN` clerks, each of whom takes `SECONDS`: others wait, as behind a real engine."""

    OPEN, SECONDS = 4, 0.4
    clerks: asyncio.Semaphore | None = None

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        Clerks.clerks = Clerks.clerks or asyncio.Semaphore(Clerks.OPEN)
        async with Clerks.clerks:
            await asyncio.sleep(Clerks.SECONDS)
        yield Delta(text="served", finish="stop")


def clerks(home: Path, **limits: Any) -> World:
    """A product whose only expert serves 10 requests a second."""
    Clerks.clerks = None
    spec = {
        "name": "counter",
        "backend": "test_overload:Clerks",
        "inputs": ["text"],
        "output": "text",
        "card": {"description": "Serves."},
    }
    return World(home, experts=[spec], limits=limits)


# the rules alone


def admission(clock: list[float], stretch: float = 4.0, wait_seconds: float = 5.0) -> Admission:
    return Admission(stretch, wait_seconds, lambda: clock[0], random.Random(0))


async def enter(gate: Admission, who: str = "ann") -> tuple[Any, Any]:
    manager = gate.turn(who)
    return manager, await manager.__aenter__()


async def leave(manager: Any) -> None:
    await manager.__aexit__(None, None, None)


async def test_a_few_are_let_in_at_once_and_others_wait_for_their_turn():
    gate = admission([0.0])
    inside = [await enter(gate) for _ in range(int(FIRST))]
    waiting = asyncio.create_task(enter(gate))
    await asyncio.sleep(0)
    assert (gate.under_way, gate.waiting, waiting.done()) == (FIRST, 1, False)
    await leave(inside[0][0])
    await waiting
    assert (gate.under_way, gate.waiting) == (FIRST, 0)


async def test_who_would_wait_too_long_is_refused_at_once():
    clock = [0.0]
    gate = admission(clock)
    inside = [await enter(gate) for _ in range(int(FIRST))]
    tasks = [asyncio.create_task(enter(gate)) for _ in range(16)]
    await asyncio.sleep(0)
    assert gate.waiting == FIRST / 2  # nobody knows yet how long they wait
    for manager, _ in inside[:4]:
        clock[0] += 0.5
        await leave(manager)
        await asyncio.sleep(0)
    tasks += [asyncio.create_task(enter(gate)) for _ in range(20)]
    await asyncio.sleep(0)
    assert gate.waiting == 10  # one ends every half second: the last of them waits for five
    with pytest.raises(Overloaded) as refused:
        gate.check("ann")
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after >= 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("alone", "waiting"), [(None, FIRST / 2), (1.0, 10), (0.01, 4 * FIRST), (60.0, FIRST / 2)], ids=str
)
async def test_until_some_have_ended_as_many_wait_as_can_be_begun_where_each_takes_so_much_longer(alone, waiting):
    gate = admission([0.0])
    for _ in range(int(FIRST)):
        await enter(gate)
    if alone:
        gate.kinds.lately.append(alone)
    tasks = [asyncio.create_task(enter(gate)) for _ in range(50)]
    await asyncio.sleep(0)
    assert gate.waiting == waiting
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_slow_request_among_quick_ones_makes_no_difference_to_a_burst_of_those():
    clock = [0.0]
    gate = admission(clock)
    for i in range(10):
        manager, turn = await enter(gate)
        turn.kind = "slow" if i == 8 else "quick"
        clock[0] += 60.0 if i == 8 else 0.01
        await leave(manager)
    tasks = [asyncio.create_task(enter(gate)) for _ in range(40)]
    await asyncio.sleep(0)
    assert (gate.under_way, gate.waiting) == (FIRST, 4 * FIRST)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_standing_queue_is_kept_short():
    clock = [0.0]
    gate = admission(clock)
    assert gate.patience == 5.0
    inside = [await enter(gate) for _ in range(int(FIRST))]
    task = asyncio.create_task(enter(gate))
    await asyncio.sleep(0)
    clock[0] += 6
    assert gate.patience == 0.5
    await leave(inside[0][0])
    await task
    assert gate.patience == 5.0


async def test_keys_take_turns_and_the_longest_queue_makes_room():
    gate = admission([0.0])
    inside = [await enter(gate) for _ in range(int(FIRST))]
    gate.kinds.lately.append(0.1)
    served: list[str] = []

    async def ask(who: str) -> None:
        manager, _ = await enter(gate, who)
        served.append(who)
        await leave(manager)

    loud = [asyncio.create_task(ask("loud")) for _ in range(4 * int(FIRST))]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        gate.check("loud")
    quiet = [asyncio.create_task(ask("quiet")) for _ in range(3)]
    await asyncio.sleep(0)
    gate.check("other")
    await leave(inside[0][0])
    results = await asyncio.gather(*loud, *quiet, return_exceptions=True)
    assert served.count("quiet") == 3
    assert served.index("quiet") <= 1
    assert [i for i, who in enumerate(served) if who == "quiet"][-1] <= 5
    assert sum(isinstance(result, Overloaded) for result in results) == 3  # the loud one's newest


async def test_whoever_gives_up_waiting_leaves_no_trace():
    gate = admission([0.0])
    inside = [await enter(gate) for _ in range(int(FIRST))]
    tasks = [asyncio.create_task(enter(gate, who)) for who in ("a", "a", "b")]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await leave(inside[0][0])  # at the same moment
    await asyncio.gather(tasks[0], return_exceptions=True)
    manager, _ = await tasks[2]
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    assert gate.waiting == 0
    for one in (*(m for m, _ in inside[1:]), manager):
        await leave(one)
    assert (gate.under_way, gate._queues) == (0, {})


@pytest.mark.parametrize(("room", "least", "most"), [(2, LEAST, 12), (40, 40, 256)])
async def test_the_limit_finds_what_stands_behind_the_gateway(room, least, most):
    """Behind it is an engine that works on `room` at once and no faster on fewer."""
    clock = [0.0]
    gate = admission(clock)
    inside: list[tuple[float, Any]] = []
    waiting: set[asyncio.Task[Any]] = set()
    free = [0.0] * room
    for _ in range(CALM):  # a quiet morning: nothing else is going on
        manager, turn = await enter(gate)
        turn.kind = "k"
        clock[0] += 1.0
        await leave(manager)
    for _ in range(4000):
        while len(waiting) < 3:
            with suppress(Overloaded):
                gate.check("ann")
                waiting.add(asyncio.create_task(enter(gate)))
                await asyncio.sleep(0)
                continue
            break
        for task in [task for task in waiting if task.done()]:
            waiting.discard(task)
            with suppress(Overloaded):
                manager, turn = task.result()
                turn.kind = "k"
                free.sort()
                free[0] = max(free[0], clock[0]) + 1.0
                inside.append((free[0], manager))
        if inside:
            inside.sort(key=lambda one: one[0])
            at, manager = inside.pop(0)
            clock[0] = max(clock[0], at)
            await leave(manager)
            await asyncio.sleep(0)
    assert least <= gate.limit <= most
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_crowd_that_is_refused_is_told_to_come_back_at_different_times():
    gate = admission([0.0])
    for _ in range(int(FIRST)):
        await enter(gate)
    waiting = asyncio.create_task(enter(gate))
    await asyncio.sleep(0)
    gate._pace.before, gate._pace.lasts = 100.0, True
    told = []
    for _ in range(300):
        with pytest.raises(Overloaded) as refused:
            gate.check("ann")
        told.append(refused.value.retry_after)
    assert all(1 <= seconds <= 20 for seconds in told)
    assert len(set(told[-100:])) > 10
    assert statistics.mean(told[-100:]) > 2 * statistics.mean(told[:5])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_one_may_always_wait_so_that_a_queue_that_was_slow_is_not_shut_for_good():
    clock = [0.0]
    gate = admission(clock)
    inside = [await enter(gate) for _ in range(int(FIRST))]
    gate._pace.before, gate._pace.lasts = 100.0, True
    gate.check("ann")
    waiting = asyncio.create_task(enter(gate, "ann"))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        gate.check("ann")
    for manager, _ in inside:
        await leave(manager)
    await leave((await waiting)[0])
    assert (gate.waiting, gate.under_way, gate._pace.lasts) == (0, 0, False)  # for it was over so soon


async def test_who_is_refused_before_the_body_is_read_asks_for_more_places_too():
    gate = admission([0.0])
    gate.under_way, gate.waiting = int(FIRST), 1
    gate._pace.before, gate._pace.lasts = 100.0, True
    assert not gate._full
    with pytest.raises(Overloaded):
        gate.check("ann")
    assert gate._full


async def test_bursts_of_quick_requests_are_served_after_a_crowd_of_slow_ones():
    clock, refused = [0.0], Counter[str]()
    gate = admission(clock)

    async def ask(phase: str, over: asyncio.Event) -> None:
        try:
            gate.check("ann")
            async with gate.turn("ann") as turn:
                turn.kind = "k"
                await over.wait()
        except Overloaded:
            refused[phase] += 1

    async def crowd(phase: str, many: int, seconds: float) -> None:
        events = [asyncio.Event() for _ in range(many)]
        tasks = [asyncio.create_task(ask(phase, event)) for event in events]
        await asyncio.sleep(0)
        for event in events:
            clock[0] += seconds
            event.set()
            for _ in range(6):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    await crowd("slow", 10, 6.0)
    for burst in range(50):
        clock[0] += 10
        await crowd("quick" if burst > 2 else "first quick", 16, 0.01)
    assert refused["first quick"] <= 5  # the slow ones have made its limit smaller
    assert refused["quick"] == 0


class Hastened(asyncio.SelectorEventLoop):
    """Nothing takes time in it but its clock: what it would wait for is over at once."""

    def __init__(self) -> None:
        self.now = 0.0
        loop = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                loop.now += max(0.0, timeout or 0.0)
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


@dataclass
class Burst:
    """What came of one. Times in seconds."""

    in_time: int = 0
    good: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)


async def bursts(
    gate: Admission, clerks: int, alone: float, chance: random.Random, pause: float, seconds: float = 12.0
) -> list[Burst]:
    """Two, five and ten times as many as so many clerks can serve, each at `alone` seconds, a third more or less."""
    now, free = asyncio.get_running_loop().time, asyncio.Semaphore(clerks)

    async def ask(burst: Burst, over: float) -> None:
        began = now()
        try:
            gate.check("ann")
            async with gate.turn("ann") as turn:
                turn.kind = "k"
                async with free:
                    await asyncio.sleep(alone * chance.uniform(2 / 3, 4 / 3))
        except Overloaded:
            burst.refused.append(now() - began)
        else:
            burst.good.append(now() - began)
            burst.in_time += now() <= over and burst.good[-1] <= 4 * alone + 2 * 2.0

    for _ in range(CALM):
        await ask(Burst(), 0.0)
    found = []
    for times in (2, 5, 10):
        burst, over, tasks = Burst(), now() + seconds, []
        for _ in range(int(times * clerks / alone * seconds)):
            tasks.append(asyncio.create_task(ask(burst, over)))
            await asyncio.sleep(alone / clerks / times)
        await asyncio.gather(*tasks)
        await asyncio.sleep(pause)
        found.append(burst)
    return found


def hastened(wait_seconds: float, clerks: int, alone: float, pause: float, seed: int) -> list[Burst]:
    with closing(Hastened()) as loop:
        gate = Admission(4.0, wait_seconds, loop.time, random.Random(seed))
        return loop.run_until_complete(bursts(gate, clerks, alone, random.Random(seed), pause))


@pytest.mark.parametrize("pause", [0.0, 60.0], ids=["at once", "after a minute"])
@pytest.mark.parametrize(("clerks", "alone"), [(4, 1.0), (2, 0.3), (8, 0.5), (8, 2.0)])
@pytest.mark.parametrize("seed", range(3))
def test_a_burst_leaves_what_can_be_done_and_who_is_refused_learns_it_at_once(clerks, alone, pause, seed):
    for burst in hastened(2.0, clerks, alone, pause, seed):
        can = (12.0 - alone) * clerks / alone  # the first are ready after so long
        assert burst.in_time >= 0.85 * can
        assert sorted(burst.good)[int(0.99 * len(burst.good))] <= 4 * alone + 2 * 2.0
        assert sum(seconds > 0.1 for seconds in burst.refused) <= 0.01 * len(burst.refused)


def test_with_a_queue_for_everybody_nobody_is_in_time():
    """The negative control."""
    *_, burst = hastened(60.0, 4, 1.0, 0.0, 0)
    assert burst.in_time < 0.85 * 44
    assert sorted(burst.good)[int(0.99 * len(burst.good))] > 8.0


def test_the_refusal_survives_a_process_boundary():
    refused = pickle.loads(pickle.dumps(Overloaded("later", 7)))  # noqa: S301  # our own bytes
    assert (refused.message, refused.retry_after, refused.code) == ("later", 7, "overloaded")


async def test_who_sends_too_slowly_makes_room_for_others(monkeypatch):
    monkeypatch.setattr(intake, "MOST_READING", 3)
    clock = [0.0]
    reading = Intake(30.0, 1000, lambda: clock[0])

    async def never() -> Any:
        await asyncio.sleep(60)

    async def at_once() -> Any:
        return {"type": "http.request", "body": b"x" * 10, "more_body": False}

    async def read(receive: Any) -> bytes:
        async with reading.body(receive, 0) as body:
            return body.data

    slow = [asyncio.create_task(read(never)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await read(at_once)  # nobody has been at it for long
    clock[0] = 2.0
    assert await read(at_once) == b"x" * 10
    await asyncio.sleep(0.01)
    assert [task.done() for task in slow] == [True, False, False]
    with pytest.raises(intake.TooSlow):
        await slow[0]
    for task in slow[1:]:
        task.cancel()
    await asyncio.gather(*slow[1:], return_exceptions=True)
    assert (reading.held, len(reading._reading)) == (0, 0)


async def test_no_more_bodies_are_taken_than_the_memory_has_room_for():
    reading = Intake(30.0, 100)

    async def at_once() -> Any:
        return {"type": "http.request", "body": b"x" * 400, "more_body": False}

    async with reading.body(at_once, 400, "ann"), reading.body(at_once, 0, "bob"):
        with pytest.raises(Unavailable):
            async with reading.body(at_once, 400):
                pass
        with pytest.raises(Unavailable):  # one that did not say how long it is
            async with reading.body(at_once, 0):
                pass
        assert reading.held == 800
    assert (reading.held, reading._shares) == (0, {})


def begun(size: int) -> Any:
    """A sender that sends so much, and never the rest."""
    sent: list[bytes] = [b"x" * size]

    async def receive() -> Any:
        if not sent:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": sent.pop(), "more_body": True}

    return receive


def whole(size: int) -> Any:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * size, "more_body": False}

    return receive


async def test_nobody_has_more_than_a_share_of_the_memory():
    reading = Intake(30.0, 100)
    async with reading.body(whole(400), 400, "ann"):
        for announced in (400, 0):
            with pytest.raises(Unavailable):
                async with reading.body(whole(400), announced, "ann"):
                    pass
        async with reading.body(whole(400), 400, "bob"):
            assert reading.held == 800


async def test_who_holds_memory_for_long_without_coming_to_an_end_makes_room_for_others():
    clock = [0.0]
    reading = Intake(30.0, 100, lambda: clock[0])

    async def read(receive: Any, announced: int, who: str) -> int:
        async with reading.body(receive, announced, who) as body:
            return len(body.data)

    slow = [asyncio.create_task(read(begun(480), 500, who)) for who in ("ann", "bob")]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await read(whole(300), 300, "eve")  # nobody has been at it for long
    clock[0] = 2.0
    with pytest.raises(Unavailable):
        await read(whole(600), 600, "eve")  # more than her share, so nobody is sent away for it
    assert reading.held == 960
    for announced in (300, 0):
        assert await read(whole(300), announced, "eve") == 300
        await asyncio.sleep(0.01)
        assert [task.done() for task in slow] == [True, False]
    assert await read(whole(300), 300, "bob") == 300  # and of one's own share
    with pytest.raises(intake.TooSlow):
        await slow[0]
    with pytest.raises(intake.TooSlow):
        await slow[1]
    assert (reading.held, reading._shares, len(reading._reading)) == (0, {}, 0)


async def test_large_bodies_leave_some_memory_to_small_ones():
    mebi = 2**20
    reading = Intake(30.0, mebi)
    async with reading.body(whole(5 * mebi), 0, "ann"), reading.body(whole(4 * mebi), 0, "bob"):
        with pytest.raises(Unavailable):
            async with reading.body(whole(mebi * 3 // 4), 0, "eve"):
                pass
        async with reading.body(whole(intake.SMALL_BYTES), 0, "eve"), reading.body(whole(1000), 1000, "eve"):
            pass


async def test_the_gatekeeper_says_whose_a_body_is(tmp_path, monkeypatch):
    whose = []
    body = Intake.body

    def told(self: Intake, receive: Any, announced: int, who: str = "") -> Any:
        whose.append(who)
        return body(self, receive, announced, who)

    monkeypatch.setattr(Intake, "body", told)
    world = clerks(tmp_path / "home")
    with served(world) as url:
        async with clients(url.removesuffix("/v1")) as client:
            await one(client, Load())
    world.log.close()
    assert whose == ["address 127.0.0.1"]


# over HTTP


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[str]:
    world = clerks(tmp_path / "home", wait_seconds=0.5, body_seconds=1.0)
    with served(world) as url:
        yield url.removesuffix("/v1")
    world.log.close()


@dataclass
class Load:
    statuses: Counter[int] = field(default_factory=Counter)
    good: list[float] = field(default_factory=list)  # seconds an answer took
    shed: list[float] = field(default_factory=list)
    unsaid: int = 0  # refusals that do not say when to come back


async def offer(client: httpx.AsyncClient, a_second: float, seconds: float, load: Load) -> None:
    """Open loop: so many a second are sent, whatever becomes of those before them."""
    tasks, began = [], time.perf_counter()
    for i in range(int(a_second * seconds)):
        await asyncio.sleep(max(0.0, began + i / a_second - time.perf_counter()))
        tasks.append(asyncio.create_task(one(client, load)))
    await asyncio.gather(*tasks)


async def one(client: httpx.AsyncClient, load: Load) -> None:
    began = time.perf_counter()
    reply = await client.post(CHAT, json=said("hi", model="multimoe/counter"))
    taken = time.perf_counter() - began
    load.statuses[reply.status_code] += 1
    if reply.status_code == 200:
        load.good.append(taken)
    else:
        load.shed.append(taken)
        load.unsaid += not reply.headers.get("retry-after", "").isdigit()


@asynccontextmanager
async def clients(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=500)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30, trust_env=False) as client:
        yield client


async def test_under_four_times_what_it_can_do_it_does_what_it_can_and_refuses_the_rest_quickly(shop):
    calm, storm, after = Load(), Load(), Load()
    async with clients(shop) as client:
        for _ in range(3):
            await one(client, calm)
        await offer(client, 40, 2.5, storm)
        await asyncio.sleep(0.5)
        await offer(client, 5, 1.0, after)
    assert calm.statuses == {200: 3}
    assert set(storm.statuses) == {200, 503}
    assert storm.unsaid == 0
    assert 15 <= storm.statuses[200] <= 60  # about 40 can be served, if nothing else takes the machine's time
    assert statistics.median(storm.good) < 4.0
    assert statistics.median(storm.shed) < statistics.median(storm.good)
    assert after.statuses == {200: 5}


async def test_health_is_told_while_requests_are_refused(shop):
    async with clients(shop) as client:
        storm = asyncio.create_task(offer(client, 40, 1.0, Load()))
        statuses = []
        while not storm.done():
            statuses.append((await client.get("/health")).status_code)
            await asyncio.sleep(0.05)
        await storm
    assert set(statuses) == {200}
    assert len(statuses) > 3


async def test_openai_s_client_gets_its_answer_by_its_own_retries(shop):
    async with clients(shop) as client:
        storm = asyncio.create_task(offer(client, 40, 1.5, Load()))
        await asyncio.sleep(0.3)
        asking = openai.AsyncOpenAI(base_url=f"{shop}/v1", api_key="none", max_retries=4)
        replies = await asyncio.gather(
            *(
                asking.chat.completions.create(model="multimoe", messages=[{"role": "user", "content": "hi"}])
                for _ in range(6)
            )
        )
        await storm
        await asking.close()
    assert {reply.choices[0].message.content for reply in replies} == {"served"}


def test_a_body_that_does_not_come_is_given_up(shop):
    host, port = shop.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b'Content-Length: 500\r\n\r\n{"model": '
        )
        reply = line.recv(4096).decode()
    assert reply.startswith("HTTP/1.1 408")
    assert "request_timeout" in reply
    assert "connection: close" in reply.lower()


async def test_slow_senders_take_nobody_s_place(shop):
    host, port = shop.removeprefix("http://").split(":")
    lines = []
    for _ in range(2 * int(FIRST)):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\n{")
        lines.append(writer)
    async with clients(shop) as client:
        load = Load()
        await asyncio.gather(*(one(client, load) for _ in range(4)))
    for writer in lines:
        writer.close()
    assert load.statuses == {200: 4}


async def test_without_admission_everybody_is_let_in_and_waits(tmp_path):
    """The negative control: the same load makes everybody late."""
    world = clerks(tmp_path / "home", admission="off")
    storm = Load()
    with served(world) as url:
        async with clients(url.removesuffix("/v1")) as client:
            await offer(client, 40, 1.0, storm)
    world.log.close()
    assert storm.statuses == {200: 40}
    assert max(storm.good) > 2.0  # four seconds' work


async def test_a_refused_upload_is_not_read(tmp_path):
    world = clerks(tmp_path / "home")
    with served(world) as url:
        httpx.get(url.removesuffix("/v1") + "/health", trust_env=False)  # the first request puts the layers together
        gatekeeper = _layer(world)
        gatekeeper.admission.check = lambda who: (_ for _ in ()).throw(Overloaded("full", 3))
        async with clients(url.removesuffix("/v1")) as client:
            with suppress(httpx.WriteError, httpx.ReadError):
                reply = await client.post(CHAT, content=b"x" * 20 * 2**20)
                assert (reply.status_code, reply.headers["retry-after"]) == (503, "3")
                assert reply.headers["connection"] == "close"
        assert gatekeeper.intake.held == 0
    world.log.close()


def _layer(world: World) -> Any:
    layer: Any = world.app.middleware_stack
    while type(layer).__name__ != "Gatekeeper":
        layer = layer.app
    return layer


def test_the_queue_is_bounded_whatever_is_learned():
    gate = admission([0.0])
    gate.limit, gate.under_way, gate.waiting = 256.0, 256, MOST_WAITING
    assert not gate._has_room()
