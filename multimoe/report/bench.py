"""Policies held against each other on later rated answers: gates, one expert alone, chance, and an upper bound.

The reward model beside the doubly robust estimates is fitted on earlier answers only, so it has seen no later one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimoe import offpolicy
from multimoe.errors import TooLittleData
from multimoe.examples import Example
from multimoe.gate import Gate
from multimoe.judge import SMALLEST_SAMPLE, logged, replayed
from multimoe.messages import Modality
from multimoe.offpolicy import Estimate, Replay
from multimoe.outputs import Frozen
from multimoe.replay import replay
from multimoe.report.history import History
from multimoe.training import fit

Float = NDArray[np.float64]
Kind = tuple[Modality, ...]  # which modalities a request has

FEWEST = 20  # later rated answers


class Value(Frozen):
    """What a policy is worth by one estimator; None where it would do too little of what was logged."""

    policy: str
    estimator: str
    estimate: Estimate | None


class Bench:
    """`rows` are answers that none of the gates to be judged by them was fitted on.

    Raises TooLittleData for fewer than `FEWEST` of them.
    """

    def __init__(self, history: History, rows: Sequence[Example]) -> None:
        if len(rows) < FEWEST:
            raise TooLittleData(
                f"{len(rows)} rated answers were drawn by chance after what the gate learned from, {FEWEST} are "
                "needed; rate more answers, or explore more (gate.explore)"
            )
        self.history, self.rows = history, rows
        self.decisions = [row.decision for row in rows if row.decision]
        self.model = reward_model(history.past, history.gate)
        self.log = logged(rows, self.model)
        seen = replay(rows, self.model)
        self.guess = np.where(seen.eligible, seen.quality, np.nan)  # (n, experts), of those who could have answered

    @cached_property
    def singles(self) -> Mapping[Kind, int]:
        """The best expert alone for each kind of input: of which most was expected before any of these rows."""
        kinds = [decision.modalities for decision in self.decisions]
        of_kind = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)}
        return {kind: int(np.nan_to_num(self.guess[at]).sum(axis=0).argmax()) for kind, at in of_kind.items()}

    @property
    def single_name(self) -> str:
        names = {"+".join(kind): self.history.experts[i] for kind, i in self.singles.items()}
        alike = len(set(names.values())) == 1
        return next(iter(names.values())) if alike else ", ".join(f"{name} for {kind}" for kind, name in names.items())

    def values(self, policy: str, replay: Replay) -> tuple[Value, Value]:
        """By SNIPS and by the doubly robust estimate."""
        return tuple(  # type: ignore[return-value]  # two of them
            Value(policy=policy, estimator=name, estimate=self._estimate(estimator, replay))
            for name, estimator in (("SNIPS", offpolicy.snips), ("doubly robust", offpolicy.doubly_robust))
        )

    def of_gate(self, gate: Gate) -> Replay:
        return replayed(self.rows, gate, self.model)

    def of_log(self) -> Replay:
        """What was done: the mean rating itself."""
        return Replay(self.log.propensities, self.log.predicted)

    def of_best_single(self) -> Replay:
        chosen = np.array([self.singles[decision.modalities] for decision in self.decisions])
        could = np.isfinite(self.guess)
        return self._alone((np.arange(self.guess.shape[1]) == chosen[:, None]) & could)

    def of_uniform(self) -> Replay:
        """One expert, all who could answer equally likely."""
        could = np.isfinite(self.guess)
        return self._alone(could / could.sum(axis=1, keepdims=True))

    def oracle(self) -> Estimate:
        """No router that sees what the reward model sees is worth more, if that model is right."""
        return offpolicy.direct_method(self.log, Replay(self.log.propensities, np.nanmax(self.guess, axis=1)))

    def _alone(self, chances: NDArray[Any]) -> Replay:
        """A policy that asks one expert, each with its chance (n, experts)."""
        column = {name: i for i, name in enumerate(self.history.experts)}
        alone = [column.get(d.chosen[0].expert, -1) if len(d.chosen) == 1 else -1 for d in self.decisions]
        drawn = np.array([chances[i, at] if at >= 0 else 0.0 for i, at in enumerate(alone)])
        return Replay(drawn, (chances * np.nan_to_num(self.guess)).sum(axis=1))

    def _estimate(self, estimator: Callable[[offpolicy.Log, Replay], Estimate], replay: Replay) -> Estimate | None:
        if offpolicy.effective_size(self.log, replay) < SMALLEST_SAMPLE:
            return None
        return estimator(self.log, replay)


@lru_cache(maxsize=1)
def bench(history: History) -> Bench:
    """By what the serving gate can be judged; made once for all plots of one history. Raises TooLittleData."""
    return Bench(history, history.later)


def reward_model(past: Sequence[Example], gate: Gate) -> Gate:
    """A gate fitted on these answers alone; the given one where they are too few."""
    try:
        return gate.with_learned(fit(past, gate), gate.version)
    except TooLittleData:
        return gate
