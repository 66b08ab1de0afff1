"""One promotion, however many retrain: two at once, one that dies over it, one that sleeps past its lease and wakes.

Retrainers are processes of their own on one store and one folder of gate versions. What they run is what a cluster's
training task runs, but for the fit itself, which writes a version that is proven better.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import nursery
import postgres
from api_world import CATALOG, SetGate

from drills.row import Row, Scale
from gateway import locks
from gateway.api.gates import JOB
from gateway.change import retraining, stages
from gateway.deployment.local import LocalCluster
from multimoe import journal
from multimoe.checkpoint import Manifest, Registry
from multimoe.config import Catalog, parse
from multimoe.errors import Conflict, MultimoeError
from multimoe.feedback import FeedbackLog, jobs
from multimoe.journal import Standing, Step
from multimoe.quality import Learned

PATIENCE_SECONDS = 240.0  # of a drill with a retrainer that is slow to load
MEMORY = Path("/dev/shm")
LEASE = timedelta(seconds=1.5)  # instead of minutes
Where = Literal["", "training", "taking"]  # where a retrainer dies or sleeps; "taking": all is checked, nothing written
ROLLOUT = {"shadow_requests": 0, "canary_share": 0.0}  # a version that is proven better is promoted at once


def catalog_of(home: Path, url: str) -> Catalog:
    return parse({**CATALOG, "home": str(home), "store": {"url": url}, "gate": {**CATALOG["gate"], "rollout": ROLLOUT}})


# --- in the retrainer's process ---


def retrainer(home: str, url: str, name: str, dies: Where, sleeps: Where, insists: bool, careless: bool) -> None:
    """Wants the job; does it where it gets it. With `insists` it asks until it does."""
    settings, folder = catalog_of(Path(home), url), Path(home)
    hit = {point: _hit(folder, name, point, dies, sleeps) for point in ("training", "taking")}

    def retrain(log: FeedbackLog, registry: Registry, *_: Any, now: datetime, progress: Any, **__: Any) -> Manifest:
        made = registry.write(Learned().rows(["parrot"]), Manifest(created=now, proven=True, reason="better"))
        if not insists:
            _wait_for(lambda: len(list(folder.glob("tried-*"))) >= 2)  # else one may begin when the other has ended
        hit["training"]()
        progress(1.0, "made")
        return made

    def take(registry: Registry, step: Step, expected: Standing | None = None) -> Standing:
        hit["taking"]()
        return real(registry, step, None if careless else expected)

    real = Registry.take
    with ExitStack() as patched, FeedbackLog.open(url) as log:
        patched.enter_context(mock.patch.dict(sys.modules, {"multimoe.retrain": SimpleNamespace(retrain=retrain)}))
        patched.enter_context(mock.patch.object(Registry, "take", take))
        if dies or sleeps or insists:
            patched.enter_context(mock.patch.object(jobs, "FRESH", LEASE))
            patched.enter_context(mock.patch.object(locks, "PATIENCE_SECONDS", 2.0))
        if careless:
            patched.enter_context(mock.patch.object(stages, "take", _careless(stages.take)))
            patched.enter_context(mock.patch.object(stages, "after_training", _promotes_anyway))
        job = _job(log, JOB + name if careless else JOB, insists)
        (folder / f"tried-{name}").touch()
        if job is not None:
            retraining.run(settings, LocalCluster(settings.experts, Path, SetGate(settings.experts)), log, job)


def _job(log: FeedbackLog, kind: str, insists: bool) -> str | None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return log.start_job(kind).id
        except Conflict:
            if not insists or time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def _hit(folder: Path, name: str, point: str, dies: Where, sleeps: Where) -> Any:
    def hit() -> None:
        if point in (dies, sleeps):
            (folder / f"{point}-{name}").touch()
            # this thread: told to the process, the first to take notice may be another, and this one goes on meanwhile
            signal.pthread_kill(threading.get_ident(), signal.SIGKILL if point == dies else signal.SIGSTOP)

    return hit


def _careless(take: Any) -> Any:
    async def anyhow(cluster: Any, registry: Any, log: Any, step: Any, *_: Any) -> Standing:
        taken: Standing = await take(cluster, registry, log, step)
        return taken

    return anyhow


def _promotes_anyway(manifest: Manifest, *_: Any) -> Step:
    return stages.by_hand("promoted", manifest.version, datetime.now(UTC))


# --- the drills ---


class Place:
    """A store and a folder of gate versions."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, self.url = home, url
        FeedbackLog.open(url).close()
        self.registry = Registry(catalog_of(home, url).gates)
        self.context = nursery.forks()

    def start(
        self, name: str, dies: Where = "", sleeps: Where = "", insists: bool = False, careless: bool = False
    ) -> BaseProcess:
        told = (str(self.home), self.url, name, dies, sleeps, insists, careless)
        process = self.context.Process(target=retrainer, args=told, daemon=True)
        process.start()
        return process

    @property
    def promoted(self) -> list[int]:
        return [step.version for step in self.registry.journal.steps()]

    def clear(self) -> None:
        for pattern in ("tried-*", "training-*", "taking-*"):
            for marker in self.home.glob(pattern):
                marker.unlink()


@contextmanager
def places(scale: Scale) -> Iterator[dict[str, Place]]:
    """On SQLite and, where it is installed, on PostgreSQL."""
    with ExitStack() as opened:
        folders = [Path(opened.enter_context(tempfile.TemporaryDirectory(dir=MEMORY))) for _ in range(2)]
        found = {"SQLite": Place(folders[0], f"sqlite:///{folders[0]}/store.db")}
        if postgres._program("initdb") and scale == "long":
            found["PostgreSQL"] = Place(folders[1], opened.enter_context(postgres.running()).fresh())
        yield found


def two_at_once(scale: Scale) -> Iterator[Row]:
    with places(scale) as opened:
        runs = (100 if scale == "long" else 3) // len(opened)
        for store, place in opened.items():
            counts = [_promotions(place, [place.start("a"), place.start("b")]) for _ in range(runs)]
            yield _row(f"two retrainers at once, {store}", f"{runs} runs", counts, place)
        careless = [place.start("a", careless=True), place.start("b", careless=True)]
        counts = [_promotions(place, careless)]
    yield Row(
        "T36", "the same without job, comparison and judgement", "1 run", f"{counts[0]} promotions", "more than 1",
        counts[0] > 1, control=True,
    )  # fmt: skip


def holder_killed(scale: Scale) -> Iterator[Row]:
    runs = 3 if scale == "long" else 1
    with places(scale) as opened:
        for store, place in opened.items():
            for where in ("training", "taking") if scale == "long" else ("taking",):
                counts, freed = [], 0.0
                for _ in range(runs):
                    holder = place.start("a", dies=where, insists=True)
                    _wait_for((place.home / f"{where}-a").exists)
                    died = time.monotonic()
                    counts.append(_promotions(place, [holder, place.start("b", insists=True)]))
                    freed = max(freed, time.monotonic() - died)
                told = f"{runs} kills; job free and done again in {freed:.1f} s of a lease of {LEASE.total_seconds()} s"
                yield _row(f"the one at it is killed while {where}, {store}", told, counts, place)


def holder_sleeps(scale: Scale) -> Iterator[Row]:
    runs = 3 if scale == "long" else 1
    with places(scale) as opened:
        for store, place in opened.items():
            for where in ("training", "taking") if scale == "long" else ("training",):
                counts = [_woken(place, where) for _ in range(runs)]
                yield _row(f"the one at it sleeps past its lease while {where}, {store}", f"{runs} runs", counts, place)


def _woken(place: Place, where: Where) -> int:
    """The heir comes to its end before the sleeper wakes."""
    sleeper = place.start("a", sleeps=where, insists=True)
    _wait_for((place.home / f"{where}-a").exists)
    before = len(place.promoted)
    heir = place.start("b", insists=True)
    heir.join(PATIENCE_SECONDS)
    assert sleeper.pid is not None
    os.kill(sleeper.pid, signal.SIGCONT)
    return _promotions(place, [sleeper, heir], before)


def machines(scale: Scale) -> Iterator[Row]:
    """Where no file lock reaches the other machine, PostgreSQL's does: changes of what serves never overlap."""
    if not postgres._program("initdb"):
        return
    steps = 40 if scale == "long" else 5
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, postgres.running() as server:
        for shared, control in ((True, False), (False, True)):
            place = Place(Path(folder) / str(shared), server.fresh())
            overlaps, taken = _from_two_machines(place, steps, shared)
            yield Row(
                "T36",
                "changes from two machines" + ("" if shared else " without the store's lock"),
                f"{2 * steps} steps by two processes that no file lock keeps apart",
                f"{overlaps} overlap, {taken} of {2 * steps} in the journal",
                "0 overlap, none lost",
                overlaps > 0 if control else not overlaps and taken == 2 * steps,
                control,
            )


def _from_two_machines(place: Place, steps: int, shared: bool) -> tuple[int, int]:
    versions = [place.registry.write(Learned().rows(["parrot"]), Manifest(reason="r")).version for _ in range(2)]
    told = [(str(place.home), place.url, version, steps, shared) for version in versions]
    processes = [place.context.Process(target=machine, args=one, daemon=True) for one in told]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    under_way, overlaps = 0, 0
    for line in (place.home / "changes").read_text().split():
        under_way += 1 if line == "begins" else -1
        overlaps += under_way > 1
    return overlaps, len(place.registry.journal.steps())


def machine(home: str, url: str, version: int, steps: int, shared: bool) -> None:
    """A gateway on a machine of its own: puts `version` into shadow again and again."""
    import asyncio

    settings = catalog_of(Path(home), url)
    registry, gate = Registry(settings.gates), SetGate(settings.experts)
    cluster = LocalCluster(settings.experts, Path, gate)
    changes = os.open(Path(home) / "changes", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    take = registry.take

    async def serve(*_: Any) -> None:
        os.write(changes, b"begins\n")
        await asyncio.sleep(0.005)

    def taken(*told: Any) -> Standing:
        try:
            return take(*told)
        finally:
            os.write(changes, b"ends\n")

    cluster.serve_gate, registry.take = serve, taken  # type: ignore[method-assign]
    with (
        mock.patch.object(locks, "lock", return_value=nullcontext()),
        mock.patch.object(journal.fcntl, "flock"),
        FeedbackLog.open(url) as log,
    ):
        (Path(home) / f"tried-{version}").touch()
        _wait_for(lambda: len(list(Path(home).glob("tried-*"))) == 2)
        for number in range(steps):
            step = Step(at=datetime.now(UTC), action="shadow", version=version, reason=f"{number}")
            try:
                asyncio.run(stages.take(cluster, registry, log if shared else None, step))  # type: ignore[arg-type]
            except MultimoeError:
                os.write(changes, b"ends\n")


def _promotions(place: Place, processes: list[BaseProcess], before: int | None = None) -> int:
    """How many this run led to; the journal only ever grows."""
    start = len(place.promoted) if before is None else before
    for process in processes:
        process.join(PATIENCE_SECONDS)
        assert process.exitcode is not None, "a retrainer did not end"
    place.clear()
    return len(place.promoted) - start


def _row(what: str, tried: str, counts: list[int], place: Place) -> Row:
    rising = place.promoted == sorted(set(place.promoted))
    figure = f"promotions {min(counts)} to {max(counts)} a run, versions {'rise' if rising else 'do not rise'}"
    return Row("T36", what, tried, figure, "1 a run, rising", set(counts) == {1} and rising)


def _wait_for(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


DRILLS = (two_at_once, holder_killed, holder_sleeps, machines)
