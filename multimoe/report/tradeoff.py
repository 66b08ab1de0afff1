"""What each preference would have bought on one's own log: its requests decided again, nothing asked again.

Requests that said a preference of their own keep it, as they would while serving.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from multimoe import offpolicy
from multimoe.errors import TooLittleData
from multimoe.examples import Example
from multimoe.gate import Gate
from multimoe.judge import SMALLEST_SAMPLE, logged, replayed
from multimoe.offpolicy import Estimate
from multimoe.outputs import Frozen
from multimoe.replay import replay, slowest
from multimoe.report.history import History, Request

MOST_REPLAYED = 5000  # requests, spread evenly over the log
GRID = tuple(step / 10 for step in range(11))
HALVINGS = 7  # of a step of the grid: a target is met to a thousandth of the scale


class Setting(Frozen):
    """What the serving gate does at one preference, as means a request, exploration included.

    `cost` in US$ is what all experts asked charge, `latency_ms` the slowest one's time, `quality` in [0, 1] what the
    gate predicts of its blend, `shares` the part of requests that each expert is asked in. `value` (SNIPS) is what
    ratings that the gate was not fitted on say of it, `doubly_robust` the same beside the gate's own predictions; both
    None where those ratings are too few.
    """

    preference: float
    cost: float
    latency_ms: float
    quality: float
    shares: dict[str, float]
    value: Estimate | None = None
    doubly_robust: Estimate | None = None


class Target(Frozen):
    """At most `limit` of this figure of a setting; `expert` is whose share is meant."""

    figure: Literal["cost", "latency_ms", "share"]
    limit: float
    expert: str = ""

    def met_by(self, setting: Setting) -> bool:
        return self.of(setting) <= self.limit

    def of(self, setting: Setting) -> float:
        if self.figure == "share":
            return setting.shares[self.expert]
        return setting.cost if self.figure == "cost" else setting.latency_ms


class Tradeoff:
    """A log to be decided again at any preference.

    Raises TooLittleData where it holds no request that the serving gate could decide again.
    """

    def __init__(self, history: History) -> None:
        self.gate, self.later, self.latencies = history.gate, history.later, history.latencies
        self.requests = _spread(history.requests)
        if not self.requests:
            raise TooLittleData(
                "the log holds no request that this gate could decide again; ask some questions first: on the page, by "
                "the API, or with `multimoe ask`"
            )
        self.rows = [as_example(request) for request in self.requests]
        self._log = logged(self.later, self.gate)

    def at(self, preference: float) -> Setting:
        gate = at_preference(self.gate, preference)
        found = replay(self.rows, gate)
        asked = found.called.mean(axis=0)  # (experts,)
        value, doubly_robust = self._values(gate)
        return Setting(
            preference=preference,
            cost=float(asked @ [spec.cost for spec in gate.experts]),
            latency_ms=float(slowest(self.rows, gate, self.latencies).mean()),
            quality=float(found.expected(found.quality).mean()),
            shares={spec.name: float(share) for spec, share in zip(gate.experts, asked, strict=True)},
            value=value,
            doubly_robust=doubly_robust,
        )

    def sweep(self, preferences: Sequence[float] = GRID) -> tuple[Setting, ...]:
        return tuple(self.at(preference) for preference in preferences)

    def meet(self, target: Target, settings: Sequence[Setting]) -> Setting | None:
        """The best predicted quality within the target; None where none of `settings` (rising) is within it.

        Between the best of them and the next above, where the target is crossed, the search goes on by halving.
        """
        within = [setting for setting in settings if target.met_by(setting)]
        if not within:
            return None
        best = max(within, key=_goodness)
        above = next((s for s in settings if s.preference > best.preference and not target.met_by(s)), None)
        return max(best, self._crossing(target, best, above), key=_goodness) if above else best

    def _crossing(self, target: Target, low: Setting, high: Setting) -> Setting:
        """The last within the target between `low`, which is, and `high`, which is not."""
        for _ in range(HALVINGS):
            middle = self.at(round((low.preference + high.preference) / 2, 4))
            low, high = (middle, high) if target.met_by(middle) else (low, middle)
        return low

    def _values(self, gate: Gate) -> tuple[Estimate | None, Estimate | None]:
        if not self.later:
            return None, None
        found = replayed(self.later, gate, self.gate)
        if offpolicy.effective_size(self._log, found) < SMALLEST_SAMPLE:
            return None, None
        return offpolicy.snips(self._log, found), offpolicy.doubly_robust(self._log, found)


def dearest(gate: Gate) -> str:
    """The expert that costs most; of several the slowest."""
    return max(gate.experts, key=lambda spec: (spec.cost, spec.latency_ms)).name


def at_preference(gate: Gate, preference: float) -> Gate:
    """The same gate with another preference for requests that say none."""
    spec = gate.spec.model_copy(update={"preference": preference})
    return Gate(gate.experts, gate.cards, spec, gate.learned, gate.version)


def as_example(request: Request) -> Example:
    """To be replayed; nothing was said of it."""
    one = request.interaction
    return Example(
        one.id, one.created, request.embedding, request.decision, labels=(), wins=(), reward=None, rater=None, ratings=0
    )


def _spread(requests: Sequence[Request]) -> Sequence[Request]:
    at = np.linspace(0, len(requests) - 1, min(len(requests), MOST_REPLAYED)).round().astype(int)
    return [requests[i] for i in at]


def _goodness(setting: Setting) -> tuple[float, float]:
    return setting.quality, setting.preference
