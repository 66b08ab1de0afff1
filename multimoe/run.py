"""One request under way: who was chosen, what has come of it, and who is to be asked next.

It only keeps the books; asking is `mixture`'s and `writing`'s.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from multimoe.blend import Evidence, Weighted, blend, caveat, hand_over, say, say_all, sureness
from multimoe.cast import Cast
from multimoe.config import BlendSpec, ExpertSpec
from multimoe.decision import Decision, Policy
from multimoe.errors import BadInput, ExpertFailed, ExpertTimeout, MultimoeError
from multimoe.expert import Delta, FinishReason
from multimoe.messages import ChatRequest, Modality
from multimoe.outputs import Output, Text, Transcript, Usage
from multimoe.reply import Part, PartRole, Reply
from multimoe.way import possible

SHARE = 2 / 3  # of the time left, for one expert while another could still answer


@dataclass
class Heard:
    """What has come from one expert so far, and the seconds to the `first` of it."""

    text: list[str] = field(default_factory=list)
    first: float = math.nan
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


@dataclass(frozen=True)
class Candidate:
    """A whole text that may become the answer, and its expert's weight."""

    expert: str
    weight: float
    text: str


class Run:
    """One request under way: who plays (`cast`), in which `way`, and what has come of it so far (`kept`, in order).

    `began` is when the question came, and the answer is waited for `seconds` from then. With `whole` nobody hears a
    word of it before all of it is there. Raises ExpertFailed where nobody who was chosen is left.
    """

    def __init__(
        self,
        request: ChatRequest,
        decision: Decision | None,
        roster: dict[str, ExpertSpec],
        spec: BlendSpec,
        clock: Callable[[], float],
        began: float,
        chosen: dict[str, float] | None = None,
        seconds: float = math.inf,
        whole: bool = False,
    ) -> None:
        gated = {c.expert: c.weight for c in decision.chosen if c.expert in roster} if decision else {}
        if not (chosen or gated):
            raise ExpertFailed("every chosen expert has just been removed; ask again")
        self.request = request
        self.decision = decision
        self.roster = roster
        self.spec = spec
        self.cast = Cast(chosen or gated, roster, decision, request.modalities - {"text"})
        self.way = possible(spec, self.cast)
        self.agreement: float | None = None
        self.kept: list[Part] = []
        self.words: list[str] = []
        self.finish: FinishReason = "stop"
        self.clock = clock
        self.began, self.started, self.first_word = began, clock(), float("nan")
        self.deadline, self.whole = began + seconds, whole
        self.begun: set[str] = set()  # who has said something
        self._finishes: dict[str, FinishReason] = {}
        self._failures: dict[str, MultimoeError] = {}
        self._passed_over: set[str] = set()

    @property
    def parts(self) -> dict[str, Part]:
        """What each expert did last."""
        return {part.expert: part for part in self.kept}

    def left(self) -> float:
        """Seconds to the deadline."""
        return max(self.deadline - self.clock(), 0.0)

    def share(self, others: bool) -> float:
        """Seconds that one expert may take to its first word: all that are left, or what leaves `others` time."""
        return self.left() * (SHARE if others else 1.0)

    def others(self) -> bool:
        """Whether somebody else may answer this question than whom it names."""
        return self.decision is not None and len(self.decision.considered) > 1

    def unasked(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self.parts]

    def passed_over(self, names: Sequence[str]) -> list[str]:
        """Those of them that nobody asked because they keep failing; where nobody else answers, they are asked."""
        return [name for name in names if name in self._passed_over]

    def came(self, name: str) -> bool:
        return name in self.parts and self.parts[name].status == "ok"

    def failure(self, name: str) -> MultimoeError:
        """Why it failed, or broke off."""
        return self._failures[name]

    def first_writers(self) -> list[str]:
        """Those who write from the start: all candidates, or the weightiest alone."""
        return self.cast.candidates()[: 1 if self.way.combine in ("weighted", "best") else None]

    def fuser(self, candidates: Sequence[Candidate]) -> ExpertSpec:
        """Who writes one text from all: the one the catalog names, unless the request will not have it, else whose own

        weighs most.
        """
        named = self.roster.get(self.spec.fuser)
        policy = self.decision.policy if self.decision else Policy()
        if named is None or named.output != "text" or named.name in policy.exclude:
            return self.roster[candidates[0].expert]
        return self.roster[candidates[0].expert] if policy.experts and named.name not in policy.experts else named

    def in_turn(self, names: Sequence[str]) -> list[list[str]]:
        """`names` in rows to be asked side by side; in a row, the next only while those before it are unsure.

        A row are classifiers of one group and the same input.
        """
        if self.spec.ask_next_below is None:
            return [[name] for name in names]
        rows: dict[object, list[str]] = {}
        for name in sorted(names, key=lambda name: -self.cast.weights.get(name, 0.0)):
            spec = self.roster[name]
            alike = (spec.group, spec.inputs) if spec.group and spec.output == "labels" else name
            rows.setdefault(alike, []).append(name)
        return list(rows.values())

    def sure(self, names: Sequence[str]) -> str:
        """Why nobody need be asked after these classifiers; "" where they are unsure."""
        came = self.outputs(names)
        found = sureness(blend(came)) if came else None
        below = self.spec.ask_next_below
        if below is None or found is None or found < below:
            return ""
        return f"{' and '.join(names)} came to {found:.2f}; the next is asked below {below:g}"

    def written_request(self, request: ChatRequest, writer: ExpertSpec) -> ChatRequest:
        """With evidence in words in place of media the writer cannot read; what it can read it gets itself."""
        return hand_over(request, self.evidence(), writer.inputs) if self.cast.media - writer.inputs else request

    def evidence(self) -> list[Evidence]:
        """What perception experts found in the media, by weight."""
        return [
            Evidence(modality, part.output, self.cast.weights.get(part.expert, 0.0))
            for part in self.kept
            if part.status == "ok" and part.output is not None and not isinstance(part.output, Text)
            for modality in [self._modality(part.expert)]
            if modality in self.cast.media
        ]

    def caveat(self) -> str:
        """How weak the evidence is that somebody wrote the answer from; "" where it is strong, or nobody did."""
        wrote = [self.roster[part.expert] for part in self.kept if part.role == "answer" and part.status == "ok"]
        writers = [spec for spec in wrote if spec.output == "text"]
        return caveat(self.request, self.evidence(), writers[-1].inputs) if writers else ""

    def spoken_question(self) -> str | None:
        """The words heard, where the request is a recording alone and the recording asks something."""
        if self.decision is None or self.request.modalities != {"audio"}:
            return None
        heard = [part for part in self.outputs() if isinstance(part.output, Transcript)]
        words = say(blend(heard)) if heard else ""
        return words if words.rstrip(' "”').endswith("?") else None

    def keep(self, name: str, role: PartRole, heard: Heard, seconds: float, error: MultimoeError | None = None) -> None:
        status: Literal["ok", "error", "timeout"] = "ok"
        if error is not None:
            status = "timeout" if isinstance(error, ExpertTimeout) else "error"
            self._failures.pop(name, None)  # the last to fail is the last of them
            self._failures[name] = error
        if name in self._passed_over:
            self._passed_over.discard(name)
            self.kept = [part for part in self.kept if part.expert != name]
        self._finishes.setdefault(name, heard.finish)  # who wrote a candidate may be asked again, to fuse
        if role == "answer":
            self.finish = heard.finish
        self.kept.append(
            Part(
                expert=name,
                role=role,
                weight=0.0,
                status=status,
                latency_ms=seconds * 1000,
                error=str(error) if error else None,
                output=heard.whole(),
                usage=heard.usage,
                cost=self.roster[name].cost if heard.usage.cost is None else heard.usage.cost,
            )
        )

    def spare(self, name: str, reason: str) -> None:
        """It was chosen, and need not be asked."""
        self.kept.append(Part(expert=name, role="skipped", weight=0.0, status="skipped", reason=reason))

    def pass_over(self, name: str, reason: str) -> None:
        """It keeps failing, or is not up, and is asked only where nobody else answers."""
        if name not in self.parts:
            self._passed_over.add(name)
            self.spare(name, reason)

    def texts(self) -> list[Candidate]:
        """The candidates that came through, weightiest first."""
        came = [(self.parts[name], self.cast.weights[name]) for name in self.cast.candidates() if name in self.parts]
        return [
            Candidate(p.expert, w, p.output.text) for p, w in came if p.status == "ok" and isinstance(p.output, Text)
        ]

    def give(self, candidate: Candidate) -> str:
        """Its words, which become the answer's."""
        self.recast("answer", candidate.expert)
        self.finish = self._finishes[candidate.expert]
        return candidate.text

    def recast(self, role: PartRole, *names: str) -> None:
        """What these did (everybody who was asked, where none is named) comes to play another role."""
        asked = names or [part.expert for part in self.kept if part.role != "skipped"]
        self.kept = [part.model_copy(update={"role": role}) if part.expert in asked else part for part in self.kept]

    def first_heard(self, at: float) -> None:
        """When the first word came, where it is given out later."""
        if math.isnan(self.first_word):
            self.first_word = at

    def speak(self, piece: str) -> str:
        if piece:
            self.first_heard(self.clock())
        self.words.append(piece)
        return piece

    def outputs(self, names: Sequence[str] = ()) -> list[Weighted]:
        """What came through (of `names`), by weight; all weights are equal where only stand-ins did."""
        came = [p for p in self.kept if p.status == "ok" and p.output is not None and (not names or p.expert in names)]
        weights = [self.cast.weights.get(part.expert, 0.0) for part in came]
        if not any(weights):
            weights = [1.0] * len(came)
        return [Weighted(w, part.output) for w, part in zip(weights, came, strict=True) if part.output is not None]

    def raise_if_silent(self) -> None:
        """The last failure, or BadInput where everybody refused the question: then asking again is of no use."""
        if not self.outputs():
            failures = list(self._failures.values())
            failed = [failure for failure in failures if not isinstance(failure, BadInput)] or failures
            raise failed[-1] if failed else ExpertFailed("no expert had anything to say; try again")

    def said(self) -> str:
        """The answer in words where no text expert writes it."""
        outputs = self.outputs()
        if self.way.combine == "best":
            return say(max(outputs, key=lambda part: part.weight).output)
        if self.way.combine == "all":
            named = [(part.expert, part.output) for part in self.kept if part.output is not None]
            return "\n\n".join(f"{name}: {say(output)}" for name, output in named)
        return say_all(outputs)

    def reply(self) -> Reply:
        parts = [*self._weighed(), *self._skipped()]
        now = self.clock()
        first = now if math.isnan(self.first_word) else self.first_word
        return Reply(
            text="".join(self.words),
            output=self._output(),
            parts=tuple(parts),
            decision=self.decision,
            combine=self.way.combine,
            combine_asked=self.spec.combine,
            combine_reason=self.way.why,
            agreement=self.agreement,
            usage=Usage(
                prompt_tokens=sum(p.usage.prompt_tokens for p in parts),
                completion_tokens=sum(p.usage.completion_tokens for p in parts),
            ),
            finish=self.finish,
            degraded=bool(self._passed_over) or any(p.status in ("error", "timeout") for p in parts),
            timing_ms={"answer": (now - self.started) * 1000, "first_token": (first - self.began) * 1000},
        )

    def _output(self) -> Output:
        if self.cast.leader.output == "text" and self.way.combine in ("tokens", "all"):
            return Text(text="".join(self.words))
        spoken = [p.output for p in self.kept if p.role == "answer" and isinstance(p.output, Text)]
        if spoken:
            return spoken[-1]
        came = self.outputs()
        found = [part for part in came if not isinstance(part.output, Text)] or came
        return blend(found) if found else Text(text="")

    def _weighed(self) -> list[Part]:
        """Parts with the gate's weights, renormalised over those that came through; an expert's first part has it."""
        came = {part.expert: self.cast.weights.get(part.expert, 0.0) for part in self.kept if part.status == "ok"}
        if came and not any(came.values()):
            came = dict.fromkeys(came, 1.0)
        total = sum(came.values()) or 1.0
        return [
            part.model_copy(update={"weight": came.pop(part.expert, 0.0) / total if part.status == "ok" else 0.0})
            for part in self.kept
        ]

    def _skipped(self) -> list[Part]:
        names = [name for name in self.cast.weights if name not in self.parts]
        return [Part(expert=name, role="skipped", weight=0.0, status="skipped") for name in names]

    def _modality(self, expert: str) -> Modality:
        return next(m for m in ("image", "audio", "text") if m in self.roster[expert].inputs)
