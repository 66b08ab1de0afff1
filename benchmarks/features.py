"""What of a prompt tells which model will be right? Held-out error of predicted quality by what the gate may see.

    python benchmarks/features.py --data FOLDER [--seeds 3]

FOLDER holds tables of outcomes (`NAME.parquet` with `NAME.emb.npy` beside it). The gate's own model is fitted on all
outcomes of 70 % of the prompts, so that only what it sees differs; figures are mean squared error of the predicted
score (lower is better) and mean score of the model it would choose, on the other 30 %.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import Ridge

from multimoe.encoder.prompt import COUNTS, prompt_features
from multimoe.outcomes import Table, read, read_embeddings
from multimoe.posterior import fit, labels, sigmoid
from multimoe.quality import text_vectors
from multimoe.training import RANK, principal, prior

HELD_OUT = 0.3
Rows = np.ndarray
Seen = Callable[[Rows], np.ndarray]  # training rows -> features of all rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    tables = {path.stem: read(path) for path in sorted(asked.data.glob("*.parquet"))}
    vectors = {name: read_embeddings(asked.data / f"{name}.emb.npy", len(table)) for name, table in tables.items()}
    print("| table | what is seen | error | chosen |\n|---|---|---|---|")
    for name, table in tables.items():
        others = {n: (t, vectors[n]) for n, t in tables.items() if n != name}
        for seen, features in variants(table, vectors[name], others):
            figures = [judged(table, features, seed) for seed in range(asked.seeds)]
            error, chosen = np.mean(figures, axis=0)
            print(f"| {name} | {seen} | {error:.4f} | {100 * chosen:.2f} |", flush=True)


def variants(table: Table, vectors: np.ndarray, others: dict) -> Iterator[tuple[str, Seen]]:
    prompt = prompt_features(table.prompts)
    counts = prompt[:, : len(COUNTS)]
    ours = np.hstack([vectors, prompt])
    yield "nothing", lambda rows: np.zeros((len(table), 1), np.float32)
    yield "embedding", lambda rows: vectors
    yield "counts", lambda rows: counts
    yield "counts and waves", lambda rows: prompt
    yield "embedding, counts", lambda rows: np.hstack([vectors, counts])
    yield "embedding, counts and waves (the gate's)", lambda rows: ours
    hashed = HashingVectorizer(ngram_range=(1, 2), n_features=2**16).transform(table.prompts)
    yield "the gate's, words and pairs of words", lambda rows: np.hstack([ours, words(hashed, rows)])
    difficulty = np.column_stack([learned_elsewhere(*other, ours) for other in others.values()])
    yield "the gate's, difficulty learned on the other tables", lambda rows: np.hstack([ours, difficulty])


def words(hashed: object, rows: Rows) -> np.ndarray:
    """Latent semantic analysis, (n, RANK), as large as a centred embedding."""
    found = TruncatedSVD(RANK, random_state=0).fit(hashed[rows]).transform(hashed)
    found -= found[rows].mean(axis=0)
    return (found / np.sqrt((found[rows] ** 2).sum(axis=1).mean())).astype(np.float32)


def learned_elsewhere(table: Table, vectors: np.ndarray, features: np.ndarray) -> np.ndarray:
    """How easy another table's models would find these prompts, (n,) of spread 1."""
    there = np.hstack([vectors, prompt_features(table.prompts)])
    easy = Ridge(30.0).fit(there[table.usable], np.nanmean(table.outcomes[table.usable], axis=1)).predict(features)
    return ((easy - easy.mean()) / easy.std()).astype(np.float32)


def judged(table: Table, features: Seen, seed: int) -> tuple[float, float]:
    order = np.random.default_rng(seed).permutation(table.usable)
    held, rows = np.split(order, [round(HELD_OUT * len(order))])
    quality = predicted(table, features(rows), rows, held)
    outcomes = table.outcomes[held]
    chosen = outcomes[np.arange(len(held)), quality.argmax(axis=1)]
    return float(np.nanmean((quality - outcomes) ** 2)), float(np.nanmean(chosen))


def predicted(table: Table, features: np.ndarray, rows: Rows, held: Rows) -> np.ndarray:
    """Quality (held, models) by the gate's own model."""
    axes = principal(features[rows])
    z = text_vectors(features, {"text": axes})
    at, model = np.nonzero(~np.isnan(table.outcomes[rows]))
    said = labels(z, rows[at], model, table.outcomes[rows][at, model], len(table.models))
    found = fit(said, prior({"text": axes}))
    return sigmoid(z[held] @ (found.common + found.own).T)


if __name__ == "__main__":
    main()
