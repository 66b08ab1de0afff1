"""A store and gate versions with a past whose truth is known: people asked, rated, compared, and the gate learned.

Three experts answer text, one pictures; who is right for a kind of question is known, and so is what each costs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import numpy as np
import yaml
from worlds import embed_texts, expert, gate_spec, request

from multimoe.checkpoint import Manifest, Registry
from multimoe.config import EncoderSpec
from multimoe.decision import Decision, Policy
from multimoe.embedding import Embedding, Vector
from multimoe.examples import read, split
from multimoe.expert import FindWeights
from multimoe.feedback import FeedbackLog, Interaction, Outcome, Rating
from multimoe.gate import Gate
from multimoe.journal import Step
from multimoe.report.history import History, read_history
from multimoe.training import fit

START = datetime(2026, 11, 1, tzinfo=UTC)
EXPERTS = (
    expert("small", "text", cost=0.0002, latency_ms=80, text=("chat", "sum")),
    expert("big", "text", cost=0.0040, latency_ms=900, text=("poem", "law")),
    expert("coder", "text", cost=0.0010, latency_ms=300, text=("code",)),
    expert("eye", "image", cost=0.0005, latency_ms=60, image=("cat",)),
)
GOOD = {  # how often each expert's answer to a kind of question is liked; the cards do not say that big is good at sums
    "chat": {"small": 0.75, "big": 0.85, "coder": 0.4},
    "sum": {"small": 0.25, "big": 0.9, "coder": 0.6},
    "code": {"small": 0.2, "big": 0.5, "coder": 0.9},
    "cat": {"eye": 0.8},
}
QUESTIONS = {
    "chat": "how are you on this fine day",
    "sum": "please add these numbers up",
    "code": "why does this python function fail",
    "cat": "which animal is this",
}


class Words:
    """The text encoder of this world, as its catalog names it."""

    def __init__(self, spec: EncoderSpec, weights: FindWeights, text: None) -> None:
        pass

    def embed(self, parts: Sequence[str]) -> list[Vector]:
        return [Vector(vector, vector) for vector in embed_texts(parts)]


def liking(question: str | None, decision: Decision) -> float:
    """The chance that an answer by this choice gets a thumb up: its experts' parts that are liked are over half."""
    kind = next(kind for kind, words in QUESTIONS.items() if words == question)
    total = 0.0
    for liked in product((False, True), repeat=len(decision.chosen)):
        odds = [GOOD[kind].get(c.expert, 0.1) for c in decision.chosen]
        chance = np.prod([p if good else 1 - p for p, good in zip(odds, liked, strict=True)])
        parts = sum(c.weight for c, good in zip(decision.chosen, liked, strict=True) if good)
        total += float(chance) * (parts > 0.5)
    return total


@dataclass
class Past:
    """Everything under `home`; time goes on by five minutes a request."""

    home: Path
    seed: int = 0
    explore: float = 0.5
    kinds: tuple[str, ...] = tuple(GOOD)
    number: int = 0

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.generator = np.random.default_rng(self.seed)
        self.log = FeedbackLog.open(f"sqlite:///{self.home}/multimoe.db", now=self.now)
        self.registry = Registry(self.home / "gates")
        connection = self.log.database.engine.raw_connection()  # the pool's only one
        connection.cursor().execute("PRAGMA synchronous=OFF")  # nobody pulls the plug of a test
        connection.close()
        self.cards = Gate.from_cards(EXPERTS, embed_texts, gate_spec(explore=self.explore))

    @property
    def catalog(self) -> Path:
        """A catalog file of this world, whose port nobody listens on."""
        gate = {"explore": self.explore, "encoders": {"text": {"backend": "past:Words", "revision": "t1"}}}
        experts = [spec.model_dump(mode="json") for spec in EXPERTS]
        tree = {"home": str(self.home), "server": {"port": 1}, "gate": gate, "experts": experts}
        path = self.home / "multimoe.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def now(self) -> datetime:
        return START + timedelta(minutes=5 * self.number)

    def gate(self) -> Gate:
        version = self.registry.champion()
        return self.cards.with_learned(self.registry.load(version), version)

    def live(self, n: int, rated: float = 0.9, policy: Policy | None = None) -> None:
        """n requests through the gate that serves; a share `rated` of the answers gets a thumb."""
        gate = self.gate()
        answered, ratings = [], []
        for _ in range(n):
            wanted = self.generator.random() < rated
            kind, interaction = self._one(gate, policy or Policy())
            answered.append(interaction)
            ratings += self._ratings(kind, interaction) if wanted else []
        self.log.record(*answered)  # all at once: a commit each takes longer than what is tested
        for rating in ratings:
            self.log.rate(rating)

    def promote(self, version: int) -> None:
        self.registry.take(Step(at=self.now(), action="promoted", version=version))

    def learn(self, share: float = 1.0) -> int:
        """A new version, fitted on the earlier part of the rated answers."""
        examples = read(self.log.rated())
        fitted = split(examples, share)[0]
        manifest = Manifest(
            created=self.now(),
            since=examples[0].created,
            until=examples[-1].created,
            learned_until=fitted[-1].created,
            ratings=sum(example.ratings for example in examples),
        )
        return self.registry.write(fit(fitted, self.cards), manifest).version

    def history(self, since: datetime | None = None) -> History:
        return read_history(self.log, self.registry, self.cards, now=self.now(), since=since)

    def _one(self, gate: Gate, policy: Policy) -> tuple[str, Interaction]:
        kind = str(self.generator.choice(self.kinds))
        noise = int(self.generator.integers(2**31))
        said = {"image": "cat", "text": QUESTIONS["cat"]} if kind == "cat" else {"text": kind}
        embedding = request(noise=0.8, seed=noise, **said)
        decision = gate.decide(embedding, policy, noise)
        interaction = self._interaction(kind, embedding, decision)
        self.number += 1
        return kind, interaction

    def _interaction(self, kind: str, embedding: Embedding, decision: Decision) -> Interaction:
        spec = {one.name: one for one in EXPERTS}
        outcomes = tuple(
            Outcome(
                expert=choice.expert, role="answer", weight=choice.weight, status="ok", cost=spec[choice.expert].cost,
                latency_ms=float(spec[choice.expert].latency_ms * self.generator.lognormal(0, 0.4)),
            )
            for choice in decision.chosen
        )  # fmt: skip
        slowest = max(outcome.latency_ms for outcome in outcomes)
        return Interaction(
            id=f"c{self.number}",
            created=self.now(),
            model="multimoe",
            decision=decision.model_copy(update={"timing_ms": {"embed": 20.0, "route": 1.0}}),
            embedding=embedding.to_bytes(),
            question=QUESTIONS[kind],
            outcomes=outcomes,
            timing_ms={"answer": slowest + 2, "total": slowest + 30},
        )

    def _ratings(self, kind: str, interaction: Interaction) -> Iterator[Rating]:
        """A thumb for the answer by its experts' parts in it; where two answered, one in four says which was better."""
        user = f"u{self.number % 37}"
        liked = {o.expert: self.generator.random() < GOOD[kind].get(o.expert, 0.1) for o in interaction.outcomes}
        score = float(sum(o.weight * liked[o.expert] for o in interaction.outcomes) > 0.5)
        yield Rating(completion_id=interaction.id, score=score, user=user, created=self.now())
        if len(liked) > 1 and len(set(liked.values())) > 1 and self.number % 4 == 0:
            best, worst = sorted(liked, key=lambda name: -liked[name])[:2]
            told = {"preferred": best, "rejected": (worst,), "user": user, "created": self.now()}
            yield Rating(completion_id=interaction.id, target="comparison", **told)
