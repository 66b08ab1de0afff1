"""Watches the version on trial and the champion on probation, and takes the step that ratings call for.

Every gateway runs one; they all read the same log, and of those that want a step one takes it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from gateway.change import stages
from gateway.cluster import GateState
from gateway.services import Services
from multimoe import evidence, rollout
from multimoe.errors import CheckpointError, Conflict, MultimoeError, NotFound
from multimoe.evidence import Look, Reward
from multimoe.journal import Standing, Step
from multimoe.offpolicy import Estimate

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
LOOK_SECONDS = 60.0  # that reading what a version did may take
BEFORE = timedelta(days=30)  # how far back the former champion's answers are compared
PROOF = "gain_doubly_robust"  # the estimate in a manifest by which a version was proven better


class Monitor:
    """Holds nothing but what it has read, for as long as the log says nothing new."""

    def __init__(self, services: Services, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.services = services
        self.now = now
        self._before: tuple[datetime | None, list[Reward]] = (None, [])
        self._read: tuple[object, Look | None] = (None, None)

    async def run(self) -> None:
        """For as long as the gateway lives. Trouble is logged, and looked at again."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.check()
            except MultimoeError as error:
                logger.warning("the versions on trial could not be looked at: %s", error)
            except Exception:
                logger.exception("the versions on trial could not be looked at")

    async def check(self) -> Step | None:
        """Look once, and take the step that is called for; the step, or None."""
        registry = self.services.registry
        standing = await asyncio.to_thread(registry.standing)
        state = await stages.restore(self.services.cluster, registry, self.services.log)
        if standing.trial is None and standing.watched is None:
            return None
        found = await self.look(standing, state)
        proof = await asyncio.to_thread(self._proof, standing)
        step = rollout.next_step(found, self.services.catalog.gate.rollout, proof, self.now())
        if step is None:
            return None
        try:
            await stages.take(self.services.cluster, registry, self.services.log, step, expected=standing)
        except Conflict as error:  # another gateway was faster
            logger.info("%s: not done: %s", step, error)
            return None
        return step

    async def look(self, standing: Standing, state: GateState) -> Look:
        """What is known now of those on trial and on probation."""
        costs = {expert.name: expert.cost for expert in await self.services.cluster.roster()}
        found = await self.services.in_store.within(LOOK_SECONDS, self._look, standing, costs)
        if found.seen is None or found.seen.errors or state.trial != standing.trial or not state.trial_error:
            return found
        failed = {"errors": 1, "error": state.trial_error}  # on a request that left no record
        return found.model_copy(update={"seen": found.seen.model_copy(update=failed)})

    def _look(self, standing: Standing, costs: Mapping[str, float]) -> Look:
        log, spec = self.services.log, self.services.catalog.gate.rollout
        newest = [interaction.id for interaction in log.interactions(limit=1)]
        key = (standing, tuple(costs.items()), newest, log.rating_count(), log.last_rated())
        read, found = self._read
        if found is None or read != key:
            found = evidence.look(log, standing, spec, costs, self._earned_before(standing))
            self._read = (key, found)
        return found

    def _earned_before(self, standing: Standing) -> list[Reward]:
        """By the champion before, which does not change any more."""
        if self._before[0] != standing.watched:
            self._before = (standing.watched, evidence.earned_before(self.services.log, standing, BEFORE))
        return self._before[1]

    def _proof(self, standing: Standing) -> Estimate | None:
        """By how much the one on trial was proven better than this very champion."""
        if standing.trial is None:
            return None
        try:
            manifest = self.services.registry.manifest(standing.trial.version)
        except (CheckpointError, NotFound):
            return None
        return manifest.metrics.get(PROOF) if manifest.proven and manifest.parent == standing.champion else None
