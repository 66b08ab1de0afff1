"""What was found out about a new gate version: the figures, every check it had to pass, and the verdict in words."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from multimoe.offpolicy import Estimate
from multimoe.outputs import Frozen

Outcome = Literal["better", "not proven", "refused", "held"]  # held: a person is to decide
CheckName = Literal["gain", "newest", "starvation", "calibration", "golden", "load", "cost", "raters"]


class Check(Frozen):
    """One thing a candidate must show before it may serve; `reason` is what was found, passed or not."""

    name: CheckName
    passed: bool
    reason: str
    figures: dict[str, float] = {}


@dataclass(frozen=True)
class Verdict:
    """`reason` says in words why the candidate is better, or why that is not proven, or what speaks against it."""

    outcome: Outcome
    reason: str
    judged: int = 0
    metrics: dict[str, Estimate] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()

    @property
    def better(self) -> bool:
        return self.outcome == "better"

    def weighed(self, checks: Sequence[Check]) -> "Verdict":
        """The same after more checks: one that fails refuses what was better, and is told of what was not."""
        against = "; ".join(check.reason for check in checks if not check.passed)
        told = replace(self, checks=(*self.checks, *checks))
        if not against:
            return told
        if not self.better:
            return replace(told, reason=f"{self.reason}; besides, it {against}")
        return replace(told, outcome="refused", reason=f"refused, for it {against}; on average {self.reason}")

    def held(self, check: Check) -> "Verdict":
        """The same with what a person should look at before it serves."""
        reason = f"held for a person to decide: {check.reason}; {self.reason}"
        return replace(self, outcome="held", reason=reason, checks=(*self.checks, check))
