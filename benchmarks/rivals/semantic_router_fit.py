"""semantic-router 1.1.1: a route a model, whose utterances are the training prompts on which that model was best, then
its `fit` on prompts kept aside. Its encoder looks our vectors up by text; the rest is its own IndexedRouter."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from protocol import Float, Int, Job, serve, train
from semantic_router import IndexedRouter, Route
from semantic_router.encoders import DenseEncoder

KEPT_ASIDE = 0.2  # of the training rows, for `fit`: it must not see stored utterances


@dataclass(frozen=True)
class Setting:
    """`fall_back`: to the model that is best overall, where its confidence is below that model's mean reward."""

    top_k: int
    aggregation: Literal["mean", "sum"]
    fall_back: bool


SETTINGS = {
    "published": Setting(top_k=5, aggregation="mean", fall_back=False),
    "fallback": Setting(top_k=5, aggregation="mean", fall_back=True),
    "vote": Setting(top_k=50, aggregation="sum", fall_back=False),
}


class TableEncoder(DenseEncoder):
    name: str = "table"
    vectors: dict[str, Any]

    def __call__(self, docs: list[str]) -> list[list[float]]:
        return [self.vectors[text] for text in docs]


class SemanticRouter:
    def __init__(self, job: Job, setting: str) -> None:
        self.job = job
        self.setting = SETTINGS[setting]
        self.ranked = not self.setting.fall_back
        self.notes = str(self.setting)
        self.encoder = TableEncoder(vectors=dict(zip(job.prompts, job.features.astype(np.float64), strict=True)))

    def fit(self, rows: Int, rewards: Float) -> None:
        order = np.random.default_rng(self.job.seed).permutation(len(rows))
        aside, stored = np.split(order, [int(KEPT_ASIDE * len(rows))])
        means = np.nanmean(rewards, axis=0)
        self.overall = int(means.argmax())
        best = best_models(rewards, means)
        self.router = IndexedRouter(
            encoder=self.encoder,
            routes=self.routes(rows[stored], best[stored]),
            top_k=self.setting.top_k,
            aggregation=self.setting.aggregation,
        )
        prompts = [self.job.prompts[row] for row in rows[aside]]
        self.router.fit(prompts, self.labels(prompts, rewards[aside], best[aside]))
        self.router.confidence_threshold = float(means[self.overall]) if self.setting.fall_back else None

    def routes(self, rows: Int, best: Int) -> list[Route]:
        utterances: dict[int, list[str]] = {}
        for row, model in zip(rows.tolist(), best.tolist(), strict=True):
            utterances.setdefault(model, []).append(self.job.prompts[row])
        return [Route(name=self.job.models[model], utterances=texts) for model, texts in utterances.items()]

    def labels(self, prompts: list[str], rewards: Float, best: Int) -> list[str]:
        """The route its own choice takes where that model did as well as any, so that ties do not count as wrong."""
        labels = []
        for prompt, row, model in zip(prompts, rewards, best.tolist(), strict=True):
            own = self.job.models.index(self.router(prompt).name)
            labels.append(self.job.models[own if row[own] >= row[model] else model])
        return labels

    def choose(self, row: int) -> int:
        name = self.router(self.job.prompts[row]).name
        return self.overall if name is None else self.job.models.index(name)

    def scores(self, rows: Int) -> Float:
        if self.setting.fall_back:
            return np.eye(len(self.job.models))[[self.choose(row) for row in rows.tolist()]]
        return np.array([self.similarities(row) for row in rows.tolist()])

    def similarities(self, row: int) -> Float:
        """Its own ranking, which calibration keeps but may flatten; a model without a route (never best) gets 0."""
        calibrator, self.router.calibrator = self.router.calibrator, None
        scores = np.zeros(len(self.job.models))
        for choice in self.router(self.job.prompts[row], limit=None):
            scores[self.job.models.index(choice.name)] = choice.confidence
        self.router.calibrator = calibrator
        return scores


def best_models(rewards: Float, means: Float) -> Int:
    """The best model a row (b,); ties go to the one with the highest mean reward."""
    return np.lexsort((np.broadcast_to(means, rewards.shape), np.nan_to_num(rewards, nan=-1.0)), axis=1)[:, -1]


if __name__ == "__main__":
    serve(SemanticRouter, train)
