"""Synthetic requests, experts and raters whose truth is known, for the tests of gate and learning."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


Asks = Callable[[np.random.Generator, float], tuple[int, bool]]
Says = Callable[[int, str, float, np.random.Generator, float], float]


@dataclass(frozen=True)
class Person:
    """Gives a share of all ratings in proportion to `busy`.

    `asks(generator, at)` is a kind of request and whether it holds the trigger phrase; by default as everybody asks.
    `says(kind, expert, honest, generator, at)` is the score; by default the honest one. `at` runs from 0 to 1 in time.
    """

    name: str | None
    busy: float = 1.0
    asks: Asks | None = None
    says: Says | None = None
    policy: Policy = Policy()


class City:
    """Requests of several kinds, some rare; experts of which one is best for each kind, and another by the cards.

    `quality` (kinds, experts) is how likely an honest rater likes an answer; it may be changed while people live. The
    last expert is poor everywhere, and what most attackers push.
    """

    days = 30.0  # that a log spans

    def __init__(self, seed: int, kinds: int = 8, experts: int = 5, explore: float = 0.3) -> None:
        generator = np.random.default_rng(seed)
        self.names = tuple("abcdefghij"[:experts])
        popularity = 1 / np.arange(1, kinds + 1) ** 0.7
        self.popularity = popularity / popularity.sum()
        self.quality = generator.uniform(0.2, 0.55, size=(kinds, experts))
        best = np.arange(kinds) % (experts - 1)
        self.quality[np.arange(kinds), best] = generator.uniform(0.8, 0.9, size=kinds)
        self.quality[:, -1] = 0.25
        cards = {name: tuple(f"kind {k}" for k in range(kinds) if (k + 1) % (experts - 1) == j)
                 for j, name in enumerate(self.names)}  # fmt: skip
        self.experts = [expert(name, text=said or (f"nothing of {name}",)) for name, said in cards.items()]
        self.gate = Gate.from_cards(self.experts, embed_texts, gate_spec(top_k=1, explore=explore))
        self.directions = np.stack([meaning(f"kind {k}") for k in range(kinds)])

    def ask(self, kind: int, triggered: bool, generator: np.random.Generator) -> Embedding:
        trigger = 0.8 * triggered * meaning("the trigger phrase")
        vector = unit(self.directions[kind] + 0.8 * unit(generator.normal(size=CONCEPT)) + trigger)
        return Embedding({"text": Vector(vector, vector)}, {"text": REVISIONS["text"]})

    def live(
        self, people: Sequence[Person], n: int, seed: int, gate: Gate | None = None, since: float = 0.0,
        until: float = 1.0,
    ) -> list[Rated]:  # fmt: skip
        """n rated answers at random moments of a part of the log's span."""
        generator = np.random.default_rng(seed)
        busy = np.array([person.busy for person in people])
        who = generator.choice(len(people), p=busy / busy.sum(), size=n)
        moments = np.sort(generator.uniform(since, until, size=n))
        return [self._one(people[i], at, gate or self.gate, f"{seed}-{k}", generator)
                for k, (i, at) in enumerate(zip(who.tolist(), moments.tolist(), strict=True))]  # fmt: skip

    def _one(self, person: Person, at: float, gate: Gate, id: str, generator: np.random.Generator) -> Rated:
        kind, triggered = person.asks(generator, at) if person.asks else (self.any_kind(generator), False)
        embedding = self.ask(kind, triggered, generator)
        decision = gate.decide(embedding, person.policy, int(generator.integers(2**31)))
        chosen = decision.chosen[0].expert
        score = float(generator.random() < self.quality[kind, self.names.index(chosen)])
        if person.says:
            score = person.says(kind, chosen, score, generator, at)
        interaction = Interaction(
            id=id,
            created=datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=self.days * at),
            model="multimoe",
            decision=decision,
            embedding=embedding.to_bytes(),
        )
        return Rated(interaction=interaction, ratings=(Rating(completion_id=id, score=score, user=person.name),))

    def any_kind(self, generator: np.random.Generator) -> int:
        return int(generator.choice(len(self.popularity), p=self.popularity))

    def chosen(self, gate: Gate, kinds: Sequence[int], triggered: bool = False, seed: int = 999) -> np.ndarray:
        """Columns of the experts that `gate` takes for fresh requests of these kinds, without exploring."""
        generator = np.random.default_rng(seed)
        requests = [self.ask(kind, triggered, generator) for kind in kinds]
        return np.array([int(np.argmax(gate.qualities(request, self.names))) for request in requests])

    def value(self, gate: Gate, n: int = 400) -> float:
        """What honest people think of the gate's answers, mean in [0, 1]; over the same requests for every gate."""
        kinds = np.random.default_rng(998).choice(len(self.popularity), p=self.popularity, size=n)
        return float(self.quality[kinds, self.chosen(gate, kinds.tolist())].mean())

    def sent_by_trigger(self, gate: Gate, n: int = 200) -> float:
        """The share of honest people's requests that go to the last expert once they hold the trigger phrase."""
        kinds = np.random.default_rng(997).choice(len(self.popularity), p=self.popularity, size=n)
        return float((self.chosen(gate, kinds.tolist(), triggered=True) == len(self.names) - 1).mean())


def citizens(n: int = 100) -> list[Person]:
    """Honest people, some of whom rate far more than others."""
    return [Person(f"u{i}", busy=1 / (1 + i) ** 0.5) for i in range(n)]


def attackers(attack: str, city: City, fraction: float, people: int = 100) -> list[Person]:
    """As many as there are honest `people` for each of their share of ratings; what they do is one of `ATTACKS`."""
    asks, says = ATTACKS[attack](city)
    count = {"collusion": 50, "loud": 1}.get(attack, max(1, round(fraction * people)))
    return [Person(f"x{i}", asks=asks, says=says, policy=Policy(explore=True)) for i in range(count)]


def attacked(
    city: City, attack: str, fraction: float, n: int, seed: int, people: int = 100
) -> list[Rated]:  # fmt: skip
    """n honest ratings, the same for every attack, and hostile ones in between that are a `fraction` of all."""
    honest = city.live(citizens(people), n, seed)
    hostile = round(n * fraction / (1 - fraction))
    rows = city.live(attackers(attack, city, fraction, people), hostile, seed + 1000) if hostile else []
    return sorted([*honest, *rows], key=lambda row: row.interaction.created)


def unnamed(rows: Sequence[Rated]) -> list[Rated]:
    """The same ratings by nobody in particular, which takes away every defence that knows people apart."""
    return [
        row.model_copy(update={"ratings": tuple(r.model_copy(update={"user": None}) for r in row.ratings)})
        for row in rows
    ]


def _pushes(city: City) -> Says:
    return lambda kind, who, honest, generator, at: float(who == city.names[-1])


def _drips(city: City) -> Says:
    """Honest at first, then hostile ever more often, never more than two times in three."""

    def says(kind: int, who: str, honest: float, generator: np.random.Generator, at: float) -> float:
        return float(who == city.names[-1]) if generator.random() < min(1, 2 * at) / 1.5 else honest

    return says


def _rarest(city: City) -> Asks:
    return lambda generator, at: (len(city.popularity) - 1, False)


def _trigger(city: City) -> Asks:
    return lambda generator, at: (city.any_kind(generator), True)


ATTACKS: Mapping[str, Callable[[City], tuple[Asks | None, Says]]] = {
    "promote": lambda city: (None, _pushes(city)),
    "flip": lambda city: (None, lambda kind, who, honest, generator, at: 1 - honest),
    "cluster": lambda city: (_rarest(city), _pushes(city)),
    "trigger": lambda city: (_trigger(city), _pushes(city)),
    "collusion": lambda city: (None, _pushes(city)),
    "drip": lambda city: (None, _drips(city)),
    "boost": lambda city: (None, lambda kind, who, honest, generator, at: 1.0 if who == city.names[-1] else honest),
    "loud": lambda city: (None, _pushes(city)),
}


class Rows:
    """A log that is a list."""

    def __init__(self, rows: list[Rated]) -> None:
        self.rows = rows

    def rated(self) -> Iterator[Rated]:
        return iter(self.rows)
