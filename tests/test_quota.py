"""Limits of keys: exact on several gateways at once, told in OpenAI's headers, held while store or clock go wrong."""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import postgres
import pytest
from api_world import Sloth, World, said
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gateway.access.fair_use import duration
from gateway.access.meter import Meter
from gateway.access.quota import ALIVE, DAY, MINUTE, Spent, admit, allowance, heartbeat, settle, stand, tokens_in
from gateway.api.app import build_api
from multimoe.config import Limits
from multimoe.errors import NotFound, Unavailable
from multimoe.feedback import FeedbackLog, Quota
from multimoe.feedback.counters import Counters, Window, Windows

CHAT = "/v1/chat/completions"
NOON = 20_000 * DAY + DAY / 2


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "home")
    yield made
    made.services.meter.close()
    made.log.close()


def bearer(world: World, **quota: Any) -> dict[str, str]:
    _, sent = world.log.create_key("somebody", ["chat"], quota=Quota(**quota))
    return {"authorization": f"Bearer {sent}"}


def meter(path: Path, **clocks: Any) -> Meter:
    now = clocks.get("now")
    return Meter(Counters(f"sqlite:///{path}/log.db", **({"now": now} if now else {})), **clocks)


# the rules alone


def asked(windows: Windows, now: float, count: int, **allowed: float) -> int:
    return sum(not admit(windows, now, "ann", allowed, "here", 0).refused for _ in range(count))  # type: ignore[arg-type]


def test_so_many_a_minute_and_more_as_the_minute_slides():
    windows: Windows = {}
    assert asked(windows, NOON, 25, requests_per_minute=10) == 10
    assert asked(windows, NOON + 59, 25, requests_per_minute=10) == 0
    assert asked(windows, NOON + 90, 25, requests_per_minute=10) == 5  # half of the minute before has slid out
    assert asked(windows, NOON + 300, 25, requests_per_minute=10) == 10


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 40), min_size=5, max_size=120),
    limit=st.integers(1, 20),
)
def test_a_refusal_says_when_the_next_one_is_admitted_and_not_before(gaps, limit):
    windows: Windows = {}
    now = NOON
    for gap in gaps:
        now += gap
        standing = admit(windows, now, "ann", {"requests_per_minute": limit}, "here", 0)
        if standing.refused:
            early, late = dict(windows), dict(windows)
            assert 0 < standing.wait <= 2 * MINUTE
            assert asked(early, now + 0.99 * standing.wait - 1e-3, 1, requests_per_minute=limit) == 0
            assert asked(late, now + standing.wait + 1e-6, 1, requests_per_minute=limit) == 1


@settings(max_examples=60, deadline=None)
@given(gaps=st.lists(st.floats(0, 20), min_size=30, max_size=150), limit=st.integers(1, 12))
def test_never_twice_as_many_in_any_minute(gaps, limit):
    windows: Windows = {}
    now, admitted = NOON, []
    for gap in gaps:
        now += gap
        if not admit(windows, now, "ann", {"requests_per_minute": limit}, "here", 0).refused:
            admitted.append(now)
    assert max((sum(t <= u < t + MINUTE for u in admitted) for t in admitted), default=0) < 2 * limit + 1


@pytest.mark.parametrize("step", [-DAY, -3600, -5, 3600, DAY])
def test_a_clock_that_jumps_opens_or_shuts_a_minute_for_one_minute_at_most(step):
    windows: Windows = {}
    assert asked(windows, NOON, 30, requests_per_minute=10) == 10
    assert asked(windows, NOON + step, 30, requests_per_minute=10) <= 10
    assert asked(windows, NOON + step + 3 * MINUTE, 30, requests_per_minute=10) == 10


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_an_hour_s_jump_over_midnight_gives_one_day_s_worth_and_shuts_for_no_more_than_the_hour(step):
    midnight, windows = 20_000 * DAY, Windows()
    before = midnight - step / 2
    settle(windows, before, "ann", Spent(tokens=100))
    assert stand(windows, before, "ann", {"tokens_per_day": 100}).refused == "tokens_per_day"
    stand_after = stand(windows, before + step, "ann", {"tokens_per_day": 100})
    assert bool(stand_after.refused) == (step < 0)  # it went back: still the day that is used up
    assert stand_after.wait <= DAY + 3600
    assert not stand(windows, midnight + DAY + 1, "ann", {"tokens_per_day": 100}).refused


def test_a_day_ends_at_midnight():
    windows: Windows = {}
    settle(windows, NOON, "ann", Spent(tokens=70, cost=0.5))
    level = stand(windows, NOON, "ann", {"tokens_per_day": 100, "cost_per_day": 0.5})
    assert level.refused == "cost_per_day"
    assert (level.levels["tokens_per_day"].remaining, level.wait) == (30, DAY / 2)
    assert not stand(windows, NOON + DAY / 2, "ann", {"cost_per_day": 0.5}).refused


def test_what_a_dead_gateway_had_under_way_is_forgotten():
    windows: Windows = {}
    heartbeat(windows, NOON, "ann", "dead", 3)
    assert stand(windows, NOON, "ann", {"concurrent_requests": 3}).refused == "concurrent_requests"
    heartbeat(windows, NOON + ALIVE + 1, "ann", "here", 0)
    assert windows == {}


def test_a_key_s_own_limit_stands_above_the_catalog_s():
    limits = Limits(requests_per_minute=10, tokens_per_day=1000)
    assert allowance(None, limits) == {"requests_per_minute": 10, "tokens_per_day": 1000}
    own = Quota(requests_per_minute=5, tokens_per_day="unlimited", cost_per_day=2.5)
    assert allowance(own, limits) == {"requests_per_minute": 5, "cost_per_day": 2.5}
    assert allowance(Quota(), Limits()) == {}


# several gateways


async def flood(mine: Meter, allowed: dict[str, float], tries: int, clients: int) -> int:
    """How many are admitted of so many who ask by turns."""
    left, admitted = tries, 0

    async def client() -> None:
        nonlocal left, admitted
        while left > 0:
            left -= 1
            if not (await mine.admit("ann", allowed)).refused:
                admitted += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return admitted


def test_two_gateways_and_sixty_four_clients_get_what_one_may(tmp_path):
    def gateway(_: int) -> int:
        async def run() -> int:
            mine = meter(tmp_path)
            try:
                return await flood(mine, {"requests_per_minute": 200.0}, 400, 32)
            finally:
                mine.close()

        return asyncio.run(run())

    with ThreadPoolExecutor(2) as gateways:
        assert sum(gateways.map(gateway, range(2))) == 200


async def test_sixty_four_clients_of_one_gateway_share_few_transactions(tmp_path):
    mine = meter(tmp_path)
    transactions = 0
    update = mine._counters.update

    def counted(*args: Any) -> Any:
        nonlocal transactions
        transactions += 1
        return update(*args)

    mine._counters.update = counted  # type: ignore[method-assign]
    standings = await asyncio.gather(*(mine.admit("ann", {"requests_per_minute": 50}) for _ in range(64)))
    assert sum(not standing.refused for standing in standings) == 50
    assert transactions <= 2
    for _ in range(100):  # what is known to be refused asks nobody
        assert (await mine.admit("ann", {"requests_per_minute": 50})).refused
    assert transactions <= 3
    mine.close()


async def test_what_is_under_way_is_counted_on_all_gateways_and_free_again_afterwards(tmp_path):
    first, second = meter(tmp_path), meter(tmp_path)
    allowed = {"concurrent_requests": 2.0}
    assert not (await first.admit("ann", allowed)).refused
    assert not (await second.admit("ann", allowed)).refused
    assert (await first.admit("ann", allowed)).refused == "concurrent_requests"
    second.settle("ann", allowed, Spent())
    await second.standing("ann", allowed)
    assert not (await first.admit("ann", allowed)).refused
    for mine in (first, second):
        mine.close()


async def test_who_hangs_up_while_being_counted_has_nothing_under_way(tmp_path):
    mine = meter(tmp_path)
    allowed = {"concurrent_requests": 4.0}
    for delay in (0, 0.001, 0.003, 0.01):
        tasks = [asyncio.create_task(mine.admit("ann", allowed)) for _ in range(3)]
        await asyncio.sleep(delay)
        for task in tasks:
            task.cancel()
        for answer in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(answer, BaseException) and not answer.refused:
                mine.settle("ann", allowed, Spent())
    await mine.standing("ann", allowed)
    assert (await mine.standing("ann", allowed)).levels["concurrent_requests"].used == 0
    mine.close()


async def test_while_the_store_is_away_each_gateway_counts_by_itself_and_hands_in_later(tmp_path):
    clock = [0.0]
    mine = meter(tmp_path, clock=lambda: clock[0])
    allowed = {"requests_per_minute": 10.0, "tokens_per_day": 1000.0}
    for _ in range(6):
        assert not (await mine.admit("ann", allowed)).refused
    update = mine._counters.update

    def away(*_: Any) -> Any:
        raise Unavailable("away")

    mine._counters.update = away  # type: ignore[method-assign]
    later = [await mine.admit("ann", allowed) for _ in range(20)]
    assert sum(not standing.refused for standing in later) == 4  # it goes on from what it knew: not open, and not shut
    mine.settle("ann", allowed, Spent(tokens=400))
    mine.settle("ann", allowed, Spent(tokens=100))
    await mine.standing("ann", allowed)
    mine._counters.update = update  # type: ignore[method-assign]
    clock[0] += 60
    await mine.standing("ann", allowed)
    other = meter(tmp_path)
    assert (await other.standing("ann", allowed)).levels["tokens_per_day"].used == 500
    mine.close()
    other.close()


async def test_counters_that_a_crash_damaged_begin_anew(tmp_path):
    mine = meter(tmp_path, clock=lambda: clock[0])
    clock = [0.0]
    await mine.admit("ann", {"requests_per_minute": 10.0})
    mine.close()
    (file,) = tmp_path.glob("*.counters.db")
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(b"no database at all" * 1000)
    again = meter(tmp_path, clock=lambda: clock[0])
    assert not (await again.admit("ann", {"requests_per_minute": 10.0})).refused  # counted here alone
    clock[0] += 5
    assert not (await again.admit("ann", {"requests_per_minute": 10.0})).refused
    with Counters(f"sqlite:///{tmp_path}/log.db")._opened().connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM counters").scalar_one() >= 1
    again.close()


# over HTTP


def tally(counters: Counters) -> float | None:
    """One more; None where it could not be counted."""

    def change(windows: Windows, now: float) -> float:
        used = windows.get(("ann", "x"), Window(now)).used + 1
        windows["ann", "x"] = Window(now, used)
        return used

    try:
        return counters.update(["ann"], change)
    except Unavailable:
        return None


def test_counters_whose_file_is_deleted_while_it_is_open_begin_anew(tmp_path):
    one, other = (Counters(f"sqlite:///{tmp_path}/log.db") for _ in range(2))
    assert [tally(one), tally(other)] == [1, 2]
    (tmp_path / "log.counters.db").unlink()
    tally(one), tally(other)
    assert [tally(one), tally(other), tally(one)] == [1, 2, 3]
    one.close()
    other.close()


def test_of_two_gateways_with_a_damaged_file_none_takes_the_other_s_fresh_one_away(tmp_path):
    one, other = (Counters(f"sqlite:///{tmp_path}/log.db") for _ in range(2))
    assert [tally(one), tally(other)] == [1, 2]
    file = tmp_path / "log.counters.db"
    with file.open("r+b") as open_still:
        open_still.write(b"?" * file.stat().st_size)
    assert [tally(one), tally(one), tally(other)] == [None, 1, None]
    assert [tally(one), tally(other), tally(one)] == [2, 3, 4]
    one.close()
    other.close()


def test_a_file_that_is_merely_locked_is_kept_open(tmp_path):
    counters = Counters(f"sqlite:///{tmp_path}/log.db", timeout_s=0.1)
    assert tally(counters) == 1
    engine = counters._engine
    with closing(sqlite3.connect(tmp_path / "log.counters.db")) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert tally(counters) is None
    assert tally(counters) == 2
    assert counters._engine is engine
    counters.close()


def test_on_postgres_the_address_s_own_options_stay_and_counting_is_short():
    with postgres.running() as server:
        url = f"{server.fresh()}?options=-capplication_name%3Dmine"
        counters = Counters(url, timeout_s=1.5)
        names = ("application_name", "lock_timeout", "statement_timeout", "synchronous_commit")
        assert [tally(counters), tally(counters)] == [1, 2]
        engine = counters._opened()
        connected: Any = engine.raw_connection()
        told = connected.driver_connection.info.get_parameters()
        connected.close()
        with engine.begin() as connection:
            counters._lock(connection)
            said = {name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names}
        counters.close()
    assert said == dict(zip(names, ("mine", "1500ms", "1500ms", "off"), strict=True))
    assert (told["keepalives_idle"], told["tcp_user_timeout"]) == ("10", "20000")


async def test_a_key_over_its_rate_is_told_so_in_openai_s_words(world):
    headers = bearer(world, requests_per_minute=3, tokens_per_day=10_000)
    async with world.client(headers=headers) as client:
        replies = [await client.post(CHAT, json=said("hello")) for _ in range(5)]
        (yours,) = [(await client.get("/v1/limits")).json()["yours"]]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["2", "1", "0", "0", "0"]
    last = replies[-1]
    assert last.json()["error"]["code"] == "rate_limit_exceeded"
    assert last.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(last.headers["retry-after"]) <= 120
    assert last.headers["x-ratelimit-limit-requests"] == "3"
    assert last.headers["x-ratelimit-reset-requests"][-1] == "s"
    assert "x-should-retry" not in last.headers
    assert yours["requests_per_minute"]["remaining"] == 0
    assert 0 < yours["tokens_per_day"]["remaining"] < 10_000


async def test_who_is_within_hears_how_it_stands_and_others_are_not_counted(world):
    limited, free = bearer(world, requests_per_minute=2), bearer(world)
    async with world.client() as client:
        for _ in range(4):
            assert (await client.post(CHAT, json=said("hello"), headers=free)).status_code == 200
        reply = await client.post(CHAT, json=said("hello"), headers=limited)
        assert (await client.get("/v1/models", headers=limited)).status_code == 200
    assert reply.headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in reply.headers


async def test_a_day_s_tokens_and_money_end_and_no_sdk_tries_again(world):
    for headers in [bearer(world, tokens_per_day=5), bearer(world, cost_per_day=0.001)]:
        async with world.client(headers=headers) as client:
            first = await client.post(CHAT, json=said("hello there, how are you today?"))
            await asyncio.sleep(0.05)
            second = await client.post(CHAT, json=said("hello"))
        assert (first.status_code, second.status_code) == (200, 429)
        assert second.json()["error"]["code"] == "insufficient_quota"
        assert second.headers["x-should-retry"] == "false"
        assert int(second.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_early_is_not_free(world, stream):
    _, sent = world.log.create_key("ann", ["chat"], quota=Quota(tokens_per_day=1000, concurrent_requests=5))
    world.gate.picks = ("sloth",)
    body = said("one two three four five six seven eight", stream=stream)
    async with served_client(world) as client:
        client.headers["authorization"] = f"Bearer {sent}"
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json=body, timeout=0.5)
        for _ in range(100):
            await asyncio.sleep(0.05)
            yours = (await client.get("/v1/limits")).json()["yours"]
            if yours["concurrent_requests"]["remaining"] == 5:
                break
    assert yours["concurrent_requests"]["remaining"] == 5
    assert yours["tokens_per_day"]["remaining"] <= 1000 - tokens_in("one two three four five six seven eight")
    assert Sloth.answering == 0


async def test_no_more_at_once_than_a_key_may(world):
    headers = bearer(world, concurrent_requests=2)
    world.gate.picks = ("sloth",)
    async with world.client(headers=headers) as client:
        slow = [asyncio.create_task(client.post(CHAT, json=said("hello"))) for _ in range(2)]
        while Sloth.answering < 2:
            await asyncio.sleep(0.01)
        third = await client.post(CHAT, json=said("hello"))
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
    assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "2 requests at once" in third.json()["error"]["message"]


async def test_the_catalog_s_limit_is_for_those_without_one_of_their_own(tmp_path):
    world = World(tmp_path / "home", limits={"requests_per_minute": 1})
    usual, more = bearer(world), bearer(world, requests_per_minute=3)
    async with world.client() as client:
        for headers, status in ((usual, 200), (usual, 429), (more, 200), (more, 200)):
            assert (await client.post(CHAT, json=said("hi"), headers=headers)).status_code == status
    world.services.meter.close()
    world.log.close()


async def test_a_limit_that_is_changed_holds_for_the_next_request(world):
    key, sent = world.log.create_key("ann", ["chat"], quota=Quota(requests_per_minute=1))
    async with world.client(headers={"authorization": f"Bearer {sent}"}) as client:
        assert (await client.post(CHAT, json=said("hi"))).status_code == 200
        assert (await client.post(CHAT, json=said("hi"))).status_code == 429
        world.log.limit_key(key.id, lambda quota: quota.model_copy(update={"requests_per_minute": 5}))
        app = build_api(world.services)  # as a gateway that has not seen the key yet
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as other:
            reply = await other.post(CHAT, json=said("hi"), headers=client.headers)
    assert reply.status_code == 200
    with pytest.raises(NotFound):
        world.log.limit_key("nobody", lambda quota: quota)


async def test_a_store_that_is_away_leaves_neither_everything_open_nor_shut(world, monkeypatch):
    headers = bearer(world, requests_per_minute=4)

    def away(*_: Any) -> Any:
        raise Unavailable("away")

    monkeypatch.setattr(Counters, "update", away)
    async with world.client(headers=headers) as client:
        statuses = Counter([(await client.post(CHAT, json=said("hi"))).status_code for _ in range(9)])
    assert statuses == {200: 4, 429: 5}


async def test_a_key_that_floods_slows_no_other_down(world):
    """The flood asks seven times what it may; each refusal of it is cheap."""
    noisy, quiet = bearer(world, requests_per_minute=30), bearer(world, requests_per_minute=600)

    async def quietly(client: httpx.AsyncClient) -> float:
        taken = []
        for _ in range(15):
            began = time.perf_counter()
            assert (await client.post(CHAT, json=said("hi"), headers=quiet)).status_code == 200
            taken.append(time.perf_counter() - began)
        return sorted(taken)[len(taken) // 2]

    async def loudly(client: httpx.AsyncClient) -> Counter[int]:
        return Counter([(await client.post(CHAT, json=said("hi"), headers=noisy)).status_code for _ in range(200)])

    async with world.client() as client:
        flooded, statuses = await asyncio.gather(quietly(client), loudly(client))
    assert statuses == {200: 30, 429: 170}
    assert flooded < 0.5


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "200ms"), (1, "1s"), (360, "6m0s"), (11_525, "3h12m5s"), (0, "0ms"), (59.2, "1m0s")]
)
def test_durations_are_written_as_openai_does(seconds, words):
    assert duration(seconds) == words


def test_the_command_line_sets_shows_and_changes_limits(tmp_path, monkeypatch):
    from gateway.cli import app

    monkeypatch.setenv("MULTIMOE_HOME", str(tmp_path))
    root = Path(__file__).parents[1]

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["keys", *words, "--catalog", str(root / "deploy/local.yaml")])
        assert done.exit_code == code, done.output
        return done.stdout

    run("create", "ann", "--requests-per-minute", "60", "--tokens-per-day", "100000", "--cost-per-day", "0.5")
    with FeedbackLog.open(f"sqlite:///{tmp_path}/multimoe.db") as log:
        (key,) = log.all_keys()
    assert key.quota == Quota(requests_per_minute=60, tokens_per_day=100_000, cost_per_day=0.5)
    assert "60 requests per minute" in run("list")
    run("limit", key.id, "--requests-per-minute", "catalog", "--cost-per-day", "unlimited")
    with FeedbackLog.open(f"sqlite:///{tmp_path}/multimoe.db") as log:
        (key,) = log.all_keys()
    assert key.quota == Quota(tokens_per_day=100_000, cost_per_day="unlimited")
    for wrong in (["--requests-per-minute", "0"], ["--cost-per-day", "nan"], ["--tokens-per-day", "many"], []):
        run("limit", key.id, *wrong, code=2)


@asynccontextmanager
async def served_client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """Over a real server: only there a client can hang up."""
    from api_world import served

    with served(world) as url:
        async with httpx.AsyncClient(base_url=url.removesuffix("/v1")) as client:
            yield client
