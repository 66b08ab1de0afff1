"""Routers that are told what every model made of every prompt. A gate sees only its own choices, and has to come near.

Each is made as `Class(table, features, seed)`, learns by `fit(rows, outcomes)` from the outcomes (n, models) of some
rows of the table, NaN where a model was not run, and gives `scores(rows)` (b, models): the greater, the better. They
are the usual ones of the field (RouterBench, arXiv 2403.12031; LLMRouterBench, arXiv 2601.07206), by scikit-learn.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # it ships no types
from sklearn.neural_network import MLPClassifier  # type: ignore[import-untyped]

from multimoe.outcomes import Features, Float, Int, Table

NEIGHBOURS = 50
PENALTIES = (0.1, 1.0, 10.0)  # inverse strengths of the logistic regression's L2 penalty that are tried
MODELS_TRIED = 6  # on how many models they are tried
HIDDEN = 128  # units of the MLP's one layer
PATIENCE = 10  # passes over the training part without a gain before the MLP stops
SHRINKAGE = 10.0  # a mean of few counts as if it had seen so many more, all average
PROMPTS_AT_ONCE = 512


class Router(Protocol):
    def fit(self, rows: Int, outcomes: Float) -> None: ...

    def scores(self, rows: Int) -> Float: ...


class Uniform:
    """Any model, with equal chance: a tie between all."""

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        self._models = len(table.models)

    def fit(self, rows: Int, outcomes: Float) -> None: ...

    def scores(self, rows: Int) -> Float:
        return np.zeros((len(rows), self._models))


class BestSingle:
    """Always the model that was best on average."""

    means: Float

    def __init__(self, table: Table, features: Features, seed: int) -> None: ...

    def fit(self, rows: Int, outcomes: Float) -> None:
        self.means = averages(outcomes)

    def scores(self, rows: Int) -> Float:
        return np.tile(self.means, (len(rows), 1))


class Oracle:
    """Looks up what came of it: what no router can surpass."""

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        self._outcomes = table.outcomes

    def fit(self, rows: Int, outcomes: Float) -> None: ...

    def scores(self, rows: Int) -> Float:
        return np.nan_to_num(self._outcomes[rows])


class TaskMeans:
    """Each model's mean on the prompt's task, drawn towards its mean on all. It does not read the prompt."""

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        if table.task_numbers is None:
            raise ValueError("this table names no tasks")
        self._tasks = table.task_numbers

    def fit(self, rows: Int, outcomes: Float) -> None:
        overall = averages(outcomes)
        tasks = self._tasks.max() + 1
        told = np.zeros((tasks, outcomes.shape[1]))
        counts = np.zeros_like(told)
        np.add.at(told, self._tasks[rows], np.nan_to_num(outcomes))
        np.add.at(counts, self._tasks[rows], ~np.isnan(outcomes))
        self._means = (told + SHRINKAGE * overall) / (counts + SHRINKAGE)  # (tasks, models)

    def scores(self, rows: Int) -> Float:
        means: Float = self._means[self._tasks[rows]]
        return means


class Knn:
    """Each model's mean on the nearest prompts, by cosine."""

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        self._features = features

    def fit(self, rows: Int, outcomes: Float) -> None:
        self._known = self._features[rows]
        self._outcomes, self._run = np.nan_to_num(outcomes), (~np.isnan(outcomes)).astype(np.float64)
        self._overall = averages(outcomes)

    def scores(self, rows: Int) -> Float:
        batches = [rows[i : i + PROMPTS_AT_ONCE] for i in range(0, len(rows), PROMPTS_AT_ONCE)]
        return np.concatenate([self._batch(batch) for batch in batches])

    def _batch(self, rows: Int) -> Float:
        count = min(NEIGHBOURS, len(self._known))
        similarity = self._features[rows] @ self._known.T  # (b, known)
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        told, counts = self._outcomes[nearest].sum(axis=1), self._run[nearest].sum(axis=1)  # (b, models)
        return np.where(counts > 0, told / np.maximum(counts, 1), self._overall)


class Logistic:
    """A logistic regression for each model; one strength of penalty for all, chosen on a fifth of the training part."""

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        self._features, self._seed = features, seed

    def fit(self, rows: Int, outcomes: Float) -> None:
        penalty = self._chosen(rows, outcomes)
        self._models = probabilities(self._features[rows], outcomes, penalty)

    def scores(self, rows: Int) -> Float:
        return np.stack([model(self._features[rows]) for model in self._models], axis=1)

    def _chosen(self, rows: Int, outcomes: Float) -> float:
        generator = np.random.default_rng(self._seed)
        inner = generator.permutation(len(rows)) >= max(1, len(rows) // 5)
        tried = generator.permutation(outcomes.shape[1])[:MODELS_TRIED]
        return min(PENALTIES, key=lambda penalty: self._loss(rows, outcomes[:, tried], inner, penalty))

    def _loss(self, rows: Int, outcomes: Float, inner: NDArray[np.bool_], penalty: float) -> float:
        """Cross-entropy on the rows that are not `inner`, of regressions fitted to those that are."""
        learned = probabilities(self._features[rows[inner]], outcomes[inner], penalty)
        guess = np.stack([model(self._features[rows[~inner]]) for model in learned], axis=1)
        return cross_entropy(outcomes[~inner], guess)


class Length:
    """A logistic regression on the prompt's length alone, for each model: log characters and their square."""

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        size = np.log1p([len(prompt) for prompt in table.prompts])
        size = (size - size.mean()) / max(float(size.std()), 1e-9)
        self._features = np.stack([size, size**2], axis=1).astype(np.float32)  # (n, 2)

    def fit(self, rows: Int, outcomes: Float) -> None:
        self._models = probabilities(self._features[rows], outcomes, penalty=1.0)

    def scores(self, rows: Int) -> Float:
        return np.stack([model(self._features[rows]) for model in self._models], axis=1)


class Probability:
    """One model's outcome (n,) in [0, 1] by logistic regression on (n, d); NaN is left out.

    A fraction counts as so much of a right and so much of a wrong answer, which is its exact cross-entropy. `usual` is
    the guess where all were right, or all wrong, or none is known.
    """

    def __init__(self, features: Features, outcomes: Float, penalty: float, usual: float) -> None:
        known = ~np.isnan(outcomes)
        features, outcomes = features[known], outcomes[known]
        right, wrong = outcomes > 0, outcomes < 1
        self._usual, self._fitted = usual, None
        if right.any() and wrong.any():
            self._fitted = LogisticRegression(C=penalty, max_iter=500).fit(
                np.concatenate([features[right], features[wrong]]),
                np.repeat([1, 0], [right.sum(), wrong.sum()]),
                np.concatenate([outcomes[right], 1 - outcomes[wrong]]),
            )

    def __call__(self, features: Features) -> Float:
        if self._fitted is None:
            return np.full(len(features), self._usual)
        return np.asarray(self._fitted.predict_proba(features)[:, 1], np.float64)


def probabilities(features: Features, outcomes: Float, penalty: float) -> list[Probability]:
    """One for each column of outcomes (n, models)."""
    usual = averages(outcomes).tolist()
    return [Probability(features, one, penalty, mean) for one, mean in zip(outcomes.T, usual, strict=True)]


class Mlp:
    """One hidden layer and an output for each model, by cross-entropy, stopped early on a tenth held out from training.

    scikit-learn's learns from labels alone. So each pass draws them: a fraction is right with its own chance, and where
    a model was not run, with the network's own guess of it, which on average teaches nothing.
    """

    def __init__(self, table: Table, features: Features, seed: int) -> None:
        self._features, self._seed = features, seed

    def fit(self, rows: Int, outcomes: Float) -> None:
        generator = np.random.default_rng(self._seed)
        inner, features = generator.permutation(len(rows)) >= max(1, len(rows) // 10), self._features[rows]
        self._net = MLPClassifier(hidden_layer_sizes=(HIDDEN,), alpha=0.1, random_state=self._seed)
        guess = np.tile(averages(outcomes), (len(rows), 1))
        least, kept, since = np.inf, None, 0
        while since < PATIENCE:
            labels = generator.random(outcomes.shape) < np.where(np.isnan(outcomes), guess, outcomes)
            self._net.partial_fit(features[inner], labels[inner].astype(int), classes=np.arange(outcomes.shape[1]))
            guess = self.scores(rows)
            loss, since = cross_entropy(outcomes[~inner], guess[~inner]), since + 1
            if loss < least - 1e-4:
                least, kept, since = loss, deepcopy((self._net.coefs_, self._net.intercepts_)), 0
        if kept is not None:
            self._net.coefs_, self._net.intercepts_ = kept

    def scores(self, rows: Int) -> Float:
        return np.asarray(self._net.predict_proba(self._features[rows]), np.float64)


def cross_entropy(outcomes: Float, guess: Float) -> float:
    """Mean over the outcomes there are."""
    guess = np.clip(guess, 1e-6, 1 - 1e-6)
    return float(-np.nanmean(outcomes * np.log(guess) + (1 - outcomes) * np.log(1 - guess)))


def averages(outcomes: Float) -> Float:
    """Each model's mean (models,); one that was hardly run is drawn towards the mean of all."""
    counts = (~np.isnan(outcomes)).sum(axis=0)
    told = np.nansum(outcomes, axis=0)
    return np.asarray((told + SHRINKAGE * told.sum() / max(counts.sum(), 1)) / (counts + SHRINKAGE), np.float64)


Factory = Callable[[Table, Features, int], Router]

ROUTERS: Mapping[str, Factory] = {
    "best_single": BestSingle,
    "random": Uniform,
    "oracle": Oracle,
    "knn": Knn,
    "logistic": Logistic,
    "mlp": Mlp,
    "task_means": TaskMeans,
    "length": Length,
}
