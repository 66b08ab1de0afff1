"""Taking a step: the gates serve it first, then the journal says so, and where that fails they go back.

So a version that cannot serve never becomes champion. Of several processes that want a step, one takes it.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from gateway.cluster import Cluster, GateState
from gateway.locks import alone
from multimoe.checkpoint import Manifest, Registry
from multimoe.config import RolloutSpec
from multimoe.errors import Conflict
from multimoe.feedback import FeedbackLog
from multimoe.journal import Action, Standing, Step
from multimoe.rollout import first_step

logger = logging.getLogger(__name__)

LOCK = "rollout.lock"


def by_hand(action: Action, version: int, now: datetime, share: float = 0.0) -> Step:
    return Step(at=now, action=action, version=version, share=share, reason="by hand")


def rollback(standing: Standing, now: datetime) -> Step:
    """Undoes the last change of who answers: the canary goes, or else the champion."""
    if standing.trial is not None and standing.trial.stage == "canary":
        return withdrawal(standing, now)
    return by_hand("rolled back", standing.champions[-2] if len(standing.champions) > 1 else 0, now)


def withdrawal(standing: Standing, now: datetime) -> Step:
    """Ends the trial, canary or shadow. Raises Conflict where there is none."""
    if standing.trial is None:
        raise Conflict("no gate version is on trial, so there is none to withdraw")
    return by_hand("withdrawn", standing.trial.version, now)


def after_training(
    manifest: Manifest, judged: Standing, standing: Standing, spec: RolloutSpec, now: datetime
) -> Step | None:
    """What becomes of a version that was just made; None where it is not better.

    `judged` is how things stood when it was judged, `standing` how they do now. Raises Conflict when the champion is
    another one or a trial is on, which goes on: else frequent training would end every trial before ratings do.
    """
    if not manifest.proven:
        return None
    if standing.champion != judged.champion:
        told = f"gate {manifest.version} was judged against {judged.champion}, but {standing.champion} serves now"
        raise Conflict(f"{told}; train again")
    if standing.trial is not None:
        told = f"gate {standing.trial.version} is in {standing.trial.stage}"
        raise Conflict(f"{told}; promote gate {manifest.version} by hand, or train again when that has ended")
    return first_step(manifest.version, spec, now, manifest.reason)


async def take(
    cluster: Cluster,
    registry: Registry,
    log: FeedbackLog,
    step: Step,
    expected: Standing | None = None,
    still: Callable[[], None] = lambda: None,
) -> Standing:
    """What the step leads to. `expected` is how things stood when it was decided; `still` raises where whoever decided
    it has lost the right to, and is asked when nothing can come between any more.

    Raises NotFound, CheckpointError, Conflict and Unavailable, and then everything is as it was.
    """
    async with alone(registry.root / LOCK, log):
        now = await asyncio.to_thread(registry.standing)
        if expected is not None and now != expected:
            raise Conflict(f"meanwhile {now}; look again")
        now.check(step)
        await asyncio.to_thread(still)
        if step.action not in ("withdrawn", "confirmed"):
            await asyncio.to_thread(registry.load, step.version)
        after = now.after(step)
        try:
            if step.action != "confirmed":
                await cluster.serve_gate(after.champion, after.trial)
            await asyncio.to_thread(still)
            taken = await asyncio.to_thread(registry.take, step, now)
        except BaseException:  # whoever asked may also have hung up in between
            await asyncio.shield(_undo(cluster, registry))
            raise
    logger.info("%s", step, extra={"reason": step.reason})
    return taken


async def restore(cluster: Cluster, registry: Registry, log: FeedbackLog) -> GateState:
    """What serves, after it has been made what the journal says: whoever took the last step may have died over it."""
    state = await cluster.gate_state()
    if await asyncio.to_thread(_is_as_told, state, registry):
        return state
    async with alone(registry.root / LOCK, log):
        await _put_right(cluster, registry)
        return await cluster.gate_state()


async def _undo(cluster: Cluster, registry: Registry) -> None:
    """Where this fails too, the next look of a monitor does it; what went wrong first is what is raised."""
    try:
        await _put_right(cluster, registry)
    except Exception:
        logger.exception("what serves could not be put right after a step that failed")


async def _put_right(cluster: Cluster, registry: Registry) -> None:
    state = await cluster.gate_state()
    if not await asyncio.to_thread(_is_as_told, state, registry):
        version, trial = await asyncio.to_thread(registry.serving)
        logger.warning("gate %d serves where gate %d should; putting that right", state.version, version)
        await cluster.serve_gate(version, trial)


def _is_as_told(state: GateState, registry: Registry) -> bool:
    """By the journal, or else by what of it can be loaded."""
    told, now = registry.standing(), (state.version, state.trial)
    return now == (told.champion, told.trial) or now == registry.serving()
