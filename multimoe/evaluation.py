"""The closed loop on real outcomes: would a gate that sees only what its own choices were worth have learned to choose?

Prompts of a table arrive one by one; the gate picks a model, the rating is that model's real outcome, and every so many
prompts it learns from them. Afterwards it has to choose on prompts that were held out, beside routers that were told
every outcome; all of it several times. A pure function of table, vectors and settings.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from multimoe import metrics, routellm
from multimoe.baselines import averages
from multimoe.metrics import Curve, Figure, Held
from multimoe.outcomes import Features, Float, Table
from multimoe.outputs import Frozen
from multimoe.trials import Learners, Played, Runner, Settings, Trial, playing, training, trial

STEPS = 20  # of the stream, for its learning curve

Report = Callable[[float, str], None]  # a share from 0 to 1 and what is being done
FeaturesOf = Callable[[Table, Features], Features]


class Result(Frozen):
    """One router over all trials. `gain` is over the best single model, `lead` how far the first router of all, the
    gate, is ahead of this one; both on the same prompts.

    `reward` is the mean real outcome of a bandit's choices while it learned, `learning` the same in twentieths of the
    stream; `cumulative_reward` is its sum, the mean over trials.
    """

    quality: Figure
    gain: Figure
    lead: Figure
    name: str | None = None
    reward: float | None = None
    cumulative_reward: float | None = None
    learning: tuple[float | None, ...] | None = None
    promotions: float | None = None
    train_seconds: float
    decisions_per_second: float
    pair: routellm.Pair | None = None
    cost: Curve | None = None


class Model(Frozen):
    name: str
    quality: float
    runs: int
    cost: float | None


class Facts(Frozen):
    """The table in short; `models` are best first, `stream` and `held_out` are prompts in each trial."""

    prompts: int
    different_prompts: int
    models: tuple[Model, ...]
    missing: float
    tasks: int | None
    task_column: str | None
    dimensions: int
    stream: int
    held_out: int
    retrain_every: int
    notes: tuple[str, ...]


class Evaluation(Frozen):
    results: dict[str, Result]
    table: Facts
    settings: Settings
    seconds: float


def embedding_alone(table: Table, embeddings: Features) -> Features:
    return embeddings


def evaluate(
    table: Table,
    embeddings: Features,
    learners: Learners,
    settings: Settings,
    *,
    features: FeaturesOf = embedding_alone,
    others: Mapping[str, Runner] | None = None,
    processes: int = 1,
    report: Report = lambda share, doing: None,
) -> Evaluation:
    """Learners on `features`, full-information routers on embeddings (n, d) alone, and `others`, on the same trials.

    With more than one process, trials but for `others` run side by side, and learners have to be importable by name.
    Raises BadInput where too few prompts are left to learn from.
    """
    began = time.perf_counter()
    trials = [trial(table, settings, seed) for seed in range(settings.seeds)]
    go = partial(_go, table, embeddings, features(table, embeddings), learners, settings)
    rounds = _side_by_side(go, settings.seeds, processes, report) if processes > 1 else _in_turn(go, trials, report)
    played = {name: [one[name] for one in rounds] for name in rounds[0]}
    for name, run in (others or {}).items():
        played[name] = [run(one) for one in trials]
    return Evaluation(
        results=judge(table, trials, played),
        table=facts(table, trials[0], embeddings.shape[1]),
        settings=settings,
        seconds=time.perf_counter() - began,
    )


def _go(
    table: Table,
    embeddings: Features,
    features: Features,
    learners: Learners,
    settings: Settings,
    seed: int,
    report: Report = lambda share, doing: None,
) -> dict[str, Played]:
    """Every learner and every router that is told all, once."""
    one = trial(table, settings, seed)
    played: dict[str, Played] = {}
    runners = playing(learners, table, features) | training(table, embeddings)
    with threadpool_limits(1):  # matrices are small: a second thread mostly waits for the first
        for name, run in runners.items():
            report(len(played) / len(runners), name)
            played[name] = run(one)
    return played


def _in_turn(go: Callable[..., dict[str, Played]], trials: Sequence[Trial], report: Report) -> list[dict[str, Played]]:
    count = len(trials)
    return [
        go(i, lambda share, name, i=i: report((i + share) / count, f"seed {i + 1} of {count}: {name}"))
        for i in range(count)
    ]


def _side_by_side(
    go: Callable[..., dict[str, Played]], seeds: int, processes: int, report: Report
) -> list[dict[str, Played]]:
    report(0.0, f"{seeds} seeds, {min(seeds, processes)} at a time")
    with ProcessPoolExecutor(min(seeds, processes), mp_context=get_context("spawn")) as pool:
        rounds = []
        for done in pool.map(go, range(seeds)):
            rounds.append(done)
            report(len(rounds) / seeds, f"{len(rounds)} of {seeds} seeds done")
    return rounds


def judge(table: Table, trials: Sequence[Trial], played: Mapping[str, Sequence[Played]]) -> dict[str, Result]:
    """Every router by the real outcomes of the held-out prompts. `played` has `best_single`, each one run a trial."""
    held = [_held(table, one) for one in trials]
    worth = {name: _worth(runs, held) for name, runs in played.items()}
    first, single = next(iter(worth.values())), worth["best_single"]
    means = np.stack([averages(one.ratings[one.stream]) for one in trials])  # (trials, models)
    results = {}
    for name, runs in played.items():
        result = _result(
            runs,
            quality=metrics.mean([part.groups for part in held], worth[name]),
            gain=_difference(held, worth[name], single),
            lead=_difference(held, first, worth[name]),
        )
        scores, orders = [run.scores for run in runs], all(run.orders for run in runs)
        if orders and len(table.models) == 2:
            pair = routellm.pair(scores, held, table.models, int(means.mean(axis=0).argmax()))
            result = result.model_copy(update={"pair": pair})
        if orders and table.costs is not None:
            result = result.model_copy(update={"cost": metrics.curve(scores, held, _singles(held))})
        results[name] = result
    ((best, _),) = Counter(means.argmax(axis=1).tolist()).most_common(1)
    results["best_single"] = results["best_single"].model_copy(update={"name": table.models[best]})
    return results


def facts(table: Table, one: Trial, dimensions: int) -> Facts:
    usable = table.part(rows=table.usable)
    costs = [None] * len(table.models) if usable.costs is None else usable.costs.mean(axis=0).tolist()
    qualities, runs = np.nanmean(usable.outcomes, axis=0).tolist(), usable.run.sum(axis=0).tolist()
    models = [
        Model(name=name, quality=quality, runs=count, cost=cost)
        for name, quality, count, cost in zip(table.models, qualities, runs, costs, strict=True)
    ]
    return Facts(
        prompts=len(usable),
        different_prompts=len(np.unique(usable.groups)),
        models=tuple(sorted(models, key=lambda model: -model.quality)),
        missing=float(1 - usable.run.mean()),
        tasks=None if usable.tasks is None else len(set(usable.tasks)),
        task_column=table.task_column,
        dimensions=dimensions,
        stream=len(one.stream),
        held_out=len(one.held_out),
        retrain_every=one.every,
        notes=table.notes,
    )


def _worth(runs: Sequence[Played], held: Sequence[Held]) -> list[Float]:
    """What the router's picks were worth on each trial's prompts."""
    return [metrics.qualities(run.scores, part) for run, part in zip(runs, held, strict=True)]


def _difference(held: Sequence[Held], ours: Sequence[Float], theirs: Sequence[Float]) -> Figure:
    pairs = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    return metrics.mean_difference([part.groups for part in held], pairs)


def _result(runs: Sequence[Played], quality: Figure, gain: Figure, lead: Figure) -> Result:
    rewards = [run.rewards for run in runs if run.rewards is not None]
    promotions = [run.promotions for run in runs if run.promotions is not None]
    return Result(
        quality=quality,
        gain=gain,
        lead=lead,
        reward=_mean(np.concatenate(rewards)) if rewards else None,
        cumulative_reward=float(np.mean([np.nansum(one) for one in rewards])) if rewards else None,
        learning=_learning(rewards) if rewards else None,
        promotions=float(np.mean(promotions)) if promotions else None,
        train_seconds=float(np.mean([run.train_seconds for run in runs])),
        decisions_per_second=float(np.median([run.decisions_per_second for run in runs])),
    )


def _learning(rewards: Sequence[Float]) -> tuple[float | None, ...]:
    """Mean reward in each part of the stream."""
    parts = zip(*(np.array_split(one, min(STEPS, len(one))) for one in rewards), strict=True)
    return tuple(_mean(np.concatenate(part)) for part in parts)


def _mean(rewards: Float) -> float | None:
    """Of the outcomes there are."""
    known = rewards[~np.isnan(rewards)]
    return float(known.mean()) if len(known) else None


def _held(table: Table, one: Trial) -> Held:
    rows = one.held_out
    if table.costs is None:
        return Held(table.groups[rows], table.outcomes[rows])
    return Held(table.groups[rows], table.outcomes[rows], table.costs[rows], table.costs[one.stream].mean(axis=0))


def _singles(held: Sequence[Held]) -> Float:
    """Mean cost and quality of each model on the held-out prompts, (models, 2); those never run there are left out."""
    outcomes, costs = (np.concatenate([getattr(part, what) for part in held]) for what in ("outcomes", "costs"))
    run = ~np.isnan(outcomes).all(axis=0)
    return np.column_stack([costs[:, run].mean(axis=0), np.nanmean(outcomes[:, run], axis=0)])
