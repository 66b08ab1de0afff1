"""The two files through which rival routers are asked, with toy rivals; none of the published ones is needed here."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

RIVALS = Path(__file__).parents[1] / "benchmarks" / "rivals"
sys.path.insert(0, str(RIVALS.parent))

from rivals import run  # noqa: E402
from rivals.protocol import Answer, Job, play, train  # noqa: E402

SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np
from protocol import serve, train

class Means:
    ranked, notes = True, "means"
    def __init__(self, job, setting):
        assert np.isnan(job.outcomes).all() and np.isnan(job.rewards).all()
        assert setting == "plain", "asked for " + setting
    def fit(self, rows, rewards):
        self.means = np.nanmean(rewards, axis=0)
    def choose(self, row):
        return int(self.means.argmax())
    def scores(self, rows):
        return np.tile(self.means, (len(rows), 1))

serve(Means, train)
"""


@pytest.fixture
def job() -> Job:
    """200 prompts, three models: the second is right on all, the third on none and not run on the first ten."""
    outcomes = np.tile([0.5, 1.0, 0.0], (200, 1))
    outcomes[:10, 2] = np.nan
    return Job(
        features=np.eye(4, dtype=np.float32)[np.arange(200) % 4],
        outcomes=outcomes,
        rewards=outcomes.copy(),
        models=["a", "b", "c"],
        prompts=[f"wie groß ist {i}? 象" for i in range(200)],
        stream=np.arange(150),
        held_out=np.arange(150, 200),
        seed=3,
    )


class Greedy:
    """Tries each model in turn, then takes the best mean; remembers all it was told."""

    ranked, notes = True, ""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, float]] = []

    def means(self) -> np.ndarray:
        of = [[reward for _, chosen, reward in self.told if chosen == model] for model in range(3)]
        return np.array([np.mean(rewards) if rewards else 1.0 for rewards in of])

    def choose(self, row: int) -> int:
        return row % 3 if row < 60 else int(self.means().argmax())

    def learn(self, row: int, chosen: int, reward: float) -> None:
        self.told.append((row, chosen, reward))

    def scores(self, rows: np.ndarray) -> np.ndarray:
        return np.tile(self.means(), (len(rows), 1))


def test_a_job_comes_back_from_its_file_as_it_was(job: Job, tmp_path: Path) -> None:
    job = replace(job, costs=np.full((200, 3), 0.002))
    job.save(tmp_path / "job.npz")
    back = Job.load(tmp_path / "job.npz")
    assert (back.prompts, back.models, back.block, back.seed) == (job.prompts, job.models, job.block, job.seed)
    for name in ("features", "outcomes", "rewards", "stream", "held_out", "costs"):
        np.testing.assert_array_equal(getattr(back, name), getattr(job, name))
    replace(job, costs=None).save(tmp_path / "job.npz")
    assert Job.load(tmp_path / "job.npz").costs is None


def test_a_bandit_is_told_the_reward_of_what_it_chose_and_nothing_else(job: Job) -> None:
    job.rewards[:] = np.where(np.isnan(job.outcomes), np.nan, 1 - job.outcomes)  # ratings that say the opposite
    bandit = Greedy()
    answer = play(bandit, job)
    assert answer.chosen is not None
    told = [(row, job.rewards[row, chosen]) for row, chosen in zip(job.stream, answer.chosen, strict=True)]
    assert [(row, reward) for row, _, reward in bandit.told] == [t for t in told if not np.isnan(t[1])]
    assert len(bandit.told) < len(job.stream)  # what was not run has no reward
    assert (answer.scores.argmax(1) == 2).all()  # it learned from ratings, not from outcomes


def test_a_blind_job_holds_no_outcome(job: Job) -> None:
    blind = job.blind()
    assert np.isnan(blind.outcomes).all()
    assert np.isnan(blind.rewards).all()
    assert not np.isnan(job.outcomes).all()


def test_scores_by_which_a_router_does_not_decide_are_refused(job: Job) -> None:
    class Router(Greedy):
        def __init__(self, choice: int) -> None:
            self.choice = choice

        def fit(self, rows: np.ndarray, rewards: np.ndarray) -> None:
            pass

        def choose(self, row: int) -> int:
            return self.choice

        def scores(self, rows: np.ndarray) -> np.ndarray:
            return np.tile([0.0, 1.0, 0.5], (len(rows), 1))

    assert (train(Router(1), job).scores.argmax(1) == 1).all()
    with pytest.raises(ValueError, match="agrees with the scores on 0%"):
        train(Router(2), job)


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One environment whose interpreter is this one, and the toy as its rival; another, not set up."""
    script = tmp_path / "toy.py"
    script.write_text(SCRIPT.format(folder=str(RIVALS)))
    python = run.interpreter("toys", tmp_path)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "toys" / "ready").touch()
    toys = {
        "toy": run.Rival("Toy", "toys", str(script), "full", "plain"),
        "toy-wrong": run.Rival("Toy", "toys", str(script), "full", "fancy"),
        "elsewhere": run.Rival("Toy", "not-set-up", str(script), "full"),
    }
    monkeypatch.setattr(run, "RIVALS", toys)
    return tmp_path


def test_a_rival_answers_through_files(job: Job, environments: Path) -> None:
    assert run.available(environments) == ["toy", "toy-wrong"]
    job.save(environments / "job.npz")
    run.ask("toy", environments / "job.npz", environments / "answer.npz", environments)
    answer = Answer.load(environments / "answer.npz")
    np.testing.assert_allclose(answer.scores, np.tile([0.5, 1.0, 0.0], (50, 1)))
    assert (answer.chosen, answer.ranked, answer.notes) == (None, True, "means")
    assert answer.decisions_per_second > 0


def test_a_rival_that_fails_is_quoted(job: Job, environments: Path) -> None:
    job.save(environments / "job.npz")
    with pytest.raises(run.RivalFailed, match="asked for fancy"):
        run.ask("toy-wrong", environments / "job.npz", environments / "answer.npz", environments)
    with pytest.raises(run.RivalFailed, match="not-set-up"):
        run.ask("elsewhere", environments / "job.npz", environments / "answer.npz", environments)
    with pytest.raises(run.RivalFailed, match="timed out"):
        run.ask("toy", environments / "job.npz", environments / "answer.npz", environments, timeout=0.001)


@pytest.mark.parametrize("environment", sorted({rival.environment for rival in run.RIVALS.values()}))
def test_each_environment_is_pinned_without_addresses(environment: str) -> None:
    files = list(RIVALS.glob(f"requirements-{environment}*.txt"))
    assert files
    for line in (line for file in files for line in file.read_text().splitlines()):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line


def test_each_rival_has_its_script() -> None:
    assert {rival.script for rival in run.RIVALS.values()} <= {path.name for path in RIVALS.glob("*.py")}
