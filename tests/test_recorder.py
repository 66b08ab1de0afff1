"""Records that share a commit: on a real store, and on one that is slow or broken."""

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.records.bulkhead import QUEUE, Bulkhead
from gateway.records.recorder import Recorder
from multimoe.errors import NotFound, Unavailable
from multimoe.feedback import FeedbackLog, Interaction

pytestmark = pytest.mark.asyncio


class Watched(FeedbackLog):
    """Notes how many each commit held; `gate` closed keeps a commit waiting."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.commits: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken: Exception | None = None

    def record(self, *answered: Interaction) -> None:
        self.gate.wait(10)
        if self.broken:
            raise self.broken
        if any(one.model == "unfit" for one in answered):
            raise ValueError("cannot be kept")
        super().record(*answered)
        self.commits.append(len(answered))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Watched]:
    with Watched.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        assert isinstance(opened, Watched)
        yield opened


def answer(id: str, model: str = "multimoe") -> Interaction:
    return Interaction(id=id, created=datetime.now(UTC), model=model, status="ok")


async def test_what_comes_during_a_commit_shares_the_next(log: Watched) -> None:
    recorder = Recorder(log, patience_s=30)
    log.gate.clear()
    first = asyncio.create_task(recorder.record(answer("first")))
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(recorder.record(answer(f"other-{n}"))) for n in range(20)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in (first, *others))  # nobody is told before it is on disk
    log.gate.set()
    await asyncio.gather(first, *others)
    assert log.commits == [1, 20]
    assert {kept.id for kept in log.interactions(50)} == {"first", *(f"other-{n}" for n in range(20))}


async def test_one_that_cannot_be_kept_takes_no_other_along(log: Watched) -> None:
    recorder = Recorder(log, patience_s=30)
    log.gate.clear()
    tasks = [asyncio.create_task(recorder.record(answer("first")))]
    await asyncio.sleep(0.05)
    tasks += [asyncio.create_task(recorder.record(answer(f"{m}-1", m))) for m in ("good", "unfit", "fine")]
    await asyncio.sleep(0.05)
    log.gate.set()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in told] == [type(None), type(None), ValueError, type(None)]
    assert {kept.id for kept in log.interactions(50)} == {"first", "good-1", "fine-1"}


async def test_nobody_waits_for_a_store_that_is_away_and_once_it_is_back_it_has_them_all(log: Watched) -> None:
    recorder = Recorder(log, patience_s=30)
    log.broken = Unavailable("away", code="store_unavailable")
    told = await asyncio.gather(*(recorder.record(answer(f"early-{n}")) for n in range(3)), return_exceptions=True)
    assert [type(error) for error in told] == [Unavailable] * 3
    began = time.monotonic()
    for n in range(100):
        with pytest.raises(Unavailable):
            await recorder.record(answer(f"late-{n}"))
    assert time.monotonic() - began < 0.4  # less than one try at the store takes to come round
    log.broken = None
    await recorder.close()
    assert len(log.interactions(200)) == 103


async def test_a_store_that_hangs_is_waited_for_a_moment_by_those_who_come_first(log: Watched) -> None:
    recorder = Recorder(log, patience_s=0.05)
    log.gate.clear()
    for n in range(3):
        with pytest.raises(Unavailable):
            await recorder.record(answer(f"{n}"))
    log.gate.set()
    await recorder.close()
    assert len(log.interactions()) == 3


async def test_what_waits_for_a_store_takes_only_so_much_room(log: Watched) -> None:
    recorder = Recorder(log, room=100_000)
    log.broken = Unavailable("away", code="store_unavailable")
    told = [answer(f"{n}").model_copy(update={"answer": "x" * 40_000}) for n in range(5)]
    for one in told:
        with pytest.raises(Unavailable):
            await recorder.record(one)
    log.broken = None
    await recorder.close()
    assert {kept.id for kept in log.interactions()} == {"0", "1"}


async def test_a_gateway_that_stops_waits_for_a_store_no_longer_than_it_said(
    log: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.records.recorder.FAREWELL_SECONDS", 0.05)
    recorder = Recorder(log, patience_s=30)
    log.broken = Unavailable("away", code="store_unavailable")
    with pytest.raises(Unavailable):
        await recorder.record(answer("lost"))
    await recorder.close()
    assert "not recorded" in caplog.text


async def test_who_asks_a_store_that_hangs_is_told_in_time_and_when_all_threads_hang_at_once() -> None:
    hung, bulkhead = threading.Event(), Bulkhead(0.05, threads=2)
    try:
        for _ in range(2 + QUEUE):
            with pytest.raises(Unavailable, match="does not answer in time"):
                await bulkhead(hung.wait, 10)
        # the 32 that had not begun never will, so there is room again, and two still hang
        began = time.monotonic()
        crowd = [bulkhead(hung.wait, 10) for _ in range(QUEUE + 5)]
        told = await asyncio.gather(*crowd, return_exceptions=True)
        assert [type(error) for error in told] == [Unavailable] * (QUEUE + 5)
        assert time.monotonic() - began < 5
    finally:
        hung.set()
    await asyncio.sleep(0.05)
    assert await bulkhead(lambda: "back") == "back"
    bulkhead.close()


async def test_what_the_store_raises_is_raised(log: Watched) -> None:
    bulkhead = Bulkhead()
    with pytest.raises(NotFound):
        await bulkhead(log.interaction, "x")
    bulkhead.close()


async def test_who_hangs_up_is_recorded_all_the_same(log: Watched) -> None:
    recorder = Recorder(log, patience_s=30)
    log.gate.clear()
    gone = asyncio.create_task(recorder.record(answer("gone")))
    await asyncio.sleep(0.05)
    gone.cancel()
    stays = asyncio.create_task(recorder.record(answer("stays")))
    log.gate.set()
    await stays
    assert gone.cancelled()
    assert {kept.id for kept in log.interactions(50)} == {"gone", "stays"}


async def test_the_same_answer_twice_is_one_record(log: Watched) -> None:
    recorder = Recorder(log, patience_s=30)
    await asyncio.gather(recorder.record(answer("a")), recorder.record(answer("a", "other")))
    (kept,) = log.interactions(50)
    assert kept.model == "multimoe"
