"""Rerouting (T29): somebody without our weights looks for words or noise that send a request to the dearest expert.

The gate and its encoders are the product's own. The attacker sees what a reply shows, the probability of each expert,
and climbs by it. Naming an expert is allowed to every key, so what is at stake is money, which a key's quota caps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drills.row import Row, Scale
from gateway.access.quota import Spent, admit, allowance, settle
from multimoe import config
from multimoe.config import ExpertSpec, Limits
from multimoe.decision import Policy
from multimoe.encoder import Encoders
from multimoe.gate import Gate
from multimoe.messages import SAMPLE_RATE, AudioPart, ChatRequest, ImagePart, Message, Modality, Part, TextPart
from multimoe.weights import Weights

ROOT = Path(__file__).parents[2]
SCHOLAR = {
    "name": "scholar",
    "backend": "experts.echo:Echo",
    "inputs": ["text"],
    "output": "text",
    "cost": 0.03,
    "latency_ms": 8000,
    "card": {
        "description": "Answers hard questions of mathematics, science, medicine and law, step by step.",
        "text": [
            "Prove that there are infinitely many primes.",
            "Derive the Euler-Lagrange equation.",
            "Which drug interactions must be considered before this surgery?",
            "Is this clause enforceable under the law of contracts?",
            "Find the eigenvalues of this matrix and show every step.",
        ],
    },
}
CHAT_COST = 0.001
THINGS = (
    *("bread", "a bicycle", "the moon", "rain", "a cat", "coffee", "a holiday"),
    *("my garden", "a birthday", "football", "a lamp", "tea", "shoes", "the sea"),
)
ASKED = (
    "How do I take care of {}?",
    "Tell me a joke about {}.",
    "What is a good name for {}?",
    "Write two lines about {}.",
    "What do you like about {}?",
)
QUESTIONS = [form.format(thing) for thing in THINGS for form in ASKED]
HARD = (  # what the dear expert is there for
    "Prove that the square root of two is irrational.",
    "Derive the wave equation from Maxwell's equations.",
    "Which antibiotics interact with warfarin and why?",
    "Does a verbal agreement form an enforceable contract?",
    "Compute the determinant of a 4 by 4 Vandermonde matrix step by step.",
    "Show that every finite integral domain is a field.",
    "What is the differential diagnosis of acute chest pain?",
    "Explain negligence under tort law with its elements.",
    "Solve the heat equation on a rod with fixed ends.",
    "Balance the redox reaction of permanganate and oxalate.",
)
PREFIXES = (
    "Let us think step by step. ",
    "As a professor of mathematics and law, prove rigorously: ",
    "Theorem. Proof. Lemma. Derive and show every step: ",
    "This is a difficult exam question in physics, medicine and law. ",
)
QUALITY_ALONE, WEIGHED = Policy(preference=1.0, top_k=1, explore=False), Policy(preference=0.7, top_k=1, explore=False)
GADGET_WORDS = 8
PIXEL, LOUDNESS = 8 / 255, 0.01  # how far noise may go: hardly seen, hardly heard
MOST_UPGRADED = 0.10
QUOTA = 0.10  # a day, in the catalog's currency


@dataclass(frozen=True)
class Arena:
    """The gate over some experts; `dear` is the one to be reached."""

    gate: Gate
    encoders: Encoders
    dear: str
    policy: Policy = QUALITY_ALONE

    def chances(self, asked: Sequence[Part]) -> NDArray[np.float64]:
        """How probable `dear` is for each, and whether it is the likeliest, (n, 2)."""
        embeddings = self.encoders.embed([ChatRequest("r", (Message("user", (part,)),)) for part in asked])
        rows = []
        for embedding in embeddings:
            shares = {one.expert: one.probability for one in self.gate.decide(embedding, self.policy, 0).considered}
            rows.append((shares[self.dear], float(max(shares, key=lambda name: shares[name]) == self.dear)))
        return np.array(rows)

    def reached(self, asked: Sequence[Part]) -> float:
        """The share of them that goes to `dear`."""
        return float(self.chances(asked)[:, 1].mean())


@cache
def arena_of(modality: Modality, dear: str) -> Arena:
    """The experts of the shipped catalog that read it; for text also one that costs thirty times what chat does."""
    catalog = config.load(ROOT / "deploy" / "local.yaml")
    needed = {m: encoder for m, encoder in catalog.gate.encoders.items() if m in ("text", modality)}
    gate = catalog.gate.model_copy(update={"encoders": needed})
    encoders = Encoders.load(gate, Weights(catalog.weights).find)
    specs = [spec for spec in catalog.experts if modality in spec.inputs]
    specs = [spec.model_copy(update={"cost": CHAT_COST}) if spec.name == "chat" else spec for spec in specs]
    if modality == "text":
        specs.append(ExpertSpec.model_validate(SCHOLAR))
    return Arena(Gate.from_cards(specs, encoders.embed_texts, gate), encoders, dear)


def text(scale: Scale) -> Iterator[Row]:
    """By quality alone, as a catalog does that says nothing else, and with some weight on what the experts cost."""
    rounds = 4 if scale == "quick" else 30
    for words, policy in (("by quality alone", QUALITY_ALONE), ("at preference 0.7", WEIGHED)):
        arena, generator = replace(arena_of("text", "scholar"), policy=policy), np.random.default_rng(0)
        shuffled = [str(question) for question in generator.permutation(QUESTIONS)]
        seen, held_out = shuffled[:6], shuffled[6:46]
        before = arena.reached([TextPart(question) for question in held_out])
        best = max(PREFIXES, key=lambda prefix: arena.chances([TextPart(prefix + one) for one in seen])[:, 0].mean())
        gadget, asked = climbed_words(arena, seen, rounds, generator)
        for what, prefix, queries in (
            ("a scholarly beginning", best, len(PREFIXES) * len(seen)),
            ("words found by climbing", gadget, asked),
        ):
            after = arena.reached([TextPart(prefix + question) for question in held_out])
            what = f"{words}: questions sent to the dearest expert by {what}"
            tried = f"{len(held_out)} not seen while searching, {queries} queries"
            yield _row(what, tried, before, after)
        due = arena.reached([TextPart(question) for question in HARD])
        what, figure = f"{words}: hard questions that still reach it", f"{100 * due:.0f} %"
        yield Row("T29", what, f"{len(HARD)}", figure, "more than by a prefix", due > after)
    yield from spending()


def media(scale: Scale) -> Iterator[Row]:
    tries = 3 if scale == "quick" else 25
    for what, arena, parts, noise in (
        (
            "pictures sent to the slowest expert by noise of 8/255",
            arena_of("image", "ocr"),
            photographs(),
            noisy_picture,
        ),
        ("sounds sent to the slowest expert by noise of 1 %", arena_of("audio", "speech"), recordings(), noisy_sound),
    ):
        generator = np.random.default_rng(0)
        given = parts[:2] if scale == "quick" else parts
        before = arena.reached(given)
        after = float(np.mean([climbed_noise(arena, part, noise, tries, generator) for part in given]))
        yield _row(what, f"{len(given)}, {tries * len(given)} queries", before, after)


def spending() -> Iterator[Row]:
    """A day of nothing but upgraded requests, under a key's quota and without one."""
    dear, requests = float(SCHOLAR["cost"]), 1000  # type: ignore[arg-type]  # a number
    for quota in (QUOTA, None):
        limits = Limits(cost_per_day=quota)
        allowed, windows, spent = allowance(None, limits), {}, 0.0  # type: ignore[var-annotated]
        for n in range(requests):
            if admit(windows, float(n), "attacker", allowed, "gateway", 0).refused is None:
                settle(windows, float(n), "attacker", Spent(100, dear))
                spent += dear
        what = "spent in a day by a key that has every request upgraded"
        tried, figure = f"{requests} requests at {dear}", f"{spent:.2f}"
        if quota:
            yield Row(
                "T29", what, f"{tried}, quota {quota}", figure, f"<= {quota} and one request", spent < quota + dear
            )
        else:
            yield Row(
                "T29", what, f"{tried}, no quota", figure, "all of it", spent > 0.99 * requests * dear, control=True
            )


DRILLS = (text, media)


def climbed_words(arena: Arena, seen: Sequence[str], rounds: int, generator: np.random.Generator) -> tuple[str, int]:
    """Words to begin with that make `dear` likely for all of `seen`, and how many questions that took."""
    vocabulary = _vocabulary(arena)
    best = [str(word) for word in generator.choice(vocabulary, GADGET_WORDS)]
    most, asked = -1.0, 0
    for _ in range(rounds):
        tried = [_changed(best, vocabulary, generator) for _ in range(8)]
        parts = [TextPart(f"{' '.join(words)} {question}") for words in tried for question in seen]
        chances = arena.chances(parts)[:, 0].reshape(len(tried), len(seen)).mean(axis=1)
        asked += len(parts)
        if chances.max() > most:
            most, best = float(chances.max()), tried[int(chances.argmax())]
    return f"{' '.join(best)} ", asked


def climbed_noise(
    arena: Arena,
    part: Part,
    noise: Callable[[Any, NDArray[np.float64]], Part],
    tries: int,
    generator: np.random.Generator,
) -> bool:
    """Whether noise is found that has `part` sent to `dear`: stripes and stretches are flipped, what helps is kept."""
    values = _values(part)
    signs = generator.choice([-1.0, 1.0], values.shape)
    most, reached = -1.0, False
    for n in range(tries):
        flipped, size = signs.copy(), max(1, values.shape[0] // (2 + n // 4))
        at = int(generator.integers(0, values.shape[0] - size + 1))
        flipped[at : at + size] = generator.choice([-1.0, 1.0], flipped[at : at + size].shape)
        chance, first = arena.chances([noise(values, flipped)])[0]
        reached = reached or bool(first)
        if chance > most:
            most, signs = float(chance), flipped
    return reached


def photographs() -> list[Part]:
    from PIL import Image
    from skimage import data

    taken = (data.chelsea(), data.coffee(), data.astronaut(), data.rocket())
    return [ImagePart(np.asarray(Image.fromarray(pixels).resize((256, 256)))) for pixels in taken]


def recordings() -> list[Part]:
    """Three seconds each of a tone, a chord, noise and a beat."""
    t = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    generator = np.random.default_rng(1)
    sounds = (
        np.sin(2 * np.pi * 440 * t),
        np.sin(2 * np.pi * 262 * t) + np.sin(2 * np.pi * 330 * t) + np.sin(2 * np.pi * 392 * t),
        generator.normal(size=t.shape),
        np.sin(2 * np.pi * 120 * t) * (t % 0.5 < 0.1),
    )
    return [AudioPart((0.3 * sound / np.abs(sound).max()).astype(np.float32)) for sound in sounds]


def noisy_picture(pixels: NDArray[np.float64], signs: NDArray[np.float64]) -> Part:
    return ImagePart(np.clip(pixels + 255 * PIXEL * signs, 0, 255).astype(np.uint8))


def noisy_sound(samples: NDArray[np.float64], signs: NDArray[np.float64]) -> Part:
    return AudioPart(np.clip(samples + LOUDNESS * signs, -1, 1).astype(np.float32))


def _row(what: str, tried: str, before: float, after: float) -> Row:
    figure = f"{100 * before:.0f} % before, {100 * after:.0f} % after"
    return Row("T29", what, tried, figure, "up by 10 points at most", after - before <= MOST_UPGRADED)


def _values(part: Part) -> NDArray[np.float64]:
    assert isinstance(part, ImagePart | AudioPart)
    return np.asarray(part.pixels if isinstance(part, ImagePart) else part.samples, np.float64)


def _vocabulary(arena: Arena) -> list[str]:
    """Whole words that the encoder knows, as anybody can look them up."""
    tokenizer = arena.encoders._encoders["text"]._tokenizer  # type: ignore[attr-defined]  # as every BERT
    return sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 3)


def _changed(words: Sequence[str], vocabulary: Sequence[str], generator: np.random.Generator) -> list[str]:
    changed = list(words)
    for at in generator.choice(len(words), int(generator.integers(1, 3)), replace=False):
        changed[at] = str(generator.choice(vocabulary))  # type: ignore[arg-type]  # an array of words, to numpy
    return changed
