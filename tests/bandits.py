"""A plain learner to drive the closed loop with: ridge regression for each model, and now and then any of them."""

import numpy as np

from multimoe.outcomes import Features, Float, Int, Table


class EpsilonGreedy:
    """Picks the greatest estimate with probability 1 - `epsilon`, else any model with equal chance."""

    epsilon, ridge = 0.2, 5.0

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        self.features = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
        self.generator = np.random.default_rng(seed)
        d, m = self.features.shape[1], len(table.models)
        self.grams, self.sums = np.tile(self.ridge * np.eye(d), (m, 1, 1)), np.zeros((m, d))
        self.weights = np.zeros((d, m))
        self.promotions = 0

    def choose(self, rows: Int) -> tuple[Int, Float]:
        models = self.weights.shape[1]
        greedy = self.scores(rows).argmax(axis=1)
        chosen = np.where(
            self.generator.random(len(rows)) < self.epsilon, self.generator.integers(models, size=len(rows)), greedy
        )
        return chosen, self.epsilon / models + (1 - self.epsilon) * (chosen == greedy)

    def learn(self, rows: Int, chosen: Int, rewards: Float, propensities: Float) -> None:
        for model in range(self.weights.shape[1]):
            x = self.features[rows[chosen == model]]
            self.grams[model] += x.T @ x
            self.sums[model] += rewards[chosen == model] @ x
        self.weights = np.linalg.solve(self.grams, self.sums[..., None])[..., 0].T
        self.promotions += 1

    def scores(self, rows: Int) -> Float:
        return np.asarray(self.features[rows] @ self.weights)
