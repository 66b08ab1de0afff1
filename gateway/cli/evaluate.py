"""`multimoe gate evaluate`: what the gate would have learned from real outcomes, beside routers told all of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from gateway.cli.console import AsJson, Json, err, print_json, print_table
from gateway.cli.gate import Follow, progress
from gateway.cli.session import Session, session

if TYPE_CHECKING:
    from multimoe.evaluation import Evaluation, Result
    from multimoe.outcomes import Features, Table
    from multimoe.trials import Learner, Learners

FULL_INFORMATION = ("knn", "logistic", "mlp", "task_means", "length")
MANY = 10_000  # outcomes from which on it pays to start processes
MOST_PROCESSES = 4  # each holds the table and its vectors
EMBEDDED_AT_ONCE = 64  # prompts between two looks at the bar


def evaluate(
    ctx: typer.Context,
    outcomes: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, help="Parquet: 'prompt', 'score|MODEL' in [0, 1] a model, 'cost|MODEL'."
        ),
    ],
    embeddings: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The prompts' vectors, .npy. Default: the catalog's encoder's."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The column of tasks. Default: task, category, domain, subject, ...")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How often all of it is done.")] = 5,
    holdout: Annotated[float, typer.Option(min=0.05, max=0.9, help="Share of prompts kept for judging.")] = 0.3,
    flip: Annotated[float, typer.Option(min=0, max=0.5, help="Share of ratings that say the opposite.")] = 0.0,
    retrain_every: Annotated[
        int | None, typer.Option(min=1, help="Prompts from one retraining to the next. Default: a twentieth of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let the gate learn from a table of real outcomes, seeing only its own choices', and judge it on held-out prompts.

    Beside it: the best single model, chance, the oracle, and routers that are told every outcome.
    """
    from multimoe.encoder.text import features
    from multimoe.evaluation import evaluate as run
    from multimoe.outcomes import read, read_embeddings
    from multimoe.trials import Settings

    settings = Settings(seeds=seeds, holdout=holdout, flip=flip, retrain_every=retrain_every)
    table = read(outcomes, task)
    with progress() as bar:
        follow = Follow(bar)
        vectors = read_embeddings(embeddings, len(table)) if embeddings else embedded(table, session(ctx), follow)
        found = run(
            table,
            vectors,
            learners(),
            settings,
            features=lambda table, vectors: features(vectors, table.prompts),
            processes=min(MOST_PROCESSES, os.cpu_count() or 1) if len(table) * len(table.models) > MANY else 1,
            report=follow,
        )
    if as_json:
        print_json(told(found))
        return
    for note in found.table.notes:
        err().print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)
    show(found)


def learners() -> "Learners":
    return {"gate": gate}


def gate(table: "Table", features: "Features", seed: int) -> "Learner":
    from multimoe.closed_loop import GateLearner

    return GateLearner(features, list(table.models), seed)


def embedded(table: "Table", asked: Session, report: Callable[[float, str], None]) -> "Features":
    """The prompts' vectors (n, d) by the catalog's text encoder. Raises WeightsError where its weights are missing."""
    from multimoe.encoder import Encoders
    from multimoe.weights import Weights

    catalog = asked.catalog()
    text = {m: encoder for m, encoder in catalog.gate.encoders.items() if m == "text"}
    encoders = Encoders.load(catalog.gate.model_copy(update={"encoders": text}), Weights(catalog.weights).find)
    batches = []
    for start in range(0, len(table), EMBEDDED_AT_ONCE):
        report(start / len(table), f"embedding {len(table)} prompts")
        batches.append(encoders.embed_texts(table.prompts[start : start + EMBEDDED_AT_ONCE]))
    return np.concatenate(batches)


def told(found: "Evaluation") -> Json:
    """Each router under its name, then `table` and `settings`."""
    results = {name: one_told(result) for name, result in found.results.items()}
    settings = found.settings.model_dump() | {"seconds": round(found.seconds, 1)}
    return results | {"table": found.table.model_dump(), "settings": settings}


def one_told(result: "Result") -> Json:
    """Flat: `quality`, `low`, `high`, and `X`, `X_low`, `X_high` for every other figure with an interval."""
    quality = result.quality
    data: Json = {"quality": quality.value, "low": quality.low, "high": quality.high}
    data |= _figure("gain", result.gain) | _figure("lead", result.lead)
    rest = result.model_dump(exclude={"quality", "gain", "lead", "pair", "cost"}, exclude_none=True)
    pair: Any = result.pair
    if pair is not None:
        for name in ("apgr", "cpt50", "cpt80"):
            data |= _figure(name, getattr(pair, name))
        data |= {"cpt50_exact": pair.cpt50_exact, "cpt80_exact": pair.cpt80_exact, "strong": pair.strong}
    if result.cost is not None:
        data |= {"aiq": result.cost.aiq, "cost_curve": result.cost.points}
    return data | rest


def _figure(name: str, figure: Any) -> Json:
    value, low, high = (None, None, None) if figure is None else (figure.value, figure.low, figure.high)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def show(found: "Evaluation") -> None:
    table, results = found.table, found.results
    order = sorted(results, key=lambda name: (name != "gate", -results[name].quality.value))
    columns = ["router", "quality ", "95 % interval", "over best single", *_extras(found), "training ", "a second "]
    print_table(columns, [_row(name, found) for name in order], title=title(found))
    typer.echo(verdict(found))
    if table.tasks is None:
        typer.echo("No tasks are named (--task COLUMN): a table of each task's means is not among the routers.")


def title(found: "Evaluation") -> str:
    table, settings = found.table, found.settings
    flipped = f", {100 * settings.flip:g} % of ratings flipped" if settings.flip else ""
    return (
        f"{table.prompts} prompts, {len(table.models)} models; {settings.seeds} times {table.stream} to learn from, "
        f"{table.held_out} held out, retrained every {table.retrain_every}{flipped}; {found.seconds:.0f} s"
    )


def verdict(found: "Evaluation") -> str:
    """What the gate gained, and what part that is of what the best router that is told everything gains."""
    gate, single = found.results["gate"], found.results["best_single"]
    told_all = {name: found.results[name].gain.value for name in FULL_INFORMATION if name in found.results}
    best = max(told_all, key=lambda name: told_all[name])
    line = f"The gate gains {100 * gate.gain.value:+.2f} points over {single.name}, the best single model"
    if told_all[best] <= 0:
        return f"{line}; no router that is told every outcome gains any."
    part = gate.gain.value / told_all[best]
    return f"{line}: {100 * part:.0f} % of what {best} gains, told every outcome ({100 * told_all[best]:+.2f})."


def _extras(found: "Evaluation") -> list[str]:
    gate = found.results["gate"]
    pair = ["APGR ", "CPT50 ", "CPT80 "] if gate.pair else []
    return [*pair, *(["AIQ "] if gate.cost else [])]


def _row(name: str, found: "Evaluation") -> tuple[object, ...]:
    result = found.results[name]
    quality, gain = result.quality, result.gain
    extras: list[object] = []
    if result.pair:
        figures = (result.pair.apgr, result.pair.cpt50, result.pair.cpt80)
        shown = zip(figures, (3, 1, 1), strict=True)
        extras += [None if figure is None else f"{figure.value:.{digits}f}" for figure, digits in shown]
    if result.cost:
        extras.append(f"{100 * result.cost.aiq:.2f}")
    return (
        f"{name} ({result.name})" if result.name else name,
        f"{100 * quality.value:.2f}",
        f"{100 * quality.low:.2f} to {100 * quality.high:.2f}",
        f"{100 * gain.value:+.2f} ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})",
        *extras,
        f"{result.train_seconds:.2f} s",
        f"{result.decisions_per_second:,.0f}",
    )
