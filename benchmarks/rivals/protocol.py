"""How a rival router is asked: one job file in, one answer file out, in an interpreter of its own. numpy only.

A rival's script implements `Bandit` or `Router` and ends in `serve(...)`. It never holds the outcomes: the loops here
hand a bandit the reward of the model it chose and nothing else, a full-information router the rewards of training
rows. README.md has the arrays of both files.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

TIMED_DECISIONS = 500  # held-out prompts decided one by one for the rate
FEWEST_AGREEING = 0.95  # ties may fall either way


@dataclass(frozen=True, eq=False)
class Job:
    """n prompts, m models. What was not run is NaN in `outcomes`, `rewards` and `costs`.

    `rewards` is what a rating says: `outcomes` with a share flipped, the same flips for every router. Learn from
    rewards, judge by outcomes. `stream` are the training rows in order of arrival; a router that retrains in batches
    does so every `block` of them.
    """

    features: NDArray[np.float32]  # (n, d), L2-normalised
    outcomes: Float  # (n, m) in [0, 1]
    rewards: Float  # (n, m) in [0, 1]
    models: list[str]
    prompts: list[str]
    stream: Int  # (t,)
    held_out: Int  # (h,)
    block: int = 100
    seed: int = 0
    costs: Float | None = None  # (n, m) US$ a query

    def blind(self) -> "Job":
        """The same job without what came of any prompt: all a rival's constructor may see."""
        return replace(self, outcomes=np.full_like(self.outcomes, np.nan), rewards=np.full_like(self.rewards, np.nan))

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            "features": np.asarray(self.features, np.float32),
            "outcomes": self.outcomes,
            "rewards": self.rewards,
            "models": np.array(self.models),
            "prompts": np.frombuffer(json.dumps(self.prompts).encode(), np.uint8),
            "stream": self.stream,
            "held_out": self.held_out,
            "block": np.int64(self.block),
            "seed": np.int64(self.seed),
        }
        if self.costs is not None:
            arrays["costs"] = self.costs
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Job":
        with np.load(path) as file:
            return cls(
                features=file["features"],
                outcomes=file["outcomes"],
                rewards=file["rewards"],
                models=file["models"].tolist(),
                prompts=json.loads(file["prompts"].tobytes()),
                stream=file["stream"],
                held_out=file["held_out"],
                block=int(file["block"]),
                seed=int(file["seed"]),
                costs=file.get("costs"),
            )


@dataclass(frozen=True, eq=False)
class Answer:
    """What a rival did: `scores` (h, m) for the held-out prompts, whose argmax is its choice; `chosen` (t,) only of
    bandits. Where not `ranked`, scores are 1 for the choice and 0 for the rest: they order no prompts, no cost curve.
    """

    scores: Float
    ranked: bool
    train_seconds: float  # bandits: choosing and learning over the whole stream
    decisions_per_second: float  # one prompt at a time, vector given
    chosen: Int | None = None
    notes: str = ""  # what the rival settled on, in words

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Answer":
        with np.load(path) as file:
            return cls(
                scores=file["scores"],
                ranked=bool(file["ranked"]),
                train_seconds=float(file["train_seconds"]),
                decisions_per_second=float(file["decisions_per_second"]),
                chosen=file.get("chosen"),
                notes=str(file["notes"]),
            )


class Rival(Protocol):
    ranked: bool
    notes: str

    def choose(self, row: int) -> int:
        """The model for one prompt, by the rival's own published call; bandits explore as they see fit."""

    def scores(self, rows: Int) -> Float:
        """Greedy utilities (b, m) of all models for the prompts with these row numbers."""


class Bandit(Rival, Protocol):
    def learn(self, row: int, chosen: int, reward: float) -> None:
        """What came of `choose(row)`, at once: no rival waits for the block to end."""


class Router(Rival, Protocol):
    def fit(self, rows: Int, rewards: Float) -> None:
        """Full information: `rewards` (b, m) of every model on every training row, NaN where it was not run."""


def play(bandit: Bandit, job: Job) -> Answer:
    """The stream prompt by prompt: the bandit sees the reward of what it chose, and none where that was not run."""
    chosen = np.empty(len(job.stream), np.int64)
    began = time.perf_counter()
    for t, row in enumerate(job.stream.tolist()):
        chosen[t] = bandit.choose(row)
        reward = job.rewards[row, chosen[t]]
        if not np.isnan(reward):
            bandit.learn(row, int(chosen[t]), float(reward))
    seconds = time.perf_counter() - began
    scores = np.asarray(bandit.scores(job.held_out), np.float64)  # (h, m), before timing draws on its state
    _, rate = decide(bandit, job.held_out)
    return Answer(scores, bandit.ranked, seconds, rate, chosen, bandit.notes)


def train(router: Router, job: Job) -> Answer:
    """Fit on the whole stream at once. Raises ValueError where the scores are not those the rival itself decides by."""
    began = time.perf_counter()
    router.fit(job.stream, job.rewards[job.stream])
    seconds = time.perf_counter() - began
    scores = np.asarray(router.scores(job.held_out), np.float64)  # (h, m)
    choices, rate = decide(router, job.held_out)
    agreeing = float((choices == scores[: len(choices)].argmax(1)).mean())
    if agreeing < FEWEST_AGREEING:
        raise ValueError(f"its own call agrees with the scores on {agreeing:.0%} of prompts only")
    return Answer(scores, router.ranked, seconds, rate, notes=router.notes)


def decide(rival: Rival, rows: Int) -> tuple[Int, float]:
    """Choices for the first rows one by one, and how many a second."""
    timed = rows[:TIMED_DECISIONS].tolist()
    began = time.perf_counter()
    choices = np.array([rival.choose(row) for row in timed])
    return choices, len(timed) / (time.perf_counter() - began)


R = TypeVar("R", bound=Rival)


def serve(make: Callable[[Job, str], R], loop: Callable[[R, Job], Answer]) -> None:
    """A rival's command line: `make(blind job, setting)` builds it, `loop` is `play` or `train`."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--job", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--setting", default="", help="one of the rival's settings, see run.py")
    options = arguments.parse_args()
    job = Job.load(options.job)
    loop(make(job.blind(), options.setting), job).save(options.out)
