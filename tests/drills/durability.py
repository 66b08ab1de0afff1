"""A rating that was acknowledged is there: after power cuts, after kill -9 of the gateway, after a crash of PostgreSQL.

Killing a process leaves the page cache alive and so tells nothing of flushes; the cut of a simulated disk does, and the
weaker settings show that it does. PostgreSQL's crash loses what was in its own buffers.
"""

import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import nursery
import postgres
import power
from sqlalchemy import exc

from drills._strace import traceable, traced
from drills.row import Row, Scale
from multimoe.errors import MultimoeError
from multimoe.feedback import FeedbackLog, Interaction, Rating, database

ANSWER = Interaction(id="a", created=datetime(2026, 11, 1, tzinfo=UTC), model="multimoe", status="ok")
MEMORY = Path("/dev/shm")  # a page cache is all that a killed process leaves behind; no need to wait for a disk
WEAKER = {"FULL": 3, "NORMAL": 3, "OFF": 3}  # of a control one trial in so many is enough
RATERS = 3


class Lost:
    """What was acknowledged, what of it is gone, and how many stores were damaged."""

    def __init__(self) -> None:
        self.trials = self.acknowledged = self.lost = self.damaged = 0

    def __str__(self) -> str:
        return f"{self.acknowledged:,} acknowledged, {self.lost:,} lost, {self.damaged} of {self.trials} stores damaged"


# --- power cuts ---


def power_cuts(scale: Scale) -> Iterator[Row]:
    trials, filesystem = 1000 if scale == "long" else 20, power.Filesystem()
    ours = cut(trials, filesystem, None)
    yield Row(
        "T31", "power cut, SQLite as the product sets it", f"{trials} cuts at any operation", str(ours), "0 lost",
        ours.acknowledged > trials and not ours.lost and not ours.damaged,
    )  # fmt: skip
    for synchronous, part in WEAKER.items():
        pragmas = tuple(re.sub("synchronous=.*", f"synchronous={synchronous}", p) for p in database.PRAGMAS)
        weaker = cut(max(10, trials // part), filesystem, pragmas)
        yield Row(
            "T31", f"power cut, synchronous={synchronous}", f"{weaker.trials} cuts", str(weaker), "some lost",
            weaker.lost > 0, control=True,
        )  # fmt: skip


def cut(trials: int, filesystem: power.Filesystem, pragmas: tuple[str, ...] | None) -> Lost:
    found = Lost()
    database.logger.disabled = True  # every cut would be told of
    try:
        _cuts(trials, filesystem, pragmas, found)
    finally:
        database.logger.disabled = False
    return found


def _cuts(trials: int, filesystem: power.Filesystem, pragmas: tuple[str, ...] | None, found: Lost) -> None:
    chance, disk = random.Random(7), power.Disk()
    with power.powered(disk, filesystem, pragmas) as log:
        log.record(ANSWER)
        log.database.engine.dispose()
        image = {name: bytes(file.seen) for name, file in disk.files.items()}
        for _ in range(trials):
            _one_cut(log, filesystem, image, chance, found)


def _one_cut(
    log: FeedbackLog, filesystem: power.Filesystem, image: dict[str, bytes], chance: random.Random, found: Lost
) -> None:
    """In the middle of an operation, or between a rating's acknowledgement and the next one."""
    in_between = chance.random() < 0.5
    disk = filesystem.disk = power.Disk(image, -1 if in_between else chance.randrange(150))
    acknowledged = []
    try:
        for number in range(1 + chance.randrange(5)):
            log.rate(Rating(completion_id="a", score=1, user=f"{number}"))
            acknowledged.append(f"{number}")
    except MultimoeError:
        assert disk.off, "only a cut may fail a rating here"
    disk.off = True
    log.database.engine.dispose()
    filesystem.disk = power.Disk(disk.after_cut(chance))
    found.trials += 1
    found.acknowledged += len(acknowledged)
    present, sound = _after(log)
    found.lost += len(set(acknowledged) - present)
    found.damaged += not sound
    log.database.engine.dispose()


def _after(log: FeedbackLog) -> tuple[set[str], bool]:
    """Who rated, and whether the store is whole: no page damaged, no rating without its line in the history."""
    try:
        with log.database.reading() as connection:
            whole = connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            told = {row[0] for row in connection.exec_driver_sql("SELECT user_id FROM rating_history")}
        present = {str(rating.user) for rating in log.ratings("a")}
    except (MultimoeError, exc.SQLAlchemyError, ValueError):
        return set(), False
    return present, whole and told == present


# --- flushes ---


def flushes(scale: Scale) -> Iterator[Row]:
    if not traceable():
        return
    count = 50 if scale == "long" else 5
    for what, pragmas, goal, control in (
        ("flushes a rating, as the product sets it", database.PRAGMAS, 1, False),
        ("flushes a rating, synchronous=OFF", ("journal_mode=DELETE", "synchronous=OFF"), 1, True),
    ):
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder, mock.patch.object(database, "PRAGMAS", pragmas):
            seen = _flushes(f"sqlite:///{folder}/store.db", count, Path(folder) / "trace")
        met = seen < goal * count if control else seen >= goal * count
        yield Row("T31", what, f"{count} ratings under strace", f"{seen / count:.1f}", "at least 1", met, control)


def _flushes(url: str, count: int, trace: Path) -> int:
    log = FeedbackLog.open(url)
    log.record(ANSWER)
    log.close()

    def rate() -> None:
        with FeedbackLog.open(url) as log:
            for number in range(count):
                log.rate(Rating(completion_id="a", score=1, user=f"{number}"))

    traced(rate, "-e", "trace=fsync,fdatasync", "-o", str(trace))
    return trace.read_text().count("sync(")


# --- kill -9 ---


def killed_on_sqlite(scale: Scale) -> Iterator[Row]:
    loops = 500 if scale == "long" else 6
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        url = f"sqlite:///{folder}/store.db"
        found = _kill_gateways(Path(folder), url, loops, lambda loop: None)
        with FeedbackLog.open(url) as log, log.database.reading() as connection:
            found.damaged = int(connection.exec_driver_sql("PRAGMA integrity_check").scalar() != "ok")
    yield _killed("kill -9 of the gateway, SQLite", f"{loops} kills under {RATERS} raters by HTTP", loops, found)


def killed_on_postgres(scale: Scale) -> Iterator[Row]:
    loops, every = (200, 5) if scale == "long" else (4, 2)
    crashes = loops // every
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, postgres.running() as server:

        def crash(loop: int) -> None:
            if loop % every == 0:
                server.crash()
                server.start()

        found = _kill_gateways(Path(folder), server.fresh(), loops, crash)
    tried = f"{loops} kills of the gateway, {crashes} of PostgreSQL, all its processes"
    yield _killed("kill -9 of gateway and PostgreSQL", tried, loops, found)


def lazy_postgres(scale: Scale) -> Iterator[Row]:
    """Set to commit before its disk has it: the product's sessions wait all the same, others lose."""
    rounds, lazily = (10 if scale == "long" else 1), ("synchronous_commit=off", "wal_writer_delay=10000")
    with postgres.running() as server:
        server.stop()
        server.start(*lazily)
        url, ours, theirs = server.fresh(), Lost(), Lost()
        for number in range(rounds):
            _crash_after_ratings(server, url, f"ours-{number}", ours, lazily)
        with mock.patch.object(database, "WAIT_FOR_DISK", "SELECT 1"):
            for number in range(rounds):
                _crash_after_ratings(server, url, f"theirs-{number}", theirs, lazily)
    tried = f"{rounds} crashes right after 20 ratings"
    met = ours.acknowledged == 20 * rounds and not ours.lost
    yield Row("T31", "crash of a PostgreSQL set to synchronous_commit=off", tried, str(ours), "0 lost", met)
    yield Row(
        "T31", "the same, did the product not wait", tried, str(theirs), "some lost", theirs.lost > 0, control=True
    )


def _killed(what: str, tried: str, loops: int, found: Lost) -> Row:
    met = found.acknowledged > loops and not found.lost and not found.damaged
    return Row("T31", what, tried, f"{found.acknowledged:,} acknowledged, {found.lost} lost", "0 lost", met)


def _kill_gateways(home: Path, url: str, loops: int, meanwhile: Callable[[int], None]) -> Lost:
    chance, acknowledged, found = random.Random(11), list[tuple[str, str]](), Lost()
    with nursery.nursery(home, url) as born:
        for loop in range(1, loops + 1):
            with born.gateway() as gateway:
                answer = gateway.ask()
                assert answer["x_multimoe"]["rateable"] is True
                before = len(acknowledged)
                threads = nursery.raters(gateway, answer["id"], f"{loop}", RATERS, acknowledged)
                meanwhile(loop)
                _until_more(acknowledged, before)
                time.sleep(chance.uniform(0, 0.1))
                gateway.kill()
            for thread in threads:
                thread.join(30)
    with FeedbackLog.open(url, timeout_s=30) as log:
        for completion in {completion for completion, _ in acknowledged}:
            present = {rating.user for rating in log.ratings(completion)}
            found.lost += sum(user not in present for id, user in acknowledged if id == completion)
    found.trials, found.acknowledged = loops, len(acknowledged)
    return found


def _until_more(acknowledged: list[tuple[str, str]], before: int) -> None:
    deadline = time.monotonic() + 60
    while len(acknowledged) <= before + RATERS:
        assert time.monotonic() < deadline, "no rating was taken for a minute"
        time.sleep(0.002)


def _crash_after_ratings(
    server: postgres.Postgres, url: str, name: str, found: Lost, settings: tuple[str, ...]
) -> None:
    with FeedbackLog.open(url) as log:
        log.record(ANSWER)
    server.stop()  # so that the answer itself is there
    server.start(*settings)
    acknowledged = [f"{name}-{number}" for number in range(20)]
    with FeedbackLog.open(url) as log:
        for user in acknowledged:
            log.rate(Rating(completion_id="a", score=1, user=user))
        server.crash()
        server.start(*settings)
        try:
            present = {rating.user for rating in log.ratings("a")}
        except MultimoeError:  # the old connections are found out one after the other
            present = {rating.user for rating in log.ratings("a")}
    found.trials += 1
    found.acknowledged += len(acknowledged)
    found.lost += len(set(acknowledged) - present)


DRILLS = (power_cuts, flushes, killed_on_sqlite, killed_on_postgres, lazy_postgres)
