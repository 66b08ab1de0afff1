"""The gate: from a request's embedding to a decision. numpy only; it knows no Ray, no files and no training.

Expert i's quality for request x is sigmoid(intercept + bias_i + slope * score_i(x) + residual_i . features(x)). The
score compares the request with the expert's card; bias and residual are learned from ratings and start at zero, so an
expert added a minute ago is judged by its card alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from multimoe.cards import Cards, EmbedTexts
from multimoe.config import ExpertSpec, GateSpec
from multimoe.decision import Choice, Considered, Decision, Policy
from multimoe.embedding import Embedding
from multimoe.errors import CheckpointError, NoExpert, NotFound, Unavailable
from multimoe.messages import MODALITIES, Modality
from multimoe.routing import Plan, ineligible, plan, utilities

Float = NDArray[np.float64]

SLOPE = 0.6  # of the standardised card score: the best card of a handful starts near 0.7, a wrong one near 0.35


@dataclass(frozen=True, eq=False)
class Learned:
    """What ratings taught, for n experts by name. As it is by default, a gate knows cards alone.

    `residuals[m]` (n, d_m) weigh the request's features, `presence` (n, 3) the modalities it has (in the order of
    `MODALITIES`). `rated` (n,) counts the ratings behind each row. `revisions` name the encoders whose features these
    are.
    """

    experts: tuple[str, ...] = ()
    bias: Float = field(default_factory=lambda: np.zeros(0))
    presence: Float = field(default_factory=lambda: np.zeros((0, len(MODALITIES))))
    residuals: Mapping[Modality, Float] = field(default_factory=dict)
    rated: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    intercept: float = 0.0
    slope: float = SLOPE
    revisions: Mapping[Modality, str] = field(default_factory=dict)

    def rows(self, experts: Sequence[str]) -> "Learned":
        """The same for other experts, in their order; an expert never rated gets zeros."""
        at = {name: i for i, name in enumerate(self.experts)}
        here = [i for i, name in enumerate(experts) if name in at]
        there = [at[name] for name in experts if name in at]

        def moved(table: Float) -> Float:
            rows = np.zeros((len(experts), *table.shape[1:]))
            rows[here] = table[there]
            return rows

        return replace(
            self,
            experts=tuple(experts),
            bias=moved(self.bias),
            presence=moved(self.presence),
            residuals={m: moved(table) for m, table in self.residuals.items()},
            rated=moved(self.rated.astype(np.float64)).astype(np.int64),
        )


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
        self, embedding: Embedding, policy: Policy, seed: int, unavailable: Mapping[str, str] | None = None
    ) -> Decision:
        """Choose experts for a request; `unavailable` maps experts that cannot answer now to why, in words.

        `policy.seed` wins over `seed`. `policy.explore` True always draws, False never, None for the catalog's share
        of requests. Raises NoExpert, UnknownModel, Unavailable, and CheckpointError for vectors of other encoders.
        """
        refused = ineligible(self.experts, embedding.modalities, policy, unavailable or {})
        rows = [i for i, expert in enumerate(self.experts) if expert.name not in refused]
        if not rows:
            raise self._nobody(embedding, refused, unavailable or {})
        quality = self._quality(embedding)[rows]
        chances = self._plan(rows, quality, policy)
        seed = seed if policy.seed is None else policy.seed
        order, explored = chances.draw(np.random.default_rng(seed))
        considered = self._considered(rows, quality, chances)
        return Decision(
            chosen=tuple(
                Choice(**considered[i].model_dump(), weight=weight)
                for i, weight in zip(order, chances.weights(order).tolist(), strict=True)
            ),
            considered=tuple(sorted(considered, key=lambda c: (-c.probability, -c.quality))),
            ineligible=refused,
            propensity=chances.probability(order),
            explored=explored,
            strategy=policy.strategy or self.spec.strategy,
            seed=seed,
            gate_version=self.version,
            encoder_revisions=dict(embedding.revisions),
            modalities=embedding.modalities,
            policy=policy,
            reasons=self._reasons(embedding, [considered[i] for i in order], explored),
        )

    def qualities(self, embedding: Embedding, experts: Sequence[str]) -> Float:
        """Predicted quality of each of `experts`, (experts,) in (0, 1). Raises NotFound for one not in the roster."""
        for name in experts:
            if name not in self._index:
                raise NotFound(f"the gate has no expert {name!r}; it has: {', '.join(self._index)}")
        return self._quality(embedding)[[self._index[name] for name in experts]]

    def replan(
        self, embedding: Embedding, decision: Decision, policy: Policy | None = None
    ) -> tuple[tuple[str, ...], Plan]:
        """This gate's own plan for a logged request: over those logged eligible experts that it still has, named.

        Under the logged policy unless another is given. Raises NotFound when it has none of them.
        """
        names = tuple(c.expert for c in decision.considered if c.expert in self._index)
        if not names:
            raise NotFound("none of the experts of this logged decision is in the catalog any more")
        quality = self.qualities(embedding, names)
        return names, self._plan([self._index[name] for name in names], quality, policy or decision.policy)

    def choice_probability(self, embedding: Embedding, decision: Decision) -> float:
        """With which probability this gate draws the logged ordered choice; 0 when it lost one of the experts."""
        if any(choice.expert not in self._index for choice in decision.chosen):
            return 0.0
        names, chances = self.replan(embedding, decision)
        return chances.probability([names.index(choice.expert) for choice in decision.chosen])

    def _quality(self, embedding: Embedding) -> Float:
        self._check_revisions(embedding)
        here = self._here
        logit = here.intercept + here.bias + here.slope * self.cards.scores(embedding)  # (experts,)
        for m, vector in embedding.vectors.items():
            logit += here.presence[:, MODALITIES.index(m)]
            if m in here.residuals:
                logit += here.residuals[m] @ vector.features
        quality: Float = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
        return quality

    def _plan(self, rows: Sequence[int], quality: Float, policy: Policy) -> Plan:
        spec, picked = self.spec, list(rows)
        preference = spec.preference if policy.preference is None else policy.preference
        return plan(
            utilities(quality, self._costs[picked], self._latencies[picked], preference),
            strategy=policy.strategy or spec.strategy,
            top_k=policy.top_k or spec.top_k,
            temperature=policy.temperature or spec.temperature,
            explore=spec.explore if policy.explore is None else float(policy.explore),
        )

    def _considered(self, rows: Sequence[int], quality: Float, chances: Plan) -> list[Considered]:
        """The eligible experts in the order of `rows`."""
        drawn = chances.drawn_first().tolist()
        return [
            Considered(expert=self.experts[row].name, probability=p, quality=q)
            for row, p, q in zip(rows, drawn, quality.tolist(), strict=True)
        ]

    def _reasons(self, embedding: Embedding, chosen: Sequence[Considered], explored: bool) -> tuple[str, ...]:
        reasons = [self._reason(embedding, choice) for choice in chosen]
        return (*reasons, "drawn by chance, so that the gate keeps learning") if explored else tuple(reasons)

    def _reason(self, embedding: Embedding, choice: Considered) -> str:
        row = self._index[choice.expert]
        sentence, cosine = self.cards.closest(row, embedding)
        reads = " and ".join(m for m in embedding.modalities if self.cards.reads[m][row])
        rated = int(self._here.rated[row])
        return (
            f"{choice.expert}: {reads} present; closest card example {sentence!r} (cosine {cosine:.2f}); "
            f"{f'rated {rated} times' if rated else 'not rated yet'}, predicted {choice.quality:.2f}"
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
