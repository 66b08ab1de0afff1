"""The tables of outcomes that the benchmarks run on, and what others measured on the same ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet

from multimoe.outcomes import Features, Int, Table, read, read_embeddings

SMALL = (  # open models of MMLU-Pro up to 8.5 billion parameters
    "Llama-2-7b-hf", "Meta-Llama-3-8B", "Meta-Llama-3_1-8B-Instruct", "Meta-Llama-3_1-8B", "Mistral-7B-Instruct-v0.1",
    "Mistral-7B-Instruct-v0.2", "Mistral-7B-v0.1", "Mistral-7B-v0.2-hf", "Phi-3-mini-4k-instruct", "Qwen1.5-7B-Chat",
    "Yi-6B", "Yi-6b-Chat", "gemma-7b", "mathstral-7B",
)  # fmt: skip

# RouteLLM's own figures for 5-shot MMLU (arXiv 2406.18665v4, table 2): CPT50, CPT80, APGR, by router and training data.
ROUTELLM = (
    ("Random", 50.07, 79.93, 0.500),
    ("BERT, arena", 49.43, 77.80, 0.502),
    ("Causal LLM, arena", 48.88, 77.93, 0.499),
    ("MF, arena", 45.00, 76.86, 0.524),
    ("SW ranking, arena", 55.82, 80.25, 0.473),
    ("BERT, arena + 1,500 MMLU validation rows", 41.30, 72.20, 0.572),
    ("Causal LLM, arena + 1,500 MMLU validation rows", 35.49, 70.31, 0.600),
    ("MF, arena + 1,500 MMLU validation rows", 35.46, 71.40, 0.597),
    ("SW ranking, arena + 1,500 MMLU validation rows", 35.40, 71.55, 0.603),
)

# What others measured in five folds with full information, by pool: quality in %, and APGR for the pair.
MEASURED_BEFORE: Mapping[str, Mapping[str, float]] = {
    "mmlu_pro_29, 28 models": {
        "random": 40.1, "best_single": 70.24, "knn": 70.80, "logistic": 70.90, "mlp": 71.36, "task_means": 71.90,
        "oracle": 94.6,
    },
    "mmlu_pro_29, 14 small models": {
        "random": 32.0, "best_single": 43.58, "knn": 45.25, "logistic": 45.94, "mlp": 45.58, "task_means": 46.27,
        "oracle": 82.6,
    },
    "routerbench_subset": {
        "random": 67.8, "best_single": 87.94, "knn": 85.97, "logistic": 87.94, "mlp": 87.40, "task_means": 87.94,
        "oracle": 97.6,
    },
    "mmmu_pro_vlm, 7 direct": {
        "random": 36.5, "best_single": 41.39, "knn": 45.49, "logistic": 44.80, "mlp": 43.82, "task_means": 43.99,
        "oracle": 77.5,
    },
    "routellm_mmlu": {
        "random": 0.505, "length": 0.583, "knn": 0.651, "logistic": 0.666, "mlp": 0.671, "task_means": 0.674,
    },
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pool:
    """A table, or a part of one that is worth its own figures."""

    name: str
    table: Table
    vectors: Features


def pools(folder: Path) -> Iterator[Pool]:
    for file in sorted(folder.glob("*.parquet")):
        table = read(file)
        vectors = read_embeddings(file.with_name(f"{file.stem}.emb.npy"), len(table))
        for name, rows, models in parts(file, table):
            yield Pool(name, table.part(rows, models), vectors if rows is None else vectors[rows])


def parts(file: Path, table: Table) -> Iterator[tuple[str, Int | None, Sequence[str] | None]]:
    """Names, rows and models. Known traps are taken out: contaminated rows, and Winogrande's position bias."""
    match file.stem:
        case "routellm_mmlu":
            dirty = pyarrow.parquet.read_table(file, columns=["contaminated"])["contaminated"].to_numpy()
            yield file.stem, np.flatnonzero(~dirty.astype(bool)), None
        case "mmlu_pro_29":
            yield f"{file.stem}, 28 models", None, [m for m in table.models if not m.startswith("DeepSeek")]
            yield f"{file.stem}, 14 small models", None, SMALL
        case "routerbench_subset":
            yield file.stem, None, None
            yield f"{file.stem}, no Winogrande", np.flatnonzero(np.array(table.tasks) != "winogrande"), None
        case "mmmu_pro_vlm":
            yield file.stem, None, None
            yield f"{file.stem}, 7 direct", None, [m for m in table.models if m.endswith("|direct")]
        case _:
            yield file.stem, None, None
