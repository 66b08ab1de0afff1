"""While the store is locked, stopped, killed, full, read-only, gone or of another version: answers go on, and no rating
is acknowledged that is not there.

A real gateway on a real store; people ask and rate without a pause, before, during and after each fault.
"""

import contextlib
import os
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import nursery
import postgres
from sqlalchemy.exc import OperationalError

from drills._strace import traceable, traced
from drills.row import Row, Scale
from multimoe.errors import Unavailable
from multimoe.feedback import FeedbackLog, Interaction, Rating

MEMORY = Path("/dev/shm")
ANSWER_SECONDS = 0.2  # that the expert takes
AHEAD = "ALTER TABLE ratings RENAME COLUMN comment TO remark"  # as a newer product might
BACK = "ALTER TABLE ratings RENAME COLUMN remark TO comment"
RATED = 3  # beside a failing flush
ASKERS, PAUSE = 3, 0.05
SLOWER = 1.1  # allowed at the 99th percentile, once it has been noticed
NOTICED_SECONDS = 1.5  # an answer waits a second for its record before it goes out as one that cannot be rated
RATING_SECONDS, BACK_SECONDS = 2.0, 5.0  # within which a rating is refused, and taken again


@dataclass
class Seen:
    """What callers saw: (when it began, when it ended, status), and who rated."""

    answers: list[tuple[float, float, int]] = field(default_factory=list)
    ratings: list[tuple[float, float, int, bool]] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    name: str
    seconds: float
    quick_s: float
    begin: Callable[[], Any]
    end: Callable[[], Any]


class Traffic:
    """People who ask, and one who rates, until it is left."""

    def __init__(self, gateway: nursery.Gateway, completion: str) -> None:
        self.gateway, self.completion, self.seen = gateway, completion, Seen()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(ASKERS)]
        self._threads.append(threading.Thread(target=self._rate, daemon=True))

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        line = self.gateway.line()
        while not self._stop.is_set():
            began, status = time.monotonic(), 0
            with suppress(*nursery.BROKEN):
                status = nursery.post(line, "/v1/chat/completions", nursery.asked("hello"))[0]
            self.seen.answers.append((began, time.monotonic(), status))
        line.close()

    def _rate(self) -> None:
        line = self.gateway.line()
        for number in range(10**6):
            if self._stop.wait(PAUSE):
                break
            user = f"{time.monotonic_ns()}-{number}"
            body = {"completion_id": self.completion, "score": 1, "user": user}
            began, status, headers = time.monotonic(), 0, dict[str, str]()
            with suppress(*nursery.BROKEN):
                status, _, headers = nursery.post(line, "/v1/feedback", body)
            self.seen.ratings.append((began, time.monotonic(), status, "retry-after" in headers))
            if status == 201:
                self.seen.acknowledged.append(user)
        line.close()


def drill(store: str, home: Path, url: str, faults: list[Fault], scale: Scale) -> Iterator[Row]:
    usual_s = 4.0 if scale == "long" else 1.0
    with nursery.nursery(home, url, ANSWER_SECONDS) as born, born.gateway() as gateway:
        completion = gateway.ask()["id"]
        for fault in faults:
            with Traffic(gateway, completion) as traffic:
                time.sleep(usual_s)
                fault.begin()
                began = time.monotonic()
                try:
                    time.sleep(fault.seconds if scale == "long" else fault.quick_s)
                finally:
                    ending = time.monotonic()  # from here on a store that is just starting may take one
                    fault.end()
                ended = time.monotonic()
                _wait_for(lambda since=ended: any(b > since and s == 201 for b, _, s, _ in traffic.seen.ratings))
                time.sleep(usual_s / 2)
            yield _judged(f"{fault.name}, {store}", traffic.seen, began, ending, ended, url, completion)


def _judged(what: str, seen: Seen, began: float, ending: float, ended: float, url: str, completion: str) -> Row:
    failed = sum(status != 200 for _, _, status in seen.answers)
    usual = [e - b for b, e, _ in seen.answers if e < began or b > ended + 1]
    noticed = began + min(NOTICED_SECONDS, (ended - began) / 2)
    first = max((e - b for b, e, _ in seen.answers if e > began and b <= noticed), default=0.0)
    during = [e - b for b, e, _ in seen.answers if noticed < b < ended]
    p99 = float(np.percentile(during, 99)), float(np.percentile(usual, 99))
    refused = [(e - b, honest) for b, e, s, honest in seen.ratings if began < b and e < ended and s == 503]
    taken = sum(began < b and e < ending and s == 201 for b, e, s, _ in seen.ratings)
    odd = {s for _, _, s, _ in seen.ratings} - {201, 503}
    slowest = max((seconds for seconds, _ in refused), default=0.0)
    back = min(e for b, e, s, _ in seen.ratings if b > ended and s == 201) - ended
    with FeedbackLog.open(url) as log:
        present = {rating.user for rating in log.ratings(completion)}
    lost = len(set(seen.acknowledged) - present)
    figure = (
        f"{len(during)} answers, {failed} failed, p99 {p99[0] / p99[1]:.2f}x (the first took {first:.1f} s); "
        f"{len(refused)} ratings refused within "
        f"{slowest:.1f} s, {taken} taken, {len(seen.acknowledged)} acknowledged in all, {lost} lost; back {back:.1f} s"
    )
    met = not (failed or lost or odd or taken) and all(honest for _, honest in refused) and bool(refused)
    met = met and p99[0] <= SLOWER * p99[1] and slowest <= RATING_SECONDS and back <= BACK_SECONDS
    goal = "0 failed, p99 1.1x once noticed, refused within 2 s, 0 lost, back 5 s"
    return Row("T32", what, f"{ended - began:.0f} s", figure + (f"; also {odd}" if odd else ""), goal, met)


# --- SQLite ---


def sqlite_faults(scale: Scale) -> Iterator[Row]:
    with ExitStack() as opened:
        home = Path(opened.enter_context(_small_disk()))
        path = home / "store.db"
        url = f"sqlite:///{path}"
        FeedbackLog.open(url).close()
        holders: list[sqlite3.Connection] = []

        def lock() -> None:
            holders.append(sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False))
            holders[-1].execute("BEGIN EXCLUSIVE")

        def run(statement: str) -> None:
            with contextlib.closing(sqlite3.connect(path, timeout=30)) as other:
                other.execute(statement)

        faults = [
            Fault("locked", 10, 2.5, lock, lambda: holders.pop().close()),
            Fault("schema of another version", 3, 1, lambda: run(AHEAD), lambda: run(BACK)),
            Fault("file moved away", 3, 1, lambda: path.rename(home / "x"), lambda: (home / "x").rename(path)),
        ]
        if os.path.ismount(home):
            filler = home / "filler"
            faults.append(Fault("disk full", 3, 1, lambda: _fill(filler), filler.unlink))
        yield from drill("SQLite", home, url, faults, scale)


@contextmanager
def _small_disk() -> Iterator[str]:
    """Of its own, so that it can be filled; without the right to mount, a folder."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
        try:
            yield folder
        finally:
            if not mounted.returncode:
                subprocess.run(["umount", "-l", folder], check=True)


def _fill(path: Path) -> None:
    """To the last page."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


# --- PostgreSQL ---


def postgres_faults(scale: Scale) -> Iterator[Row]:
    if postgres._program("initdb") is None:
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as home, postgres.running() as server:
        url = server.fresh()
        locked = ExitStack()

        def lock() -> None:
            log = locked.enter_context(FeedbackLog.open(url))
            while True:
                with ExitStack() as trying, suppress(OperationalError):  # a deadlock with those who write
                    connection = trying.enter_context(log.database.engine.begin())
                    connection.exec_driver_sql("LOCK TABLE ratings, interactions IN ACCESS EXCLUSIVE MODE")
                    locked.push(trying.pop_all())
                    return

        def writable(yes: bool) -> None:
            import psycopg

            with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as other:
                other.execute("SET default_transaction_read_only = off")
                other.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'off' if yes else 'on'}")
                other.execute("SELECT pg_reload_conf()")

        yield from drill(
            "PostgreSQL",
            Path(home),
            url,
            [
                Fault("tables locked", 10, 2.5, lock, locked.close),
                Fault("stopped", 30, 3, lambda: server.signal(signal.SIGSTOP), lambda: server.signal(signal.SIGCONT)),
                Fault("killed", 5, 1, server.crash, server.start),
                Fault("read-only", 3, 1, lambda: writable(False), lambda: writable(True)),
            ],
            scale,
        )


# --- what cannot be told from outside ---


def failed_flushes(scale: Scale) -> Iterator[Row]:
    """A commit whose flush the kernel fails is no commit: each of the flushes of a rating, one after the other."""
    if not traceable():
        return
    tried, wrong, refused = 0, 0, 0
    for error in ("EIO", "ENOSPC") if scale == "long" else ("EIO",):
        for call in ("fsync", "fdatasync"):
            for when in range(1, 50, 1 if scale == "long" else 3):
                acknowledged, present, failed = _with_failing_flush(call, error, when)
                wrong += len(acknowledged - present)
                if not failed:  # there are not so many flushes
                    break
                of_name = failed.endswith("new name")
                tried += not of_name
                refused += not of_name and len(acknowledged) == RATED - 1
    yield Row(
        "T32", "flush fails (EIO, ENOSPC)", f"{tried} failures, each of another flush",
        f"{refused} times that rating refused, {wrong} acknowledged and not there", "each refused, 0",
        refused == tried > 2 and not wrong,
    )  # fmt: skip


def _with_failing_flush(call: str, error: str, when: int) -> tuple[set[int], set[int], str]:
    """Of three ratings those acknowledged and those found, where the flush with that number fails; and which it was.

    SQLite takes no notice where the folder of a new journal cannot be flushed: some file systems never can.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        url = f"sqlite:///{folder}/store.db"
        with FeedbackLog.open(url) as log:
            log.record(Interaction(id="a", created=datetime.now(UTC), model="multimoe", status="ok"))
        told, tell = os.pipe()
        inject = f"inject={call}:error={error}:when={when}"
        traced(lambda: _rate_some(url, tell), "-e", f"trace={call}", "-e", inject, "-y", "-o", f"{folder}/trace")
        os.close(tell)
        with os.fdopen(told) as said:
            acknowledged = {int(line) for line in said}
        with FeedbackLog.open(url) as log:
            present = {int(str(rating.user)) for rating in log.ratings("a")}
        trace = Path(folder, "trace").read_text().splitlines()
        failed = next((line for line in trace if "INJECTED" in line), "")
        of_name = f"<{folder}>" in failed and len(acknowledged) == RATED
        return acknowledged, present, failed + (" new name" if of_name else "")


def _rate_some(url: str, tell: int) -> None:
    with FeedbackLog.open(url) as log:
        for number in range(RATED):
            with suppress(Unavailable):
                log.rate(Rating(completion_id="a", score=1, user=f"{number}"))
                os.write(tell, f"{number}\n".encode())


def pool_exhausted(scale: Scale) -> Iterator[Row]:
    """Every connection is taken by somebody else in the process: a rating is refused in time, then taken."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, ExitStack() as held:
        log = held.enter_context(FeedbackLog.open(f"sqlite:///{folder}/store.db", timeout_s=1.5))
        log.record(Interaction(id="a", created=datetime.now(UTC), model="multimoe", status="ok"))
        with ExitStack() as others:
            for _ in range(15):  # SQLAlchemy's pool and its overflow
                others.enter_context(log.database.reading())
            began, refused = time.monotonic(), False
            try:
                log.rate(Rating(completion_id="a", score=1))
            except Unavailable:
                refused = True
            took = time.monotonic() - began
        taken = log.rate(Rating(completion_id="a", score=1))
    figure = f"refused: {refused}, after {took:.1f} s; afterwards taken: {taken}"
    goal = "refused within 2 s, then taken"
    yield Row("T32", "pool exhausted", "15 of 15 connections held", figure, goal, refused and taken and took <= 2.0)


def _wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "ratings are not taken again"
        time.sleep(0.02)


DRILLS = (sqlite_faults, postgres_faults, failed_flushes, pool_exhausted)
