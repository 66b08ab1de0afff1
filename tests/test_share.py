"""Work that may take its share of the time and no more."""

import pytest

from gateway.records.share import Share


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_work_takes_its_share_of_the_time_and_no_more(clock):
    share: Share[int] = Share(0.1, clock)
    done = 0

    async def work() -> int:
        clock.now += 2.0
        return 1

    while clock.now < 1000:
        done += await share.of(work) or 0
        clock.now += 0.01
    assert 2.0 * done / clock.now == pytest.approx(0.1, rel=0.05)


async def test_all_of_the_time_is_every_time(clock):
    share: Share[int] = Share(1.0, clock)

    async def work() -> int:
        clock.now += 2.0
        return 1

    assert [await share.of(work) for _ in range(5)] == [1] * 5


async def test_there_is_one_at_a_time_and_a_failure_is_no_end(clock):
    share: Share[None] = Share(0.5, clock)

    async def fails() -> None:
        assert await share.of(fails) is None  # meanwhile
        clock.now += 1.0
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await share.of(fails)
    assert await share.of(fails) is None
    clock.now += 1.1
    with pytest.raises(ValueError, match="broken"):
        await share.of(fails)
