"""The drills of what may be lost, at their small scale: every row is met, and every negative control goes off."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from api_world import World
from drills import durability, exactly_once, store_faults, torn
from drills.row import Row, Scale

Drill = Callable[[Scale], Iterator[Row]]
QUICK: tuple[Drill, ...] = (
    durability.power_cuts,
    durability.flushes,
    durability.killed_on_sqlite,
    store_faults.failed_flushes,
    store_faults.pool_exhausted,
    exactly_once.two_at_once,
    exactly_once.holder_killed,
    exactly_once.holder_sleeps,
    torn.killed_at_every_call,
    torn.failing_calls,
    torn.full_at_every_decile,
    torn.power_cuts,
)


@pytest.mark.parametrize("drill", QUICK, ids=lambda drill: drill.__name__)
def test_every_row_of_the_drill_is_met(drill: Drill) -> None:
    rows = list(drill("quick"))
    if not rows:
        pytest.skip("strace is not installed or may not trace")
    assert [row for row in rows if not row.met] == []


def test_a_start_with_damaged_versions_serves_the_last_good_one_and_says_so() -> None:
    assert [row for row in islice(torn.starts("quick"), 3) if not row.met] == []


async def test_a_gateway_whose_store_hangs_says_so_where_it_is_asked_whether_it_is_ready(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.client() as client:
        assert (await client.get("/ready")).json()["status"] == "ready"
        world.services.recorder._away = True
        told = (await client.get("/ready")).json()
    assert told["status"] == "degraded"
    assert told["reasons"] == ["the store does not take records, so answers cannot be rated"]


async def test_a_gateway_starts_without_its_store_and_lets_nobody_in_until_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "away").touch()
    world = World(tmp_path / "home", store={"url": f"sqlite:///{tmp_path}/away/store.db"})
    async with world.client() as client:
        assert (await client.get("/health")).status_code == 200
        refused = await client.get("/v1/models")
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        (tmp_path / "away").unlink()
        assert (await client.get("/v1/models")).status_code == 200
    world.log.close()
