"""`multimoe gate evaluate` from a file to a table or JSON, with a plain learner in the gate's place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from bandits import EpsilonGreedy
from test_baselines import world
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.cli import evaluate as command
from multimoe import trials
from multimoe.encoder.prompt import PROMPT
from multimoe.evaluation import Evaluation
from multimoe.outcomes import Features, Table

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on a world of three models written to files, with changes to its columns."""
    monkeypatch.setattr(trials, "TIMED_SECONDS", 0.001)
    monkeypatch.setattr(command, "learners", lambda: {"gate": EpsilonGreedy})

    def run(*words: str, n: int = 60, models: str = "abc", embeddings: bool = True, **changes: Any) -> Result:
        table, features, _ = world(n)
        columns: dict[str, Any] = {"prompt": table.prompts, "task": table.tasks}
        columns |= {f"score|{m}": table.outcomes[:, i] for i, m in enumerate(models)} | changes
        file, vectors = tmp_path / "table.parquet", tmp_path / "table.npy"
        pyarrow.parquet.write_table(pyarrow.table({k: v for k, v in columns.items() if v is not None}), file)
        np.save(vectors, features)
        given = ["--embeddings", str(vectors)] if embeddings else []
        return CliRunner().invoke(app, ["gate", "evaluate", "--outcomes", str(file), *given, "--seeds", "1", *words])

    return run


def test_json_has_every_router_with_an_interval(run: Run) -> None:
    done = run("--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    routers = {"gate", "best_single", "random", "oracle", "knn", "logistic", "mlp", "task_means", "length"}
    assert set(told) == routers | {"table", "settings"}
    for name in routers:
        assert told[name]["low"] <= told[name]["quality"] <= told[name]["high"]
        assert told[name]["gain_low"] <= told[name]["gain"] <= told[name]["gain_high"]
    assert told["best_single"]["name"] in "abc"
    assert told["gate"]["promotions"] > 0
    assert told["table"]["prompts"] == 60
    assert told["table"]["notes"] == []
    assert "apgr" not in told["gate"]


def test_json_of_two_models_has_routellms_measures_and_no_task_means_without_tasks(run: Run) -> None:
    told = json.loads(run("--json", n=300, models="ab", task=None, **{"score|b": np.zeros(300)}).stdout)
    assert "task_means" not in told
    assert all({"apgr", "apgr_low", "cpt50", "cpt80", "cpt50_exact"} <= set(told[name]) for name in ("gate", "mlp"))
    assert told["random"]["apgr"] == pytest.approx(0.5)
    assert told["gate"]["strong"] == "a"


def test_json_with_costs_has_the_curve(run: Run) -> None:
    costs = {f"cost|{m}": np.full(60, cost) for m, cost in zip("abc", (1.0, 2.0, 5.0), strict=True)}
    told = json.loads(run("--json", **costs).stdout)
    assert 0 < told["gate"]["aiq"] <= told["oracle"]["aiq"] <= 1
    assert told["best_single"]["cost_curve"][-1][0] == pytest.approx(1.0)


def test_the_table_and_the_verdict_are_for_people(run: Run) -> None:
    done = run(n=300)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("300 prompts, 3 models; 1 times 210 to learn from, 90 held out, retrained every 10")
    assert lines[2].startswith("gate ")
    assert any(line.startswith("best_single (") for line in lines)
    assert lines[-1].startswith("The gate gains +")


def test_notes_go_to_stderr(run: Run) -> None:
    prompts = ["the same", "the same", *(f"question {i}" for i in range(58))]
    done = run(prompt=prompts)
    assert "note: 1 rows repeat a prompt" in done.stderr
    assert "repeat" not in done.stdout


def test_settings_reach_the_protocol(run: Run) -> None:
    words = ("--flip", "0.25", "--holdout", "0.5", "--retrain-every", "7", "--task", "kind", "--seeds", "2", "--json")
    told = json.loads(run(*words, kind=["x"] * 60).stdout)
    assert told["settings"] | {"seconds": 0} == {
        "seeds": 2, "holdout": 0.5, "flip": 0.25, "retrain_every": 7, "seconds": 0
    }  # fmt: skip
    assert (told["table"]["held_out"], told["table"]["retrain_every"]) == (30, 7)
    assert (told["table"]["task_column"], told["table"]["tasks"]) == ("kind", 1)


def test_the_gate_sees_counts_of_the_prompt_beside_its_vector(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def learner(table: Table, features: Features, seed: int) -> EpsilonGreedy:
        seen.append(features.shape)
        return EpsilonGreedy(table, features, seed)

    monkeypatch.setattr(command, "learners", lambda: {"gate": learner})
    run("--json")
    assert seen == [(60, 16 + PROMPT)]


def test_without_vectors_the_catalogs_encoder_makes_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def embedded(table: Table, asked: object, report: object) -> Features:
        return np.ones((len(table), 3), np.float32)

    monkeypatch.setattr(command, "embedded", embedded)
    assert json.loads(run("--json", embeddings=False).stdout)["table"]["dimensions"] == 3


@pytest.mark.weights
def test_the_catalogs_encoder_embeds_prompts_in_their_order(weights: object) -> None:
    from gateway.cli.session import Session

    prompts = (*(f"What is {i} plus {i}?" for i in range(70)), "Who wrote Hamlet?", "Which poet wrote Hamlet?")
    told: list[float] = []
    table = Table(prompts, ("a", "b"), np.zeros((72, 2)))
    vectors = command.embedded(table, Session(), lambda share, doing: told.append(share))
    assert vectors.shape == (72, 384)
    assert vectors[70] @ vectors[71] > 0.8 > vectors[0] @ vectors[71]
    assert told == [0, 64 / 72]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--seeds", "0"), 2, "--seeds"),
        (("--holdout", "0.99"), 2, "--holdout"),
        (("--outcomes", "nowhere.parquet"), 2, "nowhere.parquet"),
        (("--task", "topic"), 1, "no column of tasks named 'topic'"),
    ],
)
def test_what_cannot_be_done_is_said_and_ends_with_a_status(
    words: tuple[str, ...], status: int, message: str, run: Run
) -> None:
    done = run(*words)
    assert (done.exit_code, done.stdout) == (status, "")
    assert message in done.stderr


def test_a_bad_table_ends_with_one_sentence(run: Run) -> None:
    done = run(**{"score|a": np.full(60, 7.0)})
    assert done.exit_code == 1
    assert done.stderr.startswith("error: scores must lie in [0, 1]")
    assert "score|a (7 to 7); divide all by 10" in " ".join(done.stderr.split())


def test_the_verdict_says_when_nobody_can_gain() -> None:
    figure = {"value": 0.0, "low": 0.0, "high": 0.0}
    result = {"quality": figure, "gain": figure, "lead": figure, "train_seconds": 0, "decisions_per_second": 1}
    facts = {
        "prompts": 1, "different_prompts": 1, "models": [], "missing": 0, "tasks": None, "task_column": None,
        "dimensions": 1, "stream": 1, "held_out": 1, "retrain_every": 1, "notes": [],
    }  # fmt: skip
    results = {"gate": result, "best_single": result | {"name": "a"}, "knn": result}
    found = Evaluation.model_validate({"results": results, "table": facts, "settings": {}, "seconds": 0})
    assert command.verdict(found).endswith("no router that is told every outcome gains any.")
