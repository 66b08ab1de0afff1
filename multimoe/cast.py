"""Who can play which part in one answer: from the gate's choice and the roster alone, whatever has happened since."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from multimoe.config import ExpertSpec
from multimoe.decision import Decision
from multimoe.messages import Modality


@dataclass(frozen=True)
class Cast:
    """`weights` are those of the chosen experts, not empty; `media` what the question has beside words."""

    weights: Mapping[str, float]
    roster: Mapping[str, ExpertSpec]
    decision: Decision | None
    media: frozenset[Modality]

    @property
    def leader(self) -> ExpertSpec:
        """The weightiest choice: its kind of output decides how the answer is made."""
        return self.roster[self.by_weight()[0]]

    def by_weight(self) -> list[str]:
        """The chosen experts, weightiest first."""
        return sorted(self.weights, key=lambda name: -self.weights[name])

    def perceivers(self) -> list[str]:
        return [name for name in self.weights if self.roster[name].output != "text"]

    def candidates(self) -> list[str]:
        """Chosen text experts, weightiest first."""
        return [name for name in self.by_weight() if self.roster[name].output == "text"]

    def team(self) -> list[str]:
        """The candidates that can write token by token with the weightiest of them."""
        able = self.candidates()
        tokenizer = self.roster[able[0]].tokenizer if able else ""
        return [name for name in able if tokenizer and self.roster[name].tokenizer == tokenizer]

    def writers(self) -> list[str]:
        """Text experts, best first, the chosen before the others."""
        return [spec.name for spec in self._ranked() if spec.output == "text"]

    def stand_ins(self, failed: Iterable[str]) -> list[str]:
        """Perception experts that may answer in place of these: of their kinds, then of others."""
        kinds = {self.roster[name].output for name in failed}
        perceivers = [spec for spec in self._ranked() if spec.output in kinds or spec.output != "text"]
        return [spec.name for spec in sorted(perceivers, key=lambda spec: spec.output not in kinds)]

    def evidence_for(self, writers: Sequence[str]) -> list[str]:
        """Who perceives what a writer cannot read: chosen experts, and for each medium the likeliest that can."""
        unread = frozenset(medium for name in writers for medium in self.media - self.roster[name].inputs)
        wanted = [name for name in self.perceivers() if self.roster[name].inputs & unread]
        likeliest = [c.expert for c in self.decision.considered if c.expert in self.roster] if self.decision else []
        for modality in sorted(unread):
            able = (n for n in likeliest if self.roster[n].output != "text" and modality in self.roster[n].inputs)
            wanted += [name for name in [next(able, None)] if name and name not in wanted]
        return wanted

    def quality(self, names: Sequence[str]) -> float:
        """The best that the gate predicts of these, in [0, 1]; 0 where it was not asked."""
        chosen = self.decision.chosen if self.decision else ()
        return max((choice.quality for choice in chosen if choice.expert in names), default=0.0)

    def _ranked(self) -> Iterable[ExpertSpec]:
        """Everyone the gate considered, best first; the chosen ones before the others."""
        others = [c.expert for c in self.decision.considered] if self.decision else []
        return (self.roster[name] for name in dict.fromkeys([*self.by_weight(), *others]) if name in self.roster)
