"""What a decision takes: one request at a time, whole and its arithmetic alone, and many at once.

    python benchmarks/decide.py [--experts 10] [--rounds 15]

The reference is what no gate can be without: one matrix product of the same shape, a softmax and the largest. All run
in alternating rounds on one thread and the figures are medians of single calls in processor time, so that other work
disturbs little and ratios travel between machines. The gate has learned: 64 axes of a 384-wide text embedding, with
doubt.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from multimoe.config import Card, EncoderSpec, ExpertSpec, GateSpec, Strategy
from multimoe.decision import Policy
from multimoe.embedding import CONCEPT, Embedding, Vector
from multimoe.gate import Gate
from multimoe.quality import HEAD, Axes, Learned
from multimoe.routing import plan, route_batch

AXES = 64
SENTENCES = 6  # on a card
BATCH = 1000
REVISIONS = {"text": "random"}

generator = np.random.default_rng(0)


def unit(*shape: int) -> np.ndarray:
    vectors = generator.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def request() -> Embedding:
    vector = unit(CONCEPT)
    return Embedding({"text": Vector(vector, vector)}, REVISIONS)


def learned_gate(n: int) -> Gate:
    names = [f"expert-{i}" for i in range(n)]
    card = Card(description="Answers questions.", text=tuple(f"question {i}" for i in range(SENTENCES - 1)))
    experts = [
        ExpertSpec(name=name, backend="experts.echo:Echo", inputs=frozenset({"text"}), output="text", card=card)
        for name in names
    ]
    spec = GateSpec(encoders={"text": EncoderSpec(backend="multimoe.encoder:TextEncoder", revision="random")})
    q = HEAD + AXES
    root = 0.1 * generator.normal(size=(n, q, q))
    learned = Learned(
        experts=tuple(names),
        axes={"text": Axes(unit(CONCEPT, AXES), np.zeros(AXES, np.float32))},
        common=0.3 * generator.normal(size=q),
        own=0.3 * generator.normal(size=(n, q)),
        covariance=(root @ root.transpose(0, 2, 1)).astype(np.float32),
        variance=np.full(q, 0.1),
        rated=np.full(n, 100),
        balance=np.zeros(n),
        tilt=np.zeros((n, q)),
        revisions=REVISIONS,
    )
    return Gate.from_cards(experts, lambda texts: unit(len(texts), CONCEPT), spec).with_learned(learned, 1)


def per_call(calls: Sequence[tuple[str, Callable[[], object]]], rounds: int, times: int) -> dict[str, float]:
    """Median processor seconds of one call of each, over alternating rounds of `times` calls."""
    taken: dict[str, list[float]] = {name: [] for name, _ in calls}
    for number in range(rounds + 1):
        for name, call in calls:
            for _ in range(times):
                begin = time.thread_time()
                call()
                if number:  # the first round warms up
                    taken[name].append(time.thread_time() - begin)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def reference(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(n, d), (b, d) -> the largest of each row's softmax, (b,)."""
    logits = x @ weights.T
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares.argmax(axis=-1)


def one_by_one(n: int, rounds: int) -> Table:
    gate, x = learned_gate(n), request()
    weights, features = unit(n, CONCEPT), x.vectors["text"].features
    utility, spread = generator.random(n), generator.uniform(0.05, 0.2, size=n)

    def arithmetic(strategy: Strategy) -> object:
        chances = plan(utility, strategy=strategy, top_k=2, temperature=0.12, explore=0.1, spread=spread)
        order, _ = chances.draw(Random(1))
        return chances.probability(order), chances.weights(order), chances.drawn_first()

    calls: list[tuple[str, Callable[[], object]]] = [
        ("reference", lambda: reference(weights, features)),
        ("quality of all", lambda: gate.qualities(x, [expert.name for expert in gate.experts])),
    ]
    for strategy in get_args(Strategy):
        calls.append((f"{strategy}: draw, weigh, propensity", lambda s=strategy: arithmetic(s)))
        calls.append((f"{strategy}: whole decision", lambda s=strategy: gate.decide(x, Policy(strategy=s), 1)))
    seconds = per_call(calls, rounds, 100)
    table = Table("one request", "µs", "reference x", title=f"{n} experts, d = {CONCEPT}, two chosen, 10 % explored")
    for name, taken in seconds.items():
        table.add_row(name, f"{taken * 1e6:.0f}", f"{taken / seconds['reference']:.1f}")
    return table


def in_batches(n: int, rounds: int) -> Table:
    weights, x = unit(n, CONCEPT), unit(BATCH, CONCEPT)
    spread = generator.uniform(0.05, 0.2, size=(BATCH, n))

    def decided(strategy: str, doubt: bool, top_k: int) -> object:
        utility = 1 / (1 + np.exp(-(x @ weights.T).astype(np.float64)))
        return route_batch(
            utility, strategy=strategy, top_k=top_k, temperature=0.12, explore=0.1, generator=generator,
            spread=spread if doubt else None,
        )  # fmt: skip

    calls: list[tuple[str, Callable[[], object]]] = [("reference", lambda: reference(weights, x))]
    for strategy in (*get_args(Strategy), "expert-choice"):
        for doubt in (False, True) if strategy == "softmax" else (True,):
            for top_k in (1, 2) if strategy in ("noisy", "thompson") else (2,):
                name = f"{strategy}, {'two' if top_k == 2 else 'one'} chosen{', explored by doubt' if doubt else ''}"
                calls.append((name, lambda s=strategy, d=doubt, k=top_k: decided(s, d, k)))
    seconds = per_call(calls, rounds, 3)
    table = Table(
        "in batches", "a second", "reference x", title=f"{n} experts, d = {CONCEPT}, {BATCH} requests a batch"
    )
    for name, taken in seconds.items():
        table.add_row(name, f"{BATCH / taken:,.0f}", f"{taken / seconds['reference']:.1f}")
    return table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--experts", type=int, default=10)
    arguments.add_argument("--rounds", type=int, default=15)
    options = arguments.parse_args()
    console = Console(width=100)
    console.print(one_by_one(options.experts, options.rounds))
    console.print(in_batches(options.experts, options.rounds))


if __name__ == "__main__":
    main()
