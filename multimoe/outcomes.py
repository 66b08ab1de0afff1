"""A table of real outcomes: what each of several models made of each of many prompts. It reads and checks, no more.

A parquet file with `prompt`, a column `score|MODEL` for each model (in [0, 1]; NaN where that model was not run), where
it is known `cost|MODEL`, and perhaps a column that names the task. Other columns are ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]  # it ships no types
import pyarrow.parquet  # type: ignore[import-untyped]
from numpy.typing import NDArray

from multimoe.errors import BadInput, TooLarge

Float = NDArray[np.float64]
Features = NDArray[np.float32]
Int = NDArray[np.intp]

SCORE, COST = "score|", "cost|"
TASK_COLUMNS = ("task", "category", "domain", "subject", "eval_name", "dataset")  # the first that is there is taken
FEWEST_PROMPTS = 20
MOST_PROMPTS = 200_000
MOST_MODELS = 300
MOST_DIMENSIONS = 8192  # of an embedding
MOST_BYTES = 2 * 2**30  # of the columns that are read, or of all embeddings, in memory


@dataclass(frozen=True, eq=False)
class Table:
    """n prompts by m models. `outcomes` (n, m) in [0, 1], NaN where not run; `costs` (n, m), whole where there are any.

    `tasks` (n,) are names from `task_column`. `notes` are for people: what was odd, and what was made of it.
    """

    prompts: tuple[str, ...]
    models: tuple[str, ...]
    outcomes: Float
    costs: Float | None = None
    tasks: tuple[str, ...] | None = None
    task_column: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def run(self) -> NDArray[np.bool_]:
        """(n, m): was that model run on that prompt?"""
        return ~np.isnan(self.outcomes)

    @cached_property
    def usable(self) -> Int:
        """Numbers of the rows on which at least one model was run."""
        return np.flatnonzero(self.run.any(axis=1))

    @cached_property
    def groups(self) -> Int:
        """(n,): the same number for rows with the same prompt, which must not be torn apart by a split."""
        return _numbered(self.prompts)

    @cached_property
    def task_numbers(self) -> Int | None:
        """(n,) from 0 on."""
        return None if self.tasks is None else _numbered(self.tasks)

    def part(self, rows: NDArray[Any] | None = None, models: Sequence[str] | None = None) -> "Table":
        """Only these rows (numbers or a mask) and models."""
        chosen = np.arange(len(self))[slice(None) if rows is None else rows]
        columns = np.array([self.models.index(name) for name in (self.models if models is None else models)], np.intp)
        return Table(
            prompts=tuple(self.prompts[i] for i in chosen),
            models=tuple(self.models[j] for j in columns),
            outcomes=self.outcomes[np.ix_(chosen, columns)],
            costs=None if self.costs is None else self.costs[np.ix_(chosen, columns)],
            tasks=None if self.tasks is None else tuple(self.tasks[i] for i in chosen),
            task_column=self.task_column,
            notes=self.notes,
        )


def read(path: Path, task: str | None = None) -> Table:
    """The table in `path`; `task` names its column of tasks. Raises BadInput, TooLarge."""
    with _opened(path) as file:
        names: list[str] = file.schema_arrow.names
        models = _models(names, path)
        task = _task_column(names, task, path)
        costs, missing = [m for m in models if COST + m in names], [m for m in models if COST + m not in names]
        columns = ["prompt", *(SCORE + m for m in models), *(COST + m for m in costs), *([task] if task else [])]
        _check_size(file.metadata, columns, path)
        data = file.read(columns=columns)
    outcomes = np.stack([_numbers(data, SCORE + m, path) for m in models], axis=1)
    _check_scores(outcomes, models, path)
    spent = np.stack([_numbers(data, COST + m, path) for m in costs], axis=1) if costs and not missing else None
    table = Table(
        prompts=_prompts(data, path),
        models=tuple(models),
        outcomes=outcomes,
        costs=None if spent is None else _whole(spent, costs, path),
        tasks=None if task is None else tuple("" if name is None else str(name) for name in data[task].to_pylist()),
        task_column=task,
    )
    _check_rows(table, path)
    partial = [f"costs are ignored: there are none for {_some(missing)}"] if costs and missing else []
    return replace(table, notes=(*partial, *_oddities(table)))


def read_embeddings(path: Path, rows: int) -> Features:
    """The vectors of a table's prompts from a .npy file, (rows, d), each made to have length 1.

    Raises BadInput, TooLarge.
    """
    try:
        lazy = np.load(path, mmap_mode="r", allow_pickle=False)  # noqa: TID251  # numbers alone
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path} is not an array that numpy.save wrote: {error}") from error
    if not isinstance(lazy, np.ndarray) or lazy.dtype.kind not in "fiu":
        raise BadInput(f"{path} does not hold one array of numbers; save one of shape (prompts, dimensions)")
    if lazy.ndim != 2 or len(lazy) != rows or not lazy.shape[1]:
        raise BadInput(f"{path} has shape {lazy.shape}; for this table it must be ({rows}, dimensions)")
    if lazy.shape[1] > MOST_DIMENSIONS or lazy.size * 4 > MOST_BYTES:
        raise TooLarge(
            f"{path} has shape {lazy.shape}; at most {MOST_DIMENSIONS} dimensions and {MOST_BYTES >> 30} GiB are read"
        )
    return normalised(np.asarray(lazy, np.float32), str(path))


def normalised(vectors: Features, name: str = "embeddings") -> Features:
    """Rows of length 1; a row of zeros stays. Raises BadInput where a number is not finite."""
    odd = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(odd):
        raise BadInput(f"{name}: {len(odd)} rows hold NaN or infinity, first row {odd[0]}; embed those prompts again")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def _opened(path: Path) -> Any:
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"{path} cannot be read as a parquet file: {error}") from error


def _models(names: Sequence[str], path: Path) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1 and name.startswith((SCORE, COST, "prompt"))})
    if twice:
        raise BadInput(f"{path} has more than one column named {_some(twice)}; keep one of each")
    if "prompt" not in names:
        raise BadInput(f"{path} has no column 'prompt' with the questions; its columns are {_some(names)}")
    models = [name.removeprefix(SCORE) for name in names if name.startswith(SCORE)]
    if not models:
        raise BadInput(
            f"{path} has no scores; each model needs a column like 'score|NAME' with numbers in [0, 1]; "
            f"its columns are {_some(names)}"
        )
    if len(models) == 1:
        raise BadInput(f"{path} has the outcomes of one model, {models[0]!r}; choosing needs at least two")
    return models


def _task_column(names: Sequence[str], asked: str | None, path: Path) -> str | None:
    if asked is None:
        return next((name for name in TASK_COLUMNS if name in names), None)
    if asked not in names or asked == "prompt" or asked.startswith((SCORE, COST)):
        others = [name for name in names if name != "prompt" and not name.startswith((SCORE, COST))]
        raise BadInput(f"{path} has no column of tasks named {asked!r}; there are {_some(others) or 'no others'}")
    return asked


def _check_size(metadata: Any, columns: Sequence[str], path: Path) -> None:
    """By what the file says of itself, before anything is read. Raises TooLarge."""
    wanted = set(columns)
    models = sum(name.startswith(SCORE) for name in columns)
    parts = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [part.column(j) for part in parts for j in range(part.num_columns)]
    size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in wanted)
    size = max(size, metadata.num_rows * len(columns) * 8)
    for found, most, what in (
        (metadata.num_rows, MOST_PROMPTS, "prompts"),
        (models, MOST_MODELS, "models"),
        (size, MOST_BYTES, "bytes"),
    ):
        if found > most:
            raise TooLarge(f"{path} has {found} {what}, at most {most} are read; give a part of it")


def _numbers(data: Any, name: str, path: Path) -> Float:
    """A column as float64 (n,), nulls as NaN."""
    kind, types = data[name].type, pyarrow.types
    allowed = (types.is_floating, types.is_integer, types.is_boolean, types.is_decimal, types.is_null)
    if not any(is_allowed(kind) for is_allowed in allowed):
        raise BadInput(f"{name!r} in {path} holds {kind}, not numbers")
    return np.array(data[name].cast(pyarrow.float64()).to_numpy(), np.float64)


def _check_scores(outcomes: Float, models: Sequence[str], path: Path) -> None:
    finite = np.isfinite(outcomes)
    empty = [SCORE + m for m, found in zip(models, finite.T, strict=True) if not found.any()]
    if empty and len(empty) < len(models):
        raise BadInput(f"{_some(empty)} in {path} holds no score: that model was never run; leave its column out")
    if empty:
        raise BadInput(f"{path} holds no score at all: its {len(models)} score columns are empty")
    low, high = float(np.nanmin(outcomes)), float(np.nanmax(outcomes))
    if low < 0 or high > 1:
        lows, highs = np.nanmin(outcomes, axis=0), np.nanmax(outcomes, axis=0)
        wrong = [f"{SCORE}{m} ({a:g} to {b:g})" for m, a, b in zip(models, lows, highs, strict=True) if a < 0 or b > 1]
        raise BadInput(f"scores must lie in [0, 1], but in {path} do not: {_some(wrong, 4)}; {_rescaling(low, high)}")
    if low == high:
        raise BadInput(f"every score in {path} is {low:g}: there is nothing to choose by")


def _rescaling(low: float, high: float) -> str:
    """What to do to scores from `low` to `high`, the same for all models so that they stay comparable."""
    if not np.isfinite([low, high]).all():
        return "replace infinite ones, by NaN where a model was not run"
    if low >= 0:
        divisor = next((size for size in (5, 10, 100) if high <= size), high)
        return f"divide all by {divisor:g}"
    return f"turn each s into (s - {low:g}) / {high - low:g}, the same for all models"


def _prompts(data: Any, path: Path) -> tuple[str, ...]:
    kind = data["prompt"].type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise BadInput(f"'prompt' in {path} holds {kind}, not text")
    prompts = data["prompt"].to_pylist()
    missing = [i for i, prompt in enumerate(prompts) if prompt is None]
    if missing:
        raise BadInput(f"'prompt' in {path} is empty in {len(missing)} of {len(prompts)} rows, first row {missing[0]}")
    return tuple(prompts)


def _whole(costs: Float, models: Sequence[str], path: Path) -> Float:
    """Costs (n, m) with the model's mean where one is missing."""
    known = np.isfinite(costs)
    unknown = [COST + m for m, found in zip(models, known.T, strict=True) if not found.any()]
    if unknown:
        raise BadInput(f"{_some(unknown)} in {path} holds no number; leave the costs of all models out, or fill it")
    negative = [COST + m for m, values in zip(models, costs.T, strict=True) if (values < 0).any()]
    if negative:
        raise BadInput(f"{_some(negative)} in {path} is below 0 somewhere; a cost is what was paid")
    means = np.nanmean(np.where(known, costs, np.nan), axis=0)
    return np.where(known, costs, means)


def _check_rows(table: Table, path: Path) -> None:
    if len(table.usable) < FEWEST_PROMPTS:
        raise BadInput(f"{path} has {len(table.usable)} prompts with outcomes, at least {FEWEST_PROMPTS} are needed")
    if len(np.unique(table.groups[table.usable])) < FEWEST_PROMPTS // 2:
        raise BadInput(f"{path} repeats few prompts: at least {FEWEST_PROMPTS // 2} different ones are needed")


def _oddities(table: Table) -> list[str]:
    """What is no mistake, but worth a look."""
    idle, repeated = len(table) - len(table.usable), len(table) - len(np.unique(table.groups))
    stray = _strangers(table)
    told = [
        (idle, f"{idle} prompts without any outcome are left out"),
        (repeated, f"{repeated} rows repeat a prompt; rows of one prompt are kept on one side of a split"),
        (stray, f"scores of {_some(stray)} go with no other model's: are the rows of all columns in the same order?"),
    ]
    return [note for found, note in told if found]


def _strangers(table: Table) -> list[str]:
    """Models whose outcomes correlate with no other's, as in a public table with its columns in different orders."""
    centred = np.where(table.run, table.outcomes - np.nanmean(table.outcomes, axis=0), 0.0)
    both = table.run.T.astype(np.float64) @ table.run  # (m, m) prompts on which both were run
    spread = np.sqrt(np.diag(centred.T @ centred) / np.diag(both))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = centred.T @ centred / both / np.outer(spread, spread)
        noise = 3 / np.sqrt(both)
    np.fill_diagonal(correlation, np.nan)
    testable = np.isfinite(correlation) & (both >= 100)
    known = testable.any(axis=1)
    related = (testable & (np.abs(correlation) > noise)).any(axis=1)
    return [name for name, odd in zip(table.models, known & ~related, strict=True) if odd]


def _numbered(names: Sequence[str]) -> Int:
    """The same number for the same name, in order of appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.intp)


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
