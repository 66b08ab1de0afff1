"""One request under way: who was chosen, what has come of it, and who is to be asked next.

It only keeps the books; asking is `mixture`'s.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from multimoe.blend import Weighted, blend, hand_over, say, say_all
from multimoe.config import ExpertSpec
from multimoe.decision import Decision
from multimoe.errors import ExpertFailed, ExpertTimeout, MultimoeError
from multimoe.expert import Delta, FinishReason
from multimoe.messages import ChatRequest, Modality
from multimoe.outputs import Output, Text, Transcript, Usage
from multimoe.reply import Combine, Part, PartRole, Reply


@dataclass
class Heard:
    """What has come from one expert so far."""

    text: list[str] = field(default_factory=list)
    output: Output | None = None
    usage: Usage = Usage()
    finish: FinishReason = "stop"

    def hear(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.output = delta.output or self.output
        self.usage = delta.usage or self.usage
        self.finish = delta.finish or self.finish

    def whole(self) -> Output | None:
        said = "".join(self.text)
        return self.output or (Text(text=said) if said else None)


class Run:
    """One request under way: who was chosen, and what has come of it so far."""

    def __init__(
        self,
        request: ChatRequest,
        decision: Decision | None,
        roster: dict[str, ExpertSpec],
        combine: Combine,
        clock: Callable[[], float],
        chosen: dict[str, float] | None = None,
    ) -> None:
        self.request = request
        self.decision = decision
        self.roster = roster
        self.combine = combine
        self.clock = clock
        self.started = clock()
        self.words: list[str] = []
        gated = {c.expert: c.weight for c in decision.chosen if c.expert in roster} if decision else {}
        self.chosen = chosen or gated
        self.parts: dict[str, Part] = {}
        self.finish: FinishReason = "stop"
        self.failures: list[MultimoeError] = []
        if not self.chosen:
            raise ExpertFailed("every chosen expert has just been removed; ask again")

    @property
    def leader(self) -> ExpertSpec:
        """The weightiest choice: its kind of output decides how the answer is made."""
        return self.roster[max(self.chosen, key=lambda name: self.chosen[name])]

    @property
    def media(self) -> frozenset[Modality]:
        return self.request.modalities - {"text"}

    def ranked(self) -> Iterable[ExpertSpec]:
        """Everyone the gate considered, best first; the chosen ones before the others."""
        others = [c.expert for c in self.decision.considered] if self.decision else []
        return (self.roster[name] for name in dict.fromkeys([*self.chosen, *others]) if name in self.roster)

    def perceivers(self) -> list[str]:
        return [name for name in self.chosen if self.roster[name].output != "text"]

    def evidence_wanted(self) -> list[str]:
        """Chosen experts that read the media; for each medium the leader cannot read, also the likeliest that can."""
        wanted = [name for name in self.perceivers() if self.roster[name].inputs & self.media]
        likeliest = [c.expert for c in self.decision.considered if c.expert in self.roster] if self.decision else []
        for modality in sorted(self.media - self.leader.inputs):
            able = (n for n in likeliest if self.roster[n].output != "text" and modality in self.roster[n].inputs)
            wanted += [name for name in [next(able, None)] if name and name not in wanted]
        return wanted

    def asides(self) -> list[str]:
        """Chosen experts that read the text only, beside a writer: run for the record, not for the words."""
        return [name for name in self.perceivers() if name not in self.parts]

    def writers(self) -> Iterable[str]:
        return (spec.name for spec in self.ranked() if spec.output == "text")

    def stand_ins(self, failed: Sequence[str]) -> Iterable[str]:
        kinds = {self.roster[name].output for name in failed}
        same = [spec.name for spec in self.ranked() if spec.output in kinds and spec.name not in self.parts]
        other = [spec.name for spec in self.ranked() if spec.output not in kinds | {"text"}]
        return (name for name in [*same, *other] if name not in self.parts)

    def written_request(self, request: ChatRequest, writer: ExpertSpec) -> ChatRequest:
        """With evidence in words in place of media the writer cannot read."""
        if not self.media - writer.inputs:
            return request
        seen = [(self._modality(part.expert), part.output) for part in self.parts.values() if part.output is not None]
        return hand_over(request, seen)

    def spoken_question(self) -> str | None:
        """The words heard, where the request is a recording alone and the recording asks something."""
        if self.decision is None or self.request.modalities != {"audio"}:
            return None
        heard = [p.output for p in self.parts.values() if isinstance(p.output, Transcript)]
        return next((t.text for t in heard if t.text.rstrip(' "”').endswith("?")), None)

    def hand_over(self) -> None:
        """What was to be the answer becomes evidence for a writer."""
        self.parts = {name: part.model_copy(update={"role": "evidence"}) for name, part in self.parts.items()}

    def speak(self, piece: str) -> str:
        self.words.append(piece)
        return piece

    def keep(self, name: str, role: PartRole, heard: Heard, seconds: float, error: MultimoeError | None = None) -> None:
        status: Literal["ok", "error", "timeout"] = "ok"
        if error is not None:
            status = "timeout" if isinstance(error, ExpertTimeout) else "error"
            self.failures.append(error)
        if role == "answer":
            self.finish = heard.finish
        self.parts[name] = Part(
            expert=name,
            role=role,
            weight=0.0,
            status=status,
            latency_ms=seconds * 1000,
            error=str(error) if error else None,
            output=heard.whole(),
            usage=heard.usage,
            cost=self.roster[name].cost,
        )

    def outputs(self) -> list[Weighted]:
        """What came through, by weight; all weights are equal where only stand-ins did."""
        came = [part for part in self.parts.values() if part.status == "ok" and part.output is not None]
        weights = [self.chosen.get(part.expert, 0.0) for part in came]
        if not any(weights):
            weights = [1.0] * len(came)
        return [Weighted(w, part.output) for w, part in zip(weights, came, strict=True) if part.output is not None]

    def raise_if_silent(self) -> None:
        if not self.outputs():
            raise self.failures[-1] if self.failures else ExpertFailed("no expert had anything to say; try again")

    def said(self) -> str:
        """The answer in words where no text expert writes it."""
        outputs = self.outputs()
        if self.combine == "best":
            return say(max(outputs, key=lambda part: part.weight).output)
        if self.combine == "all":
            named = [(part.expert, part.output) for part in self.parts.values() if part.output is not None]
            return "\n\n".join(f"{name}: {say(output)}" for name, output in named)
        return say_all(outputs)

    def reply(self) -> Reply:
        parts = [*self._weighed(), *self._skipped()]
        spoken = [p for p in parts if p.role == "answer" and p.output is not None]
        text = next((p.output for p in reversed(spoken) if isinstance(p.output, Text)), None)
        came = self.outputs()
        found = [part for part in came if not isinstance(part.output, Text)] or came
        return Reply(
            text="".join(self.words),
            output=text or (blend(found) if found else Text(text="")),
            parts=tuple(parts),
            decision=self.decision,
            combine=self.combine,
            usage=Usage(
                prompt_tokens=sum(p.usage.prompt_tokens for p in parts),
                completion_tokens=sum(p.usage.completion_tokens for p in parts),
            ),
            finish=self.finish,
            degraded=any(p.status in ("error", "timeout") for p in parts),
            timing_ms={"answer": (self.clock() - self.started) * 1000},
        )

    def _weighed(self) -> list[Part]:
        """Parts with the gate's weights, renormalised over those that came through."""
        came = {name: self.chosen.get(name, 0.0) for name, part in self.parts.items() if part.status == "ok"}
        if came and not any(came.values()):
            came = dict.fromkeys(came, 1.0)
        total = sum(came.values()) or 1.0
        return [p.model_copy(update={"weight": came.get(name, 0.0) / total}) for name, p in self.parts.items()]

    def _skipped(self) -> list[Part]:
        names = [name for name in self.chosen if name not in self.parts]
        return [Part(expert=name, role="skipped", weight=0.0, status="skipped") for name in names]

    def _modality(self, expert: str) -> Modality:
        return next(m for m in ("image", "audio", "text") if m in self.roster[expert].inputs)
