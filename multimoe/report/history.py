"""What a store and its gate versions hold of the past, read once: the matter of every plot. It draws nothing."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np

from multimoe.checkpoint import Manifest, Registry
from multimoe.decision import Decision
from multimoe.embedding import Embedding
from multimoe.errors import CheckpointError
from multimoe.examples import Example, read, revisions, split
from multimoe.feedback import FeedbackLog, Interaction, Rated
from multimoe.gate import Gate
from multimoe.journal import Step
from multimoe.judge import judgeable

MOST = 20_000  # newest interactions read
PAGE = 500
FITTED_SHARE = 0.7  # of rated answers, where no version says what it was fitted on
FEWEST_TIMES = 10  # answers of an expert, from which on its measured time stands above the catalog's


@dataclass(frozen=True, eq=False)
class Request:
    """One routed request that the serving gate can decide again."""

    interaction: Interaction
    decision: Decision
    embedding: Embedding


@dataclass(frozen=True, eq=False)
class History:
    """The newest interactions from `since` on, oldest first, and the gate that serves with its manifest.

    `rated` and `examples` go back to the beginning, so that what a version was fitted on can be told from what came
    after it. `steps` are those that versions took. `challenger` is the version on trial, else the newest made after the
    serving one; None without.
    """

    gate: Gate
    manifest: Manifest
    challenger: tuple[Gate, Manifest] | None
    steps: tuple[Step, ...]
    interactions: tuple[Interaction, ...]
    rated: tuple[Rated, ...]
    examples: tuple[Example, ...]
    now: datetime
    since: datetime | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        """The roster's names, in its order."""
        return tuple(spec.name for spec in self.gate.experts)

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """What the serving gate could decide again: embedded by today's encoders, one of the experts still there."""
        here = set(self.experts)
        embedded = [
            Request(one, one.decision, Embedding.from_bytes(one.embedding))
            for one in self.interactions
            if one.embedding and one.decision and here.intersection(c.expert for c in one.decision.considered)
        ]
        today = {**revisions(one.embedding for one in embedded), **self.gate.learned.revisions}
        return tuple(one for one in embedded if all(today[m] == r for m, r in one.embedding.revisions.items()))

    @cached_property
    def recent(self) -> tuple[Rated, ...]:
        """Rated interactions from `since` on."""
        return tuple(one for one in self.rated if self.since is None or one.interaction.created >= self.since)

    @cached_property
    def later(self) -> Sequence[Example]:
        """What the serving gate can be judged by."""
        return self.unseen_by(self.manifest)

    @cached_property
    def past(self) -> Sequence[Example]:
        """Rated answers before all of `later`."""
        start = self._unseen_from(self.manifest)
        return [example for example in self.examples if start is None or example.created < start]

    def unseen_by(self, version: Manifest) -> Sequence[Example]:
        """Rated answers drawn by chance, from `since` on, that a version was not fitted on.

        The cards alone were fitted on none; of theirs the newer part, so that there are earlier ones to learn from.
        """
        start = self._unseen_from(version)
        if start is None:
            return []
        start = max(start, self.since or start)
        return [e for e in self.examples if e.created >= start and judgeable(e, self.gate)]

    @cached_property
    def latencies(self) -> Mapping[str, float]:
        """How long each expert takes, in ms: the mean of its answers where they are enough, else the catalog's word."""
        took: dict[str, list[float]] = {}
        for one in self.interactions:
            for outcome in one.outcomes:
                if outcome.status == "ok":
                    took.setdefault(outcome.expert, []).append(outcome.latency_ms)
        measured = {name: float(np.mean(times)) for name, times in took.items() if len(times) >= FEWEST_TIMES}
        return {spec.name: measured.get(spec.name, spec.latency_ms) for spec in self.gate.experts}

    def _unseen_from(self, version: Manifest) -> datetime | None:
        """When the first rated answer was given that a version was not fitted on; None where there is none."""
        until = version.learned_until or version.until
        if until is None:
            return next((example.created for example in split(self.examples, FITTED_SHARE)[1]), None)
        return next((example.created for example in self.examples if example.created > until), None)


def read_history(
    log: FeedbackLog, registry: Registry, cards: Gate, *, now: datetime, since: datetime | None = None
) -> History:
    """Read everything once. Of `cards`, a gate that has learned nothing, roster and settings count.

    The serving version is the registry's champion; where that one cannot be loaded, the cards alone.
    """
    rated = tuple(deque(log.rated(), maxlen=MOST))
    examples = read(rated)
    gate = _loaded(registry, cards, registry.sound_champion(), examples) or cards
    newest = _challenger(registry, gate.version)
    challenger = _loaded(registry, cards, newest, examples) if newest else None
    return History(
        gate=gate,
        manifest=registry.manifest(gate.version),
        challenger=(challenger, registry.manifest(newest)) if challenger and newest else None,
        steps=registry.journal.steps(),
        interactions=tuple(_newest(log, since))[::-1],
        rated=rated,
        examples=examples,
        now=now,
        since=since,
    )


def _challenger(registry: Registry, serving: int) -> int | None:
    """The version on trial, else the newest made after the serving one."""
    trial = registry.standing().trial
    newest = trial.version if trial else registry.versions()[-1]
    return newest if newest > serving or trial else None


def _loaded(registry: Registry, cards: Gate, version: int, examples: Sequence[Example]) -> Gate | None:
    """None for a version that is damaged, or learned from encoders that are gone."""
    try:
        learned = registry.load(version, revisions(example.embedding for example in examples))
    except CheckpointError:
        return None
    return cards.with_learned(learned, version)


def _newest(log: FeedbackLog, since: datetime | None) -> Iterator[Interaction]:
    """Newest first, at most `MOST`."""
    last: str | None = None
    for _ in range(math.ceil(MOST / PAGE)):
        page = log.interactions(PAGE, before=last, since=since)
        yield from page
        if len(page) < PAGE:
            return
        last = page[-1].id
