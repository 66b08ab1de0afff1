import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_world import World

from gateway import locks
from gateway.change import offline, stages
from gateway.change.offline import OfflineGates
from gateway.locks import lock
from multimoe.checkpoint import Manifest, Registry
from multimoe.config import RolloutSpec
from multimoe.errors import CheckpointError, Conflict, NotFound, Unavailable
from multimoe.journal import Standing, Step, Trial
from multimoe.quality import Learned

NOW = datetime(2026, 11, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
BETTER = Manifest(version=5, created=NOW, proven=True, reason="better: +0.1")
ON_TRIAL = Standing(trial=Trial(version=4, share=0.1, since=NOW))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def step(action: str, version: int, **told: Any) -> Step:
    return Step.model_validate({"at": NOW, "action": action, "version": version, **told})


# --- taking a step ---


async def test_gates_serve_a_step_before_the_journal_says_so(world):
    seen: list[int] = []
    take = world.registry.take

    def watching(*args: Any) -> Standing:
        seen.append(world.gate.version)
        return take(*args)

    world.registry.take = watching
    made = world.write_version()
    await stages.take(world.cluster, world.registry, world.log, step("promoted", made))
    assert (seen, world.registry.champion()) == ([made], made)


async def test_a_step_that_cannot_be_served_is_not_written(world):
    made = world.write_version()
    world.gate.broken_versions = {made}
    with pytest.raises(CheckpointError):
        await stages.take(world.cluster, world.registry, world.log, step("promoted", made))
    assert (world.registry.standing(), world.gate.version) == (Standing(), 0)


async def test_gates_that_took_up_half_of_a_step_go_back_though_the_failure_is_none_of_ours(world):
    made = world.write_version()
    serve = world.cluster.serve_gate

    async def torn(version: int, trial: Trial | None = None) -> None:
        await serve(version, trial)
        world.cluster.serve_gate = serve
        raise RuntimeError("a replica died")

    world.cluster.serve_gate = torn
    with pytest.raises(RuntimeError, match="a replica died"):
        await stages.take(world.cluster, world.registry, world.log, step("promoted", made))
    assert (world.registry.standing(), world.gate.version) == (Standing(), 0)


async def test_who_hangs_up_over_a_step_leaves_gates_and_journal_of_one_mind(world):
    made = world.write_version()
    serve, swapped = world.cluster.serve_gate, asyncio.Event()

    async def slowly(version: int, trial: Trial | None = None) -> None:
        await serve(version, trial)
        world.cluster.serve_gate = serve
        swapped.set()
        await asyncio.sleep(60)

    world.cluster.serve_gate = slowly
    taking = asyncio.create_task(stages.take(world.cluster, world.registry, world.log, step("promoted", made)))
    await swapped.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert (world.registry.champion(), world.gate.version) == (0, 0)


async def test_a_failure_to_go_back_does_not_hide_the_one_before(world, caplog):
    made = world.write_version()
    serve = world.cluster.serve_gate

    async def dies(version: int, trial: Trial | None = None) -> None:
        if version == 0:
            raise Unavailable("and is still dead")
        await serve(version, trial)
        raise Unavailable("the gate died")

    world.cluster.serve_gate = dies
    with pytest.raises(Unavailable, match="the gate died"):
        await stages.take(world.cluster, world.registry, world.log, step("promoted", made))
    assert "could not be put right" in caplog.text


async def test_a_version_that_cannot_be_loaded_never_reaches_the_gates(world):
    for action in ("promoted", "shadow", "canary"):
        with pytest.raises(NotFound):
            await stages.take(world.cluster, world.registry, world.log, step(action, 7))
    assert world.gate.configured == []


async def test_a_confirmation_changes_nothing_that_serves(world):
    made = world.write_version()
    await stages.take(world.cluster, world.registry, world.log, step("promoted", made, watched=True))
    served = list(world.gate.configured)
    await stages.take(world.cluster, world.registry, world.log, step("confirmed", made))
    assert world.gate.configured == served
    assert world.registry.standing() == Standing(champions=(0, made))


async def test_steps_of_many_are_taken_one_after_the_other(world):
    """Each swap is under way for a moment; none may begin before the one before is in the journal."""
    versions = [world.write_version() for _ in range(5)]
    under_way = 0
    serve = world.cluster.serve_gate

    async def slowly(version: int, trial: Trial | None = None) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0.02)
        await serve(version, trial)
        under_way -= 1

    world.cluster.serve_gate = slowly
    steps = (step("promoted", version) for version in versions)
    await asyncio.gather(*(stages.take(world.cluster, world.registry, world.log, taken) for taken in steps))
    assert world.registry.champion() == world.gate.version
    assert sorted(world.registry.standing().champions) == [0, *versions]


# --- after a training ---


def test_a_better_version_takes_its_first_step_with_the_verdict_as_its_reason():
    taken = stages.after_training(BETTER, Standing(), Standing(), RolloutSpec(), LATER)
    assert (taken.action, taken.version, taken.reason, taken.at) == ("shadow", 5, "better: +0.1", LATER)
    now = stages.after_training(BETTER, Standing(), Standing(), RolloutSpec(shadow_requests=0, canary_share=0), LATER)
    assert (now.action, now.watched) == ("promoted", True)


def test_a_version_not_proven_better_takes_none():
    unproven = BETTER.model_copy(update={"proven": False})
    assert stages.after_training(unproven, Standing(), Standing(), RolloutSpec(), LATER) is None


def test_who_comes_second_ends_no_trial_so_that_frequent_training_cannot_starve_one():
    with pytest.raises(Conflict, match="gate 4 is in canary; promote gate 5 by hand, or train again"):
        stages.after_training(BETTER, Standing(), ON_TRIAL, RolloutSpec(), LATER)


def test_a_version_judged_against_a_former_champion_is_refused():
    with pytest.raises(Conflict, match="judged against 0, but 3 serves now"):
        stages.after_training(BETTER, Standing(), Standing(champions=(0, 3)), RolloutSpec(), LATER)


def test_training_without_a_server_takes_the_first_step_too(world, monkeypatch):
    def retrain(log: object, registry: Registry, *_: object, **__: object) -> Manifest:
        return registry.write(Learned().rows(["parrot"]), BETTER)

    monkeypatch.setattr("multimoe.retrain.retrain", retrain)
    monkeypatch.setattr(offline, "cards_gate", lambda *_: None)
    gates = OfflineGates(world.catalog)
    made = gates.retrain(lambda *_: None)
    assert (made["stage"], made["promoted"], made["aliases"]) == ("shadow", False, ["challenger", "shadow"])
    second = gates.retrain(lambda *_: None)
    assert (second["stage"], gates.registry.standing().trial.version) == ("candidate", made["version"])
    assert second["reason"].startswith(f"better: +0.1; gate {made['version']} is in shadow")


# --- what is deployed ---


@pytest.mark.filterwarnings("ignore")  # Ray's own, on import
def test_who_is_on_trial_is_part_of_what_a_gate_takes_over(world):
    from gateway.deployment.render import gate_user_config, serve_config

    alone, canary = (gate_user_config(0, world.catalog.experts, trial) for trial in (None, ON_TRIAL.trial))
    assert (alone["trial"], Trial.model_validate(canary["trial"])) == (None, ON_TRIAL.trial)
    assert alone["revision"] != canary["revision"]
    config = serve_config(world.catalog, 0, world.catalog.experts, ON_TRIAL.trial)
    assert config["applications"][0]["deployments"][0]["user_config"] == canary


def test_after_a_restart_the_trial_goes_on_unless_its_champion_cannot_serve(world):
    first, second = world.write_version(), world.write_version()
    for taken in (step("promoted", first), step("canary", second, share=0.1)):
        world.registry.take(taken)
    assert world.registry.serving() == (first, world.registry.standing().trial)
    (world.registry.root / f"{first:04d}" / "gate.safetensors").write_bytes(b"")
    assert world.registry.serving() == (0, None)


# --- one at a time ---


def test_a_lock_is_held_by_one_and_free_once_closed(tmp_path):
    order: list[str] = []

    def second() -> None:
        with lock(tmp_path / "home" / "x.lock"):
            order.append("second")

    with lock(tmp_path / "home" / "x.lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.15)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_who_waits_too_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.1)
    with lock(tmp_path / "x.lock"), pytest.raises(Unavailable, match="holds"):
        lock(tmp_path / "x.lock")


async def test_those_who_wait_take_no_thread_from_whoever_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 5.0)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    running: list[int] = []

    async def change(number: int) -> None:
        async with locks.alone(tmp_path / "x.lock", None):
            running.append(number)
            await asyncio.to_thread(time.sleep, 0.01)
            assert running[-1] == number

    began = time.monotonic()
    await asyncio.gather(*map(change, range(12)))
    assert sorted(running) == list(range(12))
    assert time.monotonic() - began < 5.0


async def test_who_hangs_up_while_waiting_for_a_lock_leaves_it_free(tmp_path):
    async def wait() -> None:
        async with locks.alone(tmp_path / "x.lock", None):
            raise AssertionError("nobody lets this one in")

    held = lock(tmp_path / "x.lock")
    waiting = [asyncio.create_task(wait()) for _ in range(3)]
    await asyncio.sleep(0.05)
    for task in waiting:
        task.cancel()
    assert [type(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 3
    held.close()
    async with asyncio.timeout(10), locks.alone(tmp_path / "x.lock", None):
        pass


async def test_who_waits_too_long_behind_others_of_this_process_is_told(tmp_path, monkeypatch):
    async with locks.alone(tmp_path / "x.lock", None):
        monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.1)
        with pytest.raises(Unavailable, match="holds"):
            async with locks.alone(tmp_path / "x.lock", None):
                pass


COUNT = """
import sys, time
from pathlib import Path
from gateway.locks import lock
home = Path(sys.argv[1])
for _ in range(20):
    with lock(home / "x.lock"):
        number = int((home / "count").read_text())
        time.sleep(0.002)
        (home / "count").write_text(str(number + 1))
"""


def test_processes_that_read_change_and_write_lose_nothing(tmp_path):
    (tmp_path / "count").write_text("0")
    counting = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in counting] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "60"
