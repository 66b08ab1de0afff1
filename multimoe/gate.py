"""The gate: from a request's embedding to a decision. numpy only; it knows no Ray, no files and no training.

Expert i's quality for request x is the sigmoid of slope * score_i(x) + z(x) . (common + own_i). The score compares the
request with the expert's card; `common` and `own` are learned from ratings (`multimoe.quality`) and start at zero, so
an expert added a minute ago is judged by its card alone, and its doubt is the prior's.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimoe.cards import Cards, EmbedTexts
from multimoe.config import ExpertSpec, GateSpec
from multimoe.decision import Decision, Policy
from multimoe.embedding import Embedding
from multimoe.errors import CheckpointError, NoExpert, NotFound, Unavailable
from multimoe.messages import MODALITIES, Modality
from multimoe.posterior import sigmoid
from multimoe.quality import Learned, Single, believed
from multimoe.routing import Plan, Plans, ineligible, overflowing, plan, plans, utilities

Float = NDArray[np.float64]


class Gate:
    """Immutable. Make one with `from_cards`; `with_roster` and `with_learned` give changed copies."""

    def __init__(
        self, experts: Sequence[ExpertSpec], cards: Cards, spec: GateSpec, learned: Learned, version: int
    ) -> None:
        self.experts = tuple(experts)
        self.cards = cards
        self.spec = spec
        self.learned = learned
        self.version = version
        self._index = {expert.name: i for i, expert in enumerate(self.experts)}
        self._here = learned.rows([expert.name for expert in self.experts])
        self._costs = _of_dearest([expert.cost for expert in self.experts])
        self._latencies = _of_dearest([expert.latency_ms for expert in self.experts])
        self._groups = np.unique([expert.group for expert in self.experts], return_inverse=True)[1]

    @classmethod
    def from_cards(cls, experts: Sequence[ExpertSpec], embed_texts: EmbedTexts, spec: GateSpec) -> "Gate":
        """Version 0: nothing learned, every expert at what its card promises."""
        return cls(experts, Cards(experts, embed_texts), spec, Learned(), 0)

    def with_roster(self, experts: Sequence[ExpertSpec], embed_texts: EmbedTexts) -> "Gate":
        """The same gate over other experts; only sentences not seen before are embedded."""
        return Gate(experts, Cards(experts, embed_texts, self.cards), self.spec, self.learned, self.version)

    def with_learned(self, learned: Learned, version: int) -> "Gate":
        return Gate(self.experts, self.cards, self.spec, learned, version)

    def decide(
        self, embedding: Embedding, policy: Policy, seed: int, unavailable: Mapping[str, str] | None = None,
        load: Mapping[str, float] | None = None,
    ) -> Decision:  # fmt: skip
        """Choose experts for a request; `unavailable` maps experts that cannot answer now to why, in words.

        `load` maps experts to the share of their room that is in use: what would go to one at 1 or more goes to the
        next best, unless all are full; below that its queue costs time. `policy.seed` wins over `seed`.
        `policy.explore` True always draws, False never, None for the catalog's share of requests. Raises NoExpert,
        UnknownModel, Unavailable, and CheckpointError for vectors of other encoders.
        """
        refused = ineligible(self.experts, embedding.modalities, policy, unavailable or {})
        rows = [row for name, row in self._index.items() if name not in refused]
        if not rows:
            raise self._nobody(embedding, refused, unavailable or {})
        load = {self.experts[row].name: load.get(self.experts[row].name, 0.0) for row in rows} if load else {}
        full = overflowing(load) if load else {}
        if full:
            rows = [row for row in rows if self.experts[row].name not in full]
        z, cosines = self._vectors([embedding]), self.cards.cosines(embedding)
        quality = self._quality(z, cosines)[rows]
        chances = self._plan(rows, quality, z, policy, load)
        seed = seed if policy.seed is None else policy.seed
        order, explored = chances.draw(Random(seed))  # noqa: S311  # chance that can be repeated, not a secret
        considered = self._considered(rows, quality, chances)
        weights = chances.weights(order)
        return Decision.model_validate(  # all at once, which takes half as long as one after the other
            {
                "chosen": [{**considered[i], "weight": weight} for i, weight in zip(order, weights, strict=True)],
                "considered": sorted(considered, key=lambda c: (-c["probability"], -c["quality"])),
                "ineligible": {**refused, **full},
                "overflowed": tuple(full),
                "load": {name: share for name, share in load.items() if share},
                "propensity": chances.probability(order),
                "explored": explored,
                "strategy": policy.strategy or self.spec.strategy,
                "seed": seed,
                "gate_version": self.version,
                "encoder_revisions": embedding.revisions,
                "modalities": embedding.modalities,
                "policy": policy,
                "reasons": self._reasons(cosines, [(rows[i], considered[i]["quality"]) for i in order], full, explored),
                "timing_ms": {},  # a default would be copied deeply, which takes long
            }
        )

    def qualities(self, embedding: Embedding, experts: Sequence[str]) -> Float:
        """Predicted quality of each of `experts`, (experts,) in (0, 1). Raises NotFound for one not in the roster."""
        for name in experts:
            if name not in self._index:
                raise NotFound(f"the gate has no expert {name!r}; it has: {', '.join(self._index)}")
        z = self._vectors([embedding])
        return self._quality(z, self.cards.cosines(embedding))[[self._index[name] for name in experts]]

    def replan(
        self, embedding: Embedding, decision: Decision, policy: Policy | None = None
    ) -> tuple[tuple[str, ...], Plan]:
        """This gate's own plan for a logged request: over those logged eligible experts that it still has, named.

        Under the logged policy unless another is given. Raises NotFound when it has none of them.
        """
        logged = {c.expert for c in decision.considered}
        rows = [i for i, expert in enumerate(self.experts) if expert.name in logged]
        if not rows:
            raise NotFound("none of the experts of this logged decision is in the catalog any more")
        z = self._vectors([embedding])
        quality = self._quality(z, self.cards.cosines(embedding))[rows]
        chances = self._plan(rows, quality, z, policy or decision.policy, decision.load)
        return tuple(self.experts[i].name for i in rows), chances

    def table(self, embeddings: Sequence[Embedding]) -> Float:
        """Predicted quality of every expert for many requests, (n, experts)."""
        return self._qualities(embeddings, self._vectors(embeddings))

    def replans(
        self, embeddings: Sequence[Embedding], experts: Sequence[str], policy: Policy, load: Float | None = None
    ) -> tuple[Plans, Float]:
        """Its plans for many requests that the same `experts` may answer, and what it predicts of all, as `table` does.

        `load` (n, experts) is as in `decide`.
        """
        at, z = np.array([self._index[name] for name in experts]), self._vectors(embeddings)
        table = self._qualities(embeddings, z)
        quality = table[:, at]
        utility = utilities(quality, self._costs[at], self._latencies[at], self._preference(policy), load)
        spread = believed(self._here.doubt(z)[:, at], quality)
        return plans(utility + self._here.tilts(z, at), spread=spread, **self._settings(at, policy)), table

    def choice_probability(self, embedding: Embedding, decision: Decision) -> float:
        """With which probability this gate draws the logged ordered choice; 0 when it lost one of the experts."""
        if any(choice.expert not in self._index for choice in decision.chosen):
            return 0.0
        names, chances = self.replan(embedding, decision)
        return chances.probability([names.index(choice.expert) for choice in decision.chosen])

    def _vectors(self, embeddings: Sequence[Embedding]) -> Single:
        """z (n, q). Raises CheckpointError for features of other encoders than were learned from."""
        for embedding in embeddings:
            self._check_revisions(embedding)
        return self._here.vectors(embeddings)

    def _quality(self, z: Single, cosines: Mapping[Modality, Single]) -> Float:
        """(experts,) for the request whose vector is z (1, q), and its likeness to the cards."""
        quality: Float = sigmoid(self._here.logits(z, self.cards.scores(cosines)))[0]
        return quality

    def _qualities(self, embeddings: Sequence[Embedding], z: Single) -> Float:
        """(n, experts) for requests whose vectors are z (n, q)."""
        return sigmoid(self._here.logits(z, self.cards.table(embeddings)))

    def _plan(self, rows: Sequence[int], quality: Float, z: Single, policy: Policy, load: Mapping[str, float]) -> Plan:
        at = np.array(rows)
        waiting = np.array([load.get(self.experts[i].name, 0.0) for i in rows]) if load else None
        utility = utilities(quality, self._costs[at], self._latencies[at], self._preference(policy), waiting)
        spread = believed(self._here.doubt(z)[0, at], quality)
        return plan(utility + self._here.tilts(z[0], at), spread=spread, **self._settings(at, policy))

    def _preference(self, policy: Policy) -> float:
        return self.spec.preference if policy.preference is None else policy.preference

    def _settings(self, at: NDArray[np.intp], policy: Policy) -> dict[str, Any]:
        """What `plan` and `plans` take beside utilities and their spread."""
        spec = self.spec
        return {
            "strategy": policy.strategy or spec.strategy,
            "top_k": policy.top_k or spec.top_k,
            "temperature": policy.temperature or spec.temperature,
            "explore": spec.explore if policy.explore is None else float(policy.explore),
            "noise": spec.noise,
            "groups": self._groups[at],
            "bias": self._here.balance[at],
        }

    def _considered(self, rows: Sequence[int], quality: Float, chances: Plan) -> list[dict[str, Any]]:
        """What `Considered` says of the eligible experts, in the order of `rows`."""
        return [
            {"expert": self.experts[row].name, "probability": p, "quality": q}
            for row, p, q in zip(rows, chances.drawn_first(), quality.tolist(), strict=True)
        ]

    def _reasons(
        self, cosines: Mapping[Modality, Single], chosen: Sequence[tuple[int, float]], full: Mapping[str, str],
        explored: bool,
    ) -> tuple[str, ...]:  # fmt: skip
        """Why each of the `chosen`, rows and predicted qualities, and what else there is to say."""
        reasons = [self._reason(cosines, row, quality) for row, quality in chosen]
        reasons += [f"{name} {why}: its requests go to the next best" for name, why in full.items()]
        return (*reasons, "drawn by chance, so that the gate keeps learning") if explored else tuple(reasons)

    def _reason(self, cosines: Mapping[Modality, Single], row: int, quality: float) -> str:
        sentence, cosine = self.cards.closest(row, cosines)
        reads = " and ".join([m for m in MODALITIES if m in cosines and m in self.experts[row].inputs])
        rated = int(self._here.rated[row])
        return (
            f"{self.experts[row].name}: {reads} present; closest card example {sentence!r} (cosine {cosine:.2f}); "
            f"{f'rated {rated} times' if rated else 'not rated yet'}, predicted {quality:.2f}"
        )

    def _check_revisions(self, embedding: Embedding) -> None:
        for m, learned in self.learned.revisions.items():
            if embedding.revisions.get(m, learned) != learned:
                raise CheckpointError(
                    f"gate version {self.version} learned from {m} encoder {learned!r}, this request was embedded by "
                    f"{embedding.revisions[m]!r}; retrain, or serve version 0"
                )

    def _nobody(
        self, embedding: Embedding, refused: Mapping[str, str], unavailable: Mapping[str, str]
    ) -> NoExpert | Unavailable:
        present = " and ".join(embedding.modalities) or "nothing"
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        if not any(self.cards.reads[m].any() for m in embedding.modalities):
            read = " and ".join(m for m in MODALITIES if self.cards.reads[m].any())
            return NoExpert(f"no expert reads {present}; the catalog reads {read}: send that, or add an expert")
        if any(refused.get(name) == reason for name, reason in unavailable.items()):
            return Unavailable(f"no expert for {present} can answer now ({why}); try again later")
        return NoExpert(f"no expert may answer this request with {present} ({why}); loosen the request's limits")


def _of_dearest(values: Sequence[float]) -> Float:
    """Values in [0, 1] of the largest; all zero where that is zero."""
    return np.array(values, dtype=np.float64) / (max(values) or 1.0)
