"""LiteLLM's adaptive router: prompts are sorted into seven kinds by its regular expressions, and each kind Thompson-
samples a Beta posterior per model. Its weights are set to quality alone; it reads the text and no vector."""

import random

import numpy as np
from litellm.router_strategy.adaptive_router.bandit import apply_delta, initial_cell, pick_best
from litellm.router_strategy.adaptive_router.classifier import classify_prompt
from litellm.types.router import AdaptiveRouterPreferences, RequestType
from protocol import Float, Int, Job, play, serve


class AdaptiveRouter:
    ranked = True
    notes = "quality weight 1, all models in tier 2"

    def __init__(self, job: Job, setting: str) -> None:
        self.job = job
        self.random = random.Random(job.seed)
        preferences = AdaptiveRouterPreferences(quality_tier=2, strengths=[])  # what it takes where none are given
        self.cells = {kind: {model: initial_cell(preferences, kind) for model in job.models} for kind in RequestType}
        self.free = dict.fromkeys(job.models, 0.0)

    def choose(self, row: int) -> int:
        model = pick_best(self.cells_of(row), self.free, quality_weight=1.0, cost_weight=0.0, rng=self.random)
        return self.job.models.index(model)

    def learn(self, row: int, chosen: int, reward: float) -> None:
        cells, model = self.cells_of(row), self.job.models[chosen]
        cells[model] = apply_delta(cells[model], reward, 1 - reward)

    def scores(self, rows: Int) -> Float:
        return np.array([[self.cells_of(row)[model].mean for model in self.job.models] for row in rows.tolist()])

    def cells_of(self, row: int) -> dict:
        return self.cells[classify_prompt(self.job.prompts[row])]


if __name__ == "__main__":
    serve(AdaptiveRouter, play)
