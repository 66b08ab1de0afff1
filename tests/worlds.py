"""Synthetic requests, experts and raters whose truth is known, for the tests of gate and learning."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from multimoe.config import Card, EncoderSpec, ExpertSpec, GateSpec
from multimoe.decision import Decision, Policy
from multimoe.embedding import CONCEPT, Embedding, Vector
from multimoe.feedback import Interaction, Rated, Rating
from multimoe.gate import Gate
from multimoe.messages import Modality

WIDTHS: Mapping[Modality, int] = {"text": 384, "image": 1280, "audio": 384}
REVISIONS: Mapping[Modality, str] = {"text": "t1", "image": "i1", "audio": "a1"}


def unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def meaning(text: str, width: int = CONCEPT) -> np.ndarray:
    """A direction that only this text has."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return unit(np.random.default_rng(seed).normal(size=width))


def embed_texts(texts: Sequence[str]) -> np.ndarray:
    return np.stack([meaning(text) for text in texts])


def request(revisions: Mapping[Modality, str] = REVISIONS, noise: float = 0.0, seed: int = 0, **said: str) -> Embedding:
    """`request(text="sum", image="cat")`: vectors near those meanings, `noise` away from them."""
    generator = np.random.default_rng(seed)
    vectors: dict[Modality, Vector] = {}
    for modality, text in said.items():
        width = WIDTHS[modality]
        concept = unit(meaning(text) + noise * unit(generator.normal(size=CONCEPT)))
        features = (
            concept if modality == "text" else unit(meaning(text, width) + noise * unit(generator.normal(size=width)))
        )
        vectors[modality] = Vector(features, concept)
    return Embedding(vectors, {m: revisions[m] for m in vectors})


def expert(
    name: str, *inputs: Modality, cost: float = 0.0, latency_ms: float = 100.0, **card: tuple[str, ...]
) -> ExpertSpec:
    return ExpertSpec(
        name=name,
        backend="experts.echo:Echo",
        inputs=frozenset(inputs or ("text",)),
        output="text",
        card=Card(description=f"about {name}", **card),
        cost=cost,
        latency_ms=latency_ms,
    )


def gate_spec(**changes: object) -> GateSpec:
    encoders = {m: EncoderSpec(backend="multimoe.encoder:TextEncoder", revision=r) for m, r in REVISIONS.items()}
    return GateSpec.model_validate({"encoders": encoders, **changes})


class Town:
    """People who ask about `kinds` things and know which expert is right for each; the cards say otherwise.

    `ask` returns a request of a kind; `live` plays n requests through a gate and returns them rated. An answer is liked
    with probability `good` for the right expert's part of it and `bad` for the others'.
    """

    def __init__(
        self,
        seed: int,
        right: Mapping[str, str],
        good: float = 0.9,
        bad: float = 0.15,
        revisions: Mapping[Modality, str] = REVISIONS,
    ) -> None:
        self.generator = np.random.default_rng(seed)
        self.right = dict(right)
        self.good, self.bad = good, bad
        self.revisions = revisions

    def ask(self, kind: str | None = None) -> tuple[str, Embedding]:
        kind = kind or str(self.generator.choice(list(self.right)))
        return kind, request(self.revisions, text=kind, noise=0.8, seed=int(self.generator.integers(2**31)))

    def live(self, gate: Gate, n: int, policy: Policy | None = None, raters: int = 40) -> list[Rated]:
        return [self._one(gate, number, policy or Policy(), f"u{number % raters}") for number in range(n)]

    def liking(self, kind: str, decision: Decision) -> float:
        right = sum(choice.weight for choice in decision.chosen if choice.expert == self.right[kind])
        return self.good * right + self.bad * (1 - right)

    def _one(self, gate: Gate, number: int, policy: Policy, rater: str) -> Rated:
        kind, embedding = self.ask()
        decision = gate.decide(embedding, policy, int(self.generator.integers(2**31)))
        score = float(self.generator.random() < self.liking(kind, decision))
        return rated(number, embedding, decision, Rating(completion_id=f"c{number}", score=score, user=rater))


def rated(number: int, embedding: Embedding, decision: Decision | None, *ratings: Rating) -> Rated:
    interaction = Interaction(
        id=f"c{number}",
        created=datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=number),
        model="multimoe",
        decision=decision,
        embedding=embedding.to_bytes(),
    )
    return Rated(interaction=interaction, ratings=ratings)


class Rows:
    """A log that is a list."""

    def __init__(self, rows: list[Rated]) -> None:
        self.rows = rows

    def rated(self) -> Iterator[Rated]:
        return iter(self.rows)
