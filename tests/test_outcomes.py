"""Tables of outcomes: what is read, and what every bad one is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from multimoe import outcomes
from multimoe.errors import BadInput, TooLarge
from multimoe.outcomes import Table, read, read_embeddings

N = 40


def columns(**changes: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    good = {
        "prompt": [f"question {i}" for i in range(N)],
        "score|a": generator.random(N),
        "score|b": generator.integers(0, 2, N),
    }
    return {name: values for name, values in (good | changes).items() if values is not None}


def written(path: Path, **changes: Any) -> Path:
    file = path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns(**changes)), file)
    return file


def test_reads_prompts_scores_costs_and_tasks_and_ignores_the_rest(tmp_path: Path) -> None:
    scores = np.array([0.25, np.nan] * (N // 2))
    file = written(
        tmp_path,
        **{"score|x|y": scores, "out_chars|a": range(N), "category": ["sums", "words"] * (N // 2)},
        **{f"cost|{m}": np.full(N, 0.5) for m in ("a", "b", "x|y")},
    )

    table = read(file)

    assert table.models == ("a", "b", "x|y")
    np.testing.assert_array_equal(table.outcomes[:, 2], scores)
    assert table.costs is not None
    assert table.costs.shape == (N, 3)
    assert (table.task_column, table.tasks) == ("category", ("sums", "words") * (N // 2))
    assert table.prompts[3] == "question 3"
    assert table.notes == ()


@pytest.mark.parametrize("kind", [pyarrow.bool_(), pyarrow.int8(), pyarrow.float16(), pyarrow.decimal128(3, 2)])
def test_scores_may_be_of_any_numeric_type_and_nulls_are_not_run(kind: Any, tmp_path: Path) -> None:
    values = pyarrow.array([None, *[True] * (N - 1)]).cast(pyarrow.int8()).cast(pyarrow.float64())
    table = read(written(tmp_path, **{"score|a": values.cast(kind)}))
    assert np.isnan(table.outcomes[0, 0])
    assert (table.outcomes[1:, 0] == 1).all()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None, "question": ["?"] * N}, "no column 'prompt'.*score|a, score|b, question"),
    ({"prompt": range(N)}, "'prompt' .* holds int64, not text"),
    ({"prompt": [None, *["?"] * (N - 1)]}, "'prompt' .* empty in 1 of 40 rows, first row 0"),
    ({"score|a": None, "score|b": None, "a": [1] * N}, "no scores.*'score|NAME'"),
    ({"score|b": None}, "one model, 'a'; choosing needs at least two"),
    ({"score|a": ["good"] * N}, "'score|a' .* holds string, not numbers"),
    ({"score|a": [np.nan] * N}, "score|a .* holds no score: that model was never run"),
    ({"score|a": pyarrow.nulls(N)}, "score|a .* holds no score: that model was never run"),
    ({"score|a": [np.nan] * N, "score|b": [np.nan] * N}, "no score at all"),
    ({"score|a": np.linspace(0, 4, N)}, r"score|a \(0 to 4\); divide all by 5"),
    ({"score|a": np.linspace(0, 87, N)}, "divide all by 100"),
    ({"score|a": np.linspace(0, 1300, N)}, "divide all by 1300"),
    ({"score|a": np.linspace(-1, 1, N)}, r"score|a \(-1 to 1\); turn each s into \(s - -1\) / 2, the same for all"),
    ({"score|a": [np.inf, *[0.5] * (N - 1)]}, "replace infinite ones"),
    ({"score|a": [1.0] * N, "score|b": [1] * N}, "every score .* is 1: there is nothing to choose by"),
    ({"score|a": [1.0] + [np.nan] * (N - 1), "score|b": [0.0] + [np.nan] * (N - 1)}, "1 prompts with outcomes"),
    ({"prompt": ["the same"] * N}, "different ones are needed"),
    ({"cost|a": [-1.0] * N, "cost|b": [1.0] * N}, "cost|a .* below 0"),
    ({"cost|a": [np.nan] * N, "cost|b": [1.0] * N}, "cost|a .* holds no number"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_table_is_told_what_is_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message.replace("|", r"\|")):
        read(written(tmp_path, **changes))


def test_a_column_there_twice_is_refused(tmp_path: Path) -> None:
    names = ["prompt", "score|a", "score|b", "score|a"]
    made = pyarrow.table([["?"] * N, [1.0] * N, [0.0] * N, [0.5] * N], names=names)
    pyarrow.parquet.write_table(made, tmp_path / "twice.parquet")
    with pytest.raises(BadInput, match=r"more than one column named score\|a"):
        read(tmp_path / "twice.parquet")


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("prompt,score|a\n?,1\n")
    with pytest.raises(BadInput, match="cannot be read as a parquet file"):
        read(tmp_path / "table.csv")
    with pytest.raises(BadInput, match="cannot be read as a parquet file"):
        read(tmp_path / "none.parquet")


def test_the_task_column_can_be_named_and_must_be_there(tmp_path: Path) -> None:
    file = written(tmp_path, subject=["s"] * N, dataset=["d"] * N, level=list(range(N)))
    assert read(file).task_column == "subject"
    assert read(file, task="level").tasks == tuple(map(str, range(N)))
    with pytest.raises(BadInput, match="no column of tasks named 'topic'; there are subject, dataset, level"):
        read(file, task="topic")
    with pytest.raises(BadInput, match="no column of tasks"):
        read(file, task="score|a")


def test_limits_are_checked_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path)
    monkeypatch.setattr(outcomes, "_numbers", lambda *_: pytest.fail("it was read"))
    monkeypatch.setattr(outcomes, "MOST_PROMPTS", N - 1)
    with pytest.raises(TooLarge, match="40 prompts, at most 39"):
        read(file)
    monkeypatch.setattr(outcomes, "MOST_PROMPTS", N)
    monkeypatch.setattr(outcomes, "MOST_MODELS", 1)
    with pytest.raises(TooLarge, match="2 models, at most 1"):
        read(file)
    monkeypatch.setattr(outcomes, "MOST_MODELS", 2)
    monkeypatch.setattr(outcomes, "MOST_BYTES", 100)
    with pytest.raises(TooLarge, match="bytes, at most 100"):
        read(file)


def test_what_is_odd_but_usable_is_noted(tmp_path: Path) -> None:
    prompts = ["twice", "twice", *(f"question {i}" for i in range(N - 2))]
    scores = {f"score|{m}": [np.nan, *np.linspace(0, 1, N - 1)] for m in "ab"}
    table = read(written(tmp_path, prompt=prompts, **scores, **{"cost|a": [1.0] * N}))
    costs, idle, repeated = table.notes
    assert costs == "costs are ignored: there are none for b"
    assert idle == "1 prompts without any outcome are left out"
    assert repeated.startswith("1 rows repeat a prompt")
    assert list(table.groups[:3]) == [0, 0, 1]
    assert list(table.usable) == list(range(1, N))


def test_a_model_whose_rows_are_in_another_order_is_noted() -> None:
    generator = np.random.default_rng(5)
    hard = generator.random((2000, 1))
    scores = (generator.random((2000, 3)) > hard).astype(float)
    table = Table(tuple(map(str, range(2000))), ("a", "b", "c"), scores)
    assert outcomes._oddities(table) == []
    shuffled = np.column_stack([scores[:, :2], generator.permutation(scores[:, 2])])
    (note,) = outcomes._oddities(Table(table.prompts, table.models, shuffled))
    assert note.startswith("scores of c go with no other model's")


def test_a_missing_cost_is_the_models_mean(tmp_path: Path) -> None:
    table = read(written(tmp_path, **{"cost|a": [np.nan, *[2.0] * (N - 1)], "cost|b": [1.0] * N}))
    assert table.costs is not None
    assert table.costs[0, 0] == 2.0


def test_a_part_has_the_rows_and_models_asked_for(tmp_path: Path) -> None:
    table = read(written(tmp_path, category=[str(i % 3) for i in range(N)]))
    part = table.part(rows=np.arange(N) % 2 == 0, models=["b"])
    assert (len(part), part.models, part.tasks[1] if part.tasks else None) == (N // 2, ("b",), "2")
    np.testing.assert_array_equal(part.outcomes[:, 0], table.outcomes[::2, 1])


def test_embeddings_come_back_with_length_1(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(N, 8)).astype(np.float16)
    vectors[3] = 0
    np.save(tmp_path / "e.npy", vectors)
    lengths = np.linalg.norm(read_embeddings(tmp_path / "e.npy", N), axis=1)
    assert lengths[3] == 0
    assert np.delete(lengths, 3) == pytest.approx(np.ones(N - 1), abs=1e-5)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (np.zeros((N + 1, 8)), r"shape \(41, 8\); for this table it must be \(40, dimensions\)"),
        (np.zeros(N), r"shape \(40,\)"),
        (np.zeros((N, 0)), r"shape \(40, 0\)"),
        (np.full((N, 8), np.nan), "40 rows hold NaN or infinity, first row 0"),
        (np.array([["x"] * 8] * N), "numbers"),
        (np.array([{}] * N), "not an array that numpy.save wrote"),
    ],
    ids=["rows", "one axis", "no axis", "nan", "text", "objects"],
)
def test_bad_embeddings_are_told_what_is_wrong(made: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", made)
    with pytest.raises(BadInput, match=message):
        read_embeddings(tmp_path / "e.npy", N)


def test_embeddings_that_are_no_array_or_too_wide_are_refused(tmp_path: Path) -> None:
    (tmp_path / "e.npy").write_bytes(b"no array")
    with pytest.raises(BadInput, match="not an array"):
        read_embeddings(tmp_path / "e.npy", N)
    np.save(tmp_path / "e.npy", np.zeros((N, outcomes.MOST_DIMENSIONS + 1), np.float16))
    with pytest.raises(TooLarge, match="dimensions"):
        read_embeddings(tmp_path / "e.npy", N)
