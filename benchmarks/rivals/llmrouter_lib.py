"""llmrouter-lib 0.4.0: its KNN, SVM, MLP and matrix factorisation routers with its own trainers, fed through its own
files (YAML, JSONL, .pt) in a temporary folder. Patched: `get_longformer_embedding`, which looks our vector up."""

import contextlib
import inspect
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from llmrouter import models
from protocol import Float, Int, Job, serve, train


@dataclass(frozen=True)
class Setting:
    """`hparam` as its documentation and configs give it, apart from the dimensions of our vectors. `ties`: it takes one
    best model a query; of several, that which is best overall, or one drawn, of rows on which models differ."""

    router: type
    trainer: type
    hparam: dict[str, Any]
    ties: Literal["overall", "drawn"] = "overall"


KNN = Setting(models.KNNRouter, models.KNNRouterTrainer, {"n_neighbors": 5, "metric": "cosine"})
SVM = Setting(models.SVMRouter, models.SVMRouterTrainer, {"kernel": "rbf", "C": 1.0, "gamma": "scale"})
MLP = Setting(
    models.MLPRouter,
    models.MLPTrainer,
    {
        "hidden_layer_sizes": [128, 64],
        "activation": "relu",
        "lr": 1e-3,
        "epochs": 100,
        "batch_size": 32,
        "alpha": 1e-4,
    },
)
MF = Setting(models.MFRouter, models.MFRouterTrainer, {"latent_dim": 128, "lr": 1e-3, "epochs": 5, "noise_alpha": 0.0})
SETTINGS = {
    "knn": KNN,
    "knn50": replace(KNN, hparam={"n_neighbors": 50, "metric": "cosine"}),
    "svm": SVM,
    "svm-drawn": replace(SVM, ties="drawn"),
    "mlp": MLP,
    "mf": MF,
    "mf-drawn": replace(MF, ties="drawn"),
}


class LlmRouter:
    ranked = True

    def __init__(self, job: Job, setting: str) -> None:
        self.job = job
        self.setting = SETTINGS[setting]
        self.notes = f"{self.setting.router.__name__} {self.setting.hparam}, ties {self.setting.ties}"
        self.vectors = torch.from_numpy(job.features)
        self.kept = tempfile.TemporaryDirectory()  # it reads its model from disk at every call
        self.folder = Path(self.kept.name)
        module: Any = inspect.getmodule(self.setting.router)
        module.get_longformer_embedding = lambda query: self.vectors[int(query)]
        torch.manual_seed(job.seed)

    def fit(self, rows: Int, rewards: Float) -> None:
        self.write_files(rows, rewards)
        with quiet():
            self.router = self.setting.router(str(self.folder / "router.yaml"))
            self.trainer = self.setting.trainer(self.router, device="cpu")
            self.trainer.train()

    def write_files(self, rows: Int, rewards: Float) -> None:
        torch.save(self.vectors, self.folder / "embeddings.pt")
        ranking = self.by_mean if self.setting.ties == "overall" else self.by_draw
        with (self.folder / "routing.jsonl").open("w") as file:
            for row, ranked, outcome in zip(rows.tolist(), ranking(rewards), rewards, strict=True):
                for model in ranked:
                    record = {"query": str(row), "embedding_id": row, "model_name": self.job.models[model]}
                    file.write(json.dumps({**record, "performance": float(outcome[model])}) + "\n")
        model_file = str(self.folder / "model.pkl")
        config = {
            "data_path": {
                "query_embedding_data": str(self.folder / "embeddings.pt"),
                "routing_data_train": str(self.folder / "routing.jsonl"),
            },
            "model_path": {"ini_model_path": "", "save_model_path": model_file, "load_model_path": model_file},
            "hparam": self.hparam(),
        }
        (self.folder / "router.yaml").write_text(yaml.safe_dump(config))

    def by_mean(self, rewards: Float) -> Iterator[Int]:
        """The models run on each row (b, m); the first of the best is its label, so the best overall comes first."""
        order = np.nanmean(rewards, axis=0).argsort()[::-1]
        return (order[~np.isnan(row[order])] for row in rewards)

    def by_draw(self, rewards: Float) -> Iterator[Int]:
        """One of the best, and all that did worse; none where all did the same."""
        generator = np.random.default_rng(self.job.seed)
        for row in rewards:  # (m,)
            best = np.flatnonzero(row == np.nanmax(row))
            worse = np.flatnonzero(row < np.nanmax(row))
            yield np.concatenate([generator.choice(best, 1), worse]) if len(worse) else worse

    def hparam(self) -> dict[str, Any]:
        text = {"text_dim": self.vectors.shape[1]} if self.setting.router is models.MFRouter else {}
        return {**self.setting.hparam, **text}

    def choose(self, row: int) -> int:
        with quiet():
            return self.job.models.index(self.router.route_single({"query": str(row)})["model_name"])

    def scores(self, rows: Int) -> Float:
        """What its estimators hold behind the name they return."""
        model, vectors = self.trainer.model, self.vectors[rows]
        if self.setting.router is models.KNNRouter:
            return self.spread(model.predict_proba(vectors.numpy()), model.classes_)
        if self.setting.router is models.SVMRouter:
            margins = model.decision_function(vectors.numpy())
            return self.spread(margins if margins.ndim == 2 else np.stack([-margins, margins], 1), model.classes_)
        with torch.no_grad():
            if self.setting.router is models.MLPRouter:
                logits = model(vectors)
            else:
                logits = torch.stack([model.score_all(model.project_text(vector)) for vector in vectors])
        return self.spread(logits.numpy(), [self.router.idx_to_model[i] for i in range(logits.shape[1])])

    def spread(self, values: Float, names: Any) -> Float:
        """Columns in the job's order; a model that was never best is none of its classes and comes last."""
        scores = np.repeat(values.min(1, keepdims=True) - 1, len(self.job.models), axis=1)
        scores[:, [self.job.models.index(name) for name in names]] = values
        return scores


@contextlib.contextmanager
def quiet():
    """It prints at every call."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


if __name__ == "__main__":
    serve(LlmRouter, train)
