"""The gate on a table of outcomes: the same model, the same draws and the same proof, without cards, experts or HTTP.

It starts knowing nothing, draws by Thompson sampling beside a floor of exploration, and sees only what its own choices
were worth. Each block of the stream judges what was learned before it (progressive validation, `multimoe.judge`), and a
version that was proven better than chance is replaced only by one that is proven better still; before that there is
nothing to protect, and the newest version serves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multimoe.judge import FEWEST_JUDGED, proven
from multimoe.messages import Modality
from multimoe.offpolicy import Log, Replay
from multimoe.posterior import fit, labels, sigmoid
from multimoe.quality import Axes, Learned, believed, text_vectors
from multimoe.strategies.batch import Plans, plans
from multimoe.training import principal, prior, taught

Float = NDArray[np.float64]
Single = NDArray[np.float32]
Int = NDArray[np.intp]

EXPLORE = 0.1
TEMPERATURE = 0.12
DRAWS = 64


@dataclass(frozen=True, eq=False)
class Version:
    """A gate version over `models`, which it knows nothing of as long as nothing is learned."""

    models: tuple[str, ...]
    learned: Learned

    def quality(self, features: Single) -> tuple[Float, Float]:
        """What it predicts of every model, and the standard deviation of its doubt, both (n, models)."""
        z = text_vectors(features, self.learned.axes)
        quality = sigmoid(self.learned.logits(z, np.zeros((len(z), len(self.models)))))
        return quality, believed(self.learned.doubt(z), quality)


@dataclass(frozen=True, eq=False)
class Evidence:
    """One block of the stream: the log with the candidate's guesses, what it would have drawn, and the champion."""

    log: Log
    candidate: Replay
    champion: Replay


class GateLearner:
    """A `multimoe.evaluation.Learner`. Rows are numbers of rows of `features` (n, d)."""

    def __init__(
        self, features: Single, models: list[str], seed: int, promotion: Literal["proven", "always"] = "proven"
    ) -> None:
        self.features = features
        self.generator = np.random.default_rng([seed, 1])
        self.promotion = promotion
        self.promotions = 0
        self.untaught = self.serving = Version(tuple(models), Learned().rows(models))
        self.champion: Version | None = None
        self.candidate: Version | None = None
        self.evidence: list[Evidence] = []  # since the champion was made
        self.axes: dict[Modality, Axes] = {}
        self.seen = 1  # prompts that the axes were made from; made again whenever there are twice as many
        self.rows: Int = np.zeros(0, np.intp)
        self.chosen: Int = np.zeros(0, np.intp)
        self.rewards: Float = np.zeros(0)

    def choose(self, rows: Int) -> tuple[Int, Float]:
        """Models (b,) and the exact probability (b,) each was drawn with."""
        drawn = _plans(*self.serving.quality(self.features[rows]))
        order, _ = drawn.draw(self.generator)
        return order[:, 0], drawn.probability(order)

    def learn(self, rows: Int, chosen: Int, rewards: Float, propensities: Float) -> None:
        """Judge what was learned before on what came now, serve it where it is proven better, learn anew."""
        if self.candidate and len(rows) and self.promotion == "proven":
            self.evidence.append(self._evidence(self.candidate, rows, chosen, rewards, propensities))
            if self._proven():
                self.champion = self.candidate
                self.evidence = []
                self._serve(self.champion)
        self.rows = np.concatenate([self.rows, rows])
        self.chosen = np.concatenate([self.chosen, chosen])
        self.rewards = np.concatenate([self.rewards, rewards])
        if len(self.rows) > 1:
            self.candidate = self._fitted()
            if self.champion is None:
                self._serve(self.candidate)

    def scores(self, rows: Int) -> Float:
        """Predicted quality (b, models)."""
        return self.serving.quality(self.features[rows])[0]

    def _serve(self, version: Version) -> None:
        self.serving = version
        self.promotions += 1

    def _fitted(self) -> Version:
        """On everything that is known."""
        models, count = self.serving.models, len(self.rows)
        if count >= 2 * self.seen:
            self.axes, self.seen = {"text": principal(self.features[self.rows])}, count
        z = text_vectors(self.features[self.rows], self.axes)
        said = labels(z, np.arange(count), self.chosen, self.rewards, len(models))
        rated = np.bincount(self.chosen, minlength=len(models)).astype(np.int64)
        return Version(models, taught(fit(said, prior(self.axes)), models, self.axes, rated, {}))

    def _evidence(self, candidate: Version, rows: Int, chosen: Int, rewards: Float, propensities: Float) -> Evidence:
        features = self.features[rows]
        predicted = candidate.quality(features)[0]
        new, old = (_replay(v, features, chosen, predicted) for v in (candidate, self.champion or self.untaught))
        return Evidence(Log(rewards, propensities, predicted[np.arange(len(rows)), chosen]), new, old)

    def _proven(self) -> bool:
        logs = [block.log for block in self.evidence]
        predicted = [log.predicted for log in logs if log.predicted is not None]
        log = Log(
            np.concatenate([log.rewards for log in logs]),
            np.concatenate([log.propensities for log in logs]),
            np.concatenate(predicted),
        )
        new, old = (_joined([getattr(e, who) for e in self.evidence]) for who in ("candidate", "champion"))
        return len(log) >= FEWEST_JUDGED and proven(log, new, old).better


def _joined(parts: Sequence[Replay]) -> Replay:
    expected = [part.expected for part in parts if part.expected is not None]
    return Replay(np.concatenate([part.chances for part in parts]), np.concatenate(expected))


def _plans(quality: Float, doubt: Float) -> Plans:
    """How the gate draws one model for each prompt, by its predictions and their doubt, both (n, models)."""
    return plans(quality, strategy="thompson", top_k=1, temperature=TEMPERATURE, explore=EXPLORE, spread=doubt)


def _replay(version: Version, features: Single, chosen: Int, predicted: Float) -> Replay:
    """What `version` would have drawn, as it serves. What it expects is a mean over draws that all versions share."""
    quality, doubt = version.quality(features)
    drawn, at = _plans(quality, doubt), np.arange(len(chosen))
    draws = np.random.default_rng(0).normal(size=(DRAWS, quality.shape[1]))
    expected = np.mean([predicted[at, (quality + doubt * noise).argmax(axis=1)] for noise in draws], axis=0)
    explored = (drawn.exploration.shares * predicted).sum(axis=1)
    return Replay(chances=drawn.probability(chosen[:, None]), expected=(1 - EXPLORE) * expected + EXPLORE * explored)
