"""One go of the closed loop: prompts arrive, a learner chooses and learns, and then has to choose on others, held out.

It knows no particular learner. Routers that are told every outcome are trained on the same prompts.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from multimoe.baselines import ROUTERS, Factory, Router
from multimoe.errors import BadInput
from multimoe.outcomes import Features, Float, Int, Table
from multimoe.outputs import Frozen

RETRAININGS = 20  # in a stream, where the settings do not say how often
FEWEST_LEARNED = 10  # prompts in a stream
FEWEST_BETWEEN = 10  # prompts from one retraining to the next
TIMED_SECONDS = 0.2  # in which decisions are made one by one, to see how fast


class Learner(Protocol):
    """A router that learns from its own choices. Rows are numbers of rows of the table."""

    def choose(self, rows: Int) -> tuple[Int, Float]:
        """Models (b,) for these prompts, and the exact probability (b,) each was drawn with."""

    def learn(self, rows: Int, chosen: Int, rewards: Float, propensities: Float) -> None:
        """What came of the choices since the last time, all (b,); those without an outcome are left out."""

    def scores(self, rows: Int) -> Float:
        """Utilities (b, models) without exploration: the greatest is the choice."""


@runtime_checkable
class Promoting(Protocol):
    promotions: int  # how often a new version took over


class Settings(Frozen):
    """`holdout` is the share of prompts kept for judging, `flip` that of ratings that say the opposite."""

    seeds: int = Field(default=5, ge=1, le=100)
    holdout: float = Field(default=0.3, ge=0.05, le=0.9)
    flip: float = Field(default=0.0, ge=0, le=0.5)
    retrain_every: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, eq=False)
class Trial:
    """One seed's split: `stream` (t,) in order of arrival, `held_out` (h,), and what ratings would say, (n, models)."""

    seed: int
    stream: Int
    held_out: Int
    ratings: Float
    every: int


@dataclass(frozen=True, eq=False)
class Played:
    """What a router did in one trial: `scores` (h, models) held out; bandits also `rewards` (t,), NaN without outcome.

    `orders` is false where scores say which model and nothing else, so that they draw no curves.
    """

    scores: Float
    train_seconds: float
    decisions_per_second: float
    rewards: Float | None = None
    promotions: int | None = None
    orders: bool = True


Runner = Callable[[Trial], Played]
Learners = Mapping[str, Callable[[Table, Features, int], Learner]]


def trial(table: Table, settings: Settings, seed: int) -> Trial:
    """Rows of one prompt lie on one side of the split. A flipped rating says 1 minus the outcome, whoever asks.

    Raises BadInput.
    """
    generator = np.random.default_rng([seed, 0])
    usable = table.usable
    order = generator.permutation(np.unique(table.groups[usable]))
    rank = np.empty(table.groups.max() + 1, np.intp)
    rank[order] = np.arange(len(order))
    held = rank[table.groups[usable]] < max(1, round(settings.holdout * len(order)))
    flipped = generator.random(table.outcomes.shape) < settings.flip
    stream = generator.permutation(usable[~held])
    if len(stream) < FEWEST_LEARNED:
        raise BadInput(
            f"{len(stream)} prompts are left to learn from, {FEWEST_LEARNED} are needed; hold out less than "
            f"{settings.holdout:g} of them",
            "holdout",
        )
    return Trial(
        seed=seed,
        stream=stream,
        held_out=usable[held],
        ratings=np.where(flipped, 1 - table.outcomes, table.outcomes),
        every=settings.retrain_every or max(FEWEST_BETWEEN, len(stream) // RETRAININGS),
    )


def play(learner: Learner, one: Trial, table: Table) -> Played:
    """The stream, block by block; no learner knows what came of a choice before its block is over."""
    rewards = np.full(len(one.stream), np.nan)
    seconds = 0.0
    for start in range(0, len(one.stream), one.every):
        rows = one.stream[start : start + one.every]
        chosen, propensities = learner.choose(rows)
        rewards[start : start + len(rows)] = table.outcomes[rows, chosen]
        told = one.ratings[rows, chosen]
        rated = ~np.isnan(told)
        began = time.perf_counter()
        learner.learn(rows[rated], chosen[rated], told[rated], propensities[rated])
        seconds += time.perf_counter() - began
    return Played(
        scores=_checked(learner.scores(one.held_out), one, table),
        train_seconds=seconds,
        decisions_per_second=_speed(learner.choose, one.held_out),
        rewards=rewards,
        promotions=learner.promotions if isinstance(learner, Promoting) else None,
    )


def train(factory: Factory, one: Trial, table: Table, features: Features) -> Played:
    """A router that is told what the ratings say of every model on the whole stream."""
    router: Router = factory(table, features, one.seed)
    began = time.perf_counter()
    router.fit(one.stream, one.ratings[one.stream])
    seconds = time.perf_counter() - began
    return Played(_checked(router.scores(one.held_out), one, table), seconds, _speed(router.scores, one.held_out))


def playing(learners: Learners, table: Table, features: Features) -> dict[str, Runner]:
    """How learners are run: each is made with a table whose outcomes are hidden."""
    hidden = replace(table, outcomes=np.full_like(table.outcomes, np.nan))

    def runner(make: Callable[[Table, Features, int], Learner]) -> Runner:
        return lambda one: play(make(hidden, features, one.seed), one, table)

    return {name: runner(make) for name, make in learners.items()}


def training(table: Table, features: Features) -> dict[str, Runner]:
    """How full-information routers are run, those that this table gives what they need."""

    def runner(factory: Factory) -> Runner:
        return lambda one: train(factory, one, table, features)

    return {name: runner(make) for name, make in ROUTERS.items() if name != "task_means" or table.tasks is not None}


def _checked(scores: Float, one: Trial, table: Table) -> Float:
    wanted = (len(one.held_out), len(table.models))
    if scores.shape != wanted or not np.isfinite(scores).all():
        raise ValueError(f"a router gave scores of shape {scores.shape}; {wanted} finite numbers are needed")
    return scores


def _speed(decide: Callable[[Int], object], rows: Int) -> float:
    """Decisions a second, one prompt at a time."""
    decide(rows[:1])  # the first call may prepare something
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < TIMED_SECONDS:
        decide(rows[count % len(rows)][None])
        count += 1
    return count / (time.perf_counter() - began)
