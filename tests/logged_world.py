"""A synthetic world of logged choices whose every policy has a known value, for the estimators' tests and benchmark."""

from dataclasses import dataclass

import numpy as np

from multimoe.offpolicy import Log, Replay
from multimoe.routing import Plan, every_order, plan

TEMPERATURE = 0.3


def plans(utility: np.ndarray, explore: float, top_k: int = 2) -> list[Plan]:
    """A policy: one plan for each kind of request, from utilities (kinds, experts)."""
    return [plan(row, strategy="softmax", top_k=top_k, temperature=TEMPERATURE, explore=explore) for row in utility]


@dataclass(frozen=True)
class Played:
    """n logged rows: kinds of request and choices made, (n,) numbers, with their log."""

    kinds: np.ndarray
    choices: np.ndarray
    log: Log


class World:
    """Requests of some kinds; an ordered choice's mean reward depends on kind, choice and weights of the logger.

    `logger` explores a share `explore`; `champion` is the same gate and `candidate` another, `far` from it in utility,
    both exploring half of their requests. `guess` (kinds, orders) is a reward model, wrong by about `wrong`.
    """

    def __init__(
        self, seed: int = 0, kinds: int = 5, experts: int = 4, top_k: int = 2, explore: float = 0.6, far: float = 0.3,
        wrong: float = 0.15,
    ) -> None:  # fmt: skip
        generator = np.random.default_rng(seed)
        self.orders = [tuple(o) for length in range(1, top_k + 1) for o in every_order(experts, length).tolist()]
        self.quality = generator.uniform(0.1, 0.9, size=(kinds, experts))
        base = generator.uniform(0, 1, size=(kinds, experts))
        self.logger, self.champion = plans(base, explore, top_k), plans(base, 0.5, top_k)
        self.candidate = plans(base + far * generator.normal(size=base.shape), 0.5, top_k)
        self.reward = np.array([[self._reward(x, order) for order in self.orders] for x in range(kinds)])
        self.logging, self.champions, self.candidates = map(self.chances, (self.logger, self.champion, self.candidate))
        self.guess = np.clip(self.reward + generator.normal(0, wrong, size=self.reward.shape), 0, 1)

    def _reward(self, x: int, order: tuple[int, ...]) -> float:
        return float(self.logger[x].weights(order) @ self.quality[x, list(order)])

    def chances(self, policy: list[Plan]) -> np.ndarray:
        return np.array([[p.probability(order) for order in self.orders] for p in policy])  # (kinds, orders)

    def value(self, policy: list[Plan]) -> float:
        return float((self.chances(policy) * self.reward).sum(axis=1).mean())

    def play(self, n: int, generator: np.random.Generator) -> Played:
        x = generator.integers(len(self.quality), size=n)
        cumulative = self.logging.cumsum(axis=1)[x]
        a = (generator.random(n)[:, None] > cumulative).sum(axis=1).clip(max=len(self.orders) - 1)
        log = Log(
            rewards=(generator.random(n) < self.reward[x, a]).astype(float),
            propensities=self.logging[x, a],
            predicted=self.guess[x, a],
            options=self.logging[x],
        )
        return Played(x, a, log)

    def replay(self, chances: np.ndarray, played: Played, guess: np.ndarray | None = None) -> Replay:
        model = self.guess if guess is None else guess
        expected = (chances * model).sum(axis=1)  # (kinds,)
        return Replay(chances[played.kinds, played.choices], expected[played.kinds], chances[played.kinds])
