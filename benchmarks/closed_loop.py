"""The gate and its rivals in the closed loop on real outcomes: what each learns, gains, costs and takes.

    python benchmarks/closed_loop.py --data FOLDER [--environments FOLDER] [--only NAME ...] [--flip 0 0.1]
        [--seeds 5] [--rivals NAME ...] [--processes 1] [--json FILE]

FOLDER holds tables of outcomes (multimoe/outcomes.py says their form), each NAME.parquet with the prompts' vectors in
NAME.emb.npy. Rivals run in the environments that benchmarks/rivals/run.py set up, on the same vectors, the same stream
and the same flips. Prints Markdown.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pools import ROUTELLM, Pool, pools
from rivals.protocol import Answer, Job
from rivals.run import RIVALS, RivalFailed, ask, available

from gateway.cli.evaluate import told as as_json
from multimoe.baselines import Logistic, Mlp
from multimoe.closed_loop import GateLearner
from multimoe.encoder.prompt import PROMPT
from multimoe.encoder.text import features
from multimoe.evaluation import Evaluation, Result, evaluate
from multimoe.metrics import hull
from multimoe.outcomes import Features, Table
from multimoe.trials import Played, Runner, Settings, Trial, train, trial

RIVAL_SECONDS = 3600.0  # before one seed of a rival is given up
TOLD = ("knn", "logistic", "mlp", "task_means", "length")


def gate(table: Table, vectors: Features, seed: int) -> GateLearner:
    return GateLearner(vectors, list(table.models), seed)


def gate_on_embeddings(table: Table, vectors: Features, seed: int) -> GateLearner:
    return gate(table, vectors[:, :-PROMPT], seed)


def beside(table: Table, vectors: Features) -> Features:
    return features(vectors, table.prompts)


def on_pool(
    pool: Pool, settings: Settings, rivals: Sequence[str], environments: Path, processes: int
) -> Evaluation:  # fmt: skip
    wide = beside(pool.table, pool.vectors)
    others: dict[str, Runner] = {
        "logistic, with counts": lambda one: train(Logistic, one, pool.table, wide),
        "mlp, with counts": lambda one: train(Mlp, one, pool.table, wide),
    }
    trials = [trial(pool.table, settings, seed) for seed in range(settings.seeds)]
    for name in rivals:
        try:
            answers = [asked(name, pool, one, environments) for one in trials]
        except RivalFailed as failed:
            print(f"{pool.name}: {name} is left out: {failed}", file=sys.stderr)
            continue
        others[name] = lambda one, answers=answers: answers[one.seed]
    learners = {"gate": gate, "gate, embedding alone": gate_on_embeddings}
    return evaluate(
        pool.table,
        pool.vectors,
        learners,
        settings,
        features=beside,
        others=others,
        processes=processes,
        report=lambda share, doing: print(f"{pool.name}: {doing}", file=sys.stderr),
    )


def asked(name: str, pool: Pool, one: Trial, environments: Path) -> Played:
    """What a rival makes of one trial. Raises RivalFailed."""
    table = pool.table
    with tempfile.TemporaryDirectory() as folder:
        job, answer = Path(folder, "job.npz"), Path(folder, "answer.npz")
        Job(
            features=pool.vectors,
            outcomes=table.outcomes,
            rewards=one.ratings,
            models=list(table.models),
            prompts=list(table.prompts),
            stream=one.stream,
            held_out=one.held_out,
            block=one.every,
            seed=one.seed,
            costs=table.costs,
        ).save(job)
        began = time.perf_counter()
        ask(name, job, answer, environments, RIVAL_SECONDS)
        print(f"{pool.name}: {name}, seed {one.seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        found = Answer.load(answer)
    return Played(
        scores=found.scores,
        train_seconds=found.train_seconds,
        decisions_per_second=found.decisions_per_second,
        rewards=None if found.chosen is None else table.outcomes[one.stream, found.chosen],
        orders=found.ranked,
    )


def told(name: str) -> str:
    """What a router learns from."""
    if name in RIVALS:
        return "own choices" if RIVALS[name].kind == "bandit" else "everything"
    if name.startswith("gate"):
        return "own choices"
    return "" if name in ("random", "oracle") else "everything"


def markdown(name: str, found: Evaluation) -> str:
    """One pool's table, the gate first, then by quality."""
    facts, settings, results = found.table, found.settings, found.results
    columns = [
        "router",
        "told",
        "quality, %",
        "over best single, points",
        "behind the gate",
        "reward while learning, %",
    ]
    columns += ["APGR", "CPT50", "CPT80", "exact CPT50, CPT80"] if results["gate"].pair else []
    columns += ["AIQ, %", "quality at 20 % of the dearest's cost, %"] if results["gate"].cost else []
    columns += ["training, s", "decisions/s"]
    order = sorted(results, key=lambda one: (not one.startswith("gate"), -results[one].quality.value))
    rows = [columns, ["---"] * len(columns), *(row(one, found) for one in order)]
    flipped = f", {100 * settings.flip:g} % of ratings flipped" if settings.flip else ""
    title = (
        f"### {name}{flipped}\n\n{facts.prompts} prompts, {len(facts.models)} models, {settings.seeds} seeds; "
        f"{facts.stream} prompts to learn from, retrained every {facts.retrain_every}; {facts.held_out} held out.\n"
    )
    return title + "\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def row(name: str, found: Evaluation) -> list[str]:
    result, dearest = found.results[name], max(model.cost or 0.0 for model in found.table.models)
    cells = [
        (f"{name} ({result.name})" if result.name else name).replace("|", " "),
        told(name),
        f"{100 * result.quality.value:.2f} ({100 * result.quality.low:.2f} to {100 * result.quality.high:.2f})",
        *(
            f"{100 * one.value:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})"
            for one in (result.gain, result.lead)
        ),
        "" if result.reward is None else f"{100 * result.reward:.2f}",
    ]
    if found.results["gate"].pair:
        cells += pair_cells(result)
    if found.results["gate"].cost:
        cells += cost_cells(result, dearest)
    return [*cells, f"{result.train_seconds:.2f}", f"{result.decisions_per_second:,.0f}"]


def pair_cells(result: Result) -> list[str]:
    pair = result.pair
    if pair is None or pair.apgr is None or pair.cpt50 is None or pair.cpt80 is None:
        return [""] * 4
    interval = f" ({pair.apgr.low:.3f} to {pair.apgr.high:.3f})" if pair.apgr.low and pair.apgr.high else ""
    exact = ", ".join("" if share is None else f"{share:.1f}" for share in (pair.cpt50_exact, pair.cpt80_exact))
    return [f"{pair.apgr.value:.3f}{interval}", f"{pair.cpt50.value:.1f}", f"{pair.cpt80.value:.1f}", exact]


def cost_cells(result: Result, dearest: float) -> list[str]:
    if result.cost is None:
        return [""] * 2
    bought = float(hull(np.array(result.cost.points), np.array([0.2 * dearest]))[0])
    return [f"{100 * result.cost.aiq:.2f}", f"{100 * bought:.2f}"]


def routellm() -> str:
    lines = [f"| {name} | {cpt50:.2f} | {cpt80:.2f} | {apgr:.3f} |" for name, cpt50, cpt80, apgr in ROUTELLM]
    return "\n".join(
        [
            "RouteLLM's published figures for the same pair and benchmark (arXiv 2406.18665v4, table 2). **Other"
            " training data**: Chatbot Arena preferences, or those and MMLU's validation questions, where the routers"
            " above learn from 70 % of the benchmark itself; and judged on all of it, not on the 30 % held out.\n",
            "| router, training data | CPT50 | CPT80 | APGR |",
            "|---|---|---|---|",
            *lines,
        ]
    )


def goals(found: Mapping[str, Evaluation]) -> str:
    """Where the gate stands against the best of those told everything, and the best rival, on every pool."""
    columns = [
        "pool",
        "gate, %",
        "best single, %",
        "best told everything, %",
        "part of its gain",
        "best rival, %",
        "behind",
    ]
    rows = [columns, ["---"] * len(columns)]
    for name, one in found.items():
        results = one.results
        gate, single = results["gate"], results["best_single"]
        best = max((n for n in TOLD if n in results), key=lambda n: results[n].quality.value)
        rivals = [n for n in RIVALS if n in results]
        ahead = max(rivals, key=lambda n: results[n].quality.value, default=None)
        gain = results[best].gain.value
        rows.append(
            [
                name,
                f"{100 * gate.quality.value:.2f} ({100 * gate.quality.low:.2f} to {100 * gate.quality.high:.2f})",
                f"{100 * single.quality.value:.2f}",
                f"{100 * results[best].quality.value:.2f} ({best})",
                f"{100 * gate.gain.value / gain:.0f} %" if gain > 0 else "it gains none",
                f"{100 * results[ahead].quality.value:.2f} ({ahead})" if ahead else "",
                ", ".join(n for n in rivals if results[n].lead.high < 0) or "none",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--environments", type=Path, help="where the rivals' environments are; default: no rivals")
    arguments.add_argument("--rivals", nargs="*", choices=sorted(RIVALS), help="default: all that are set up")
    arguments.add_argument("--only", nargs="*", help="pools, as the tables' headings name them")
    arguments.add_argument("--flip", nargs="*", type=float, default=[0.0, 0.1])
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--retrain-every", type=int)
    arguments.add_argument("--processes", type=int, default=1, help="seeds side by side; times hold with one")
    arguments.add_argument("--json", type=Path, help="where to keep every figure")
    options = arguments.parse_args()
    chosen = [pool for pool in pools(options.data) if not options.only or pool.name in options.only]
    there = available(options.environments) if options.environments else []
    rivals = [name for name in there if options.rivals is None or name in options.rivals]
    kept: dict[str, object] = {}
    for flip in options.flip:
        found = {}
        settings = Settings(seeds=options.seeds, flip=flip, retrain_every=options.retrain_every)
        for pool in chosen:
            found[pool.name] = on_pool(pool, settings, rivals, options.environments, options.processes)
            print(markdown(pool.name, found[pool.name]), flush=True)
            if pool.name == "routellm_mmlu":
                print(routellm(), "\n", flush=True)
            kept[f"{pool.name}, flip {flip:g}"] = as_json(found[pool.name])
            if options.json:
                options.json.write_text(json.dumps(kept, indent=1))
        print(f"### All pools, {100 * flip:g} % of ratings flipped\n\n{goals(found)}\n", flush=True)


if __name__ == "__main__":
    main()
