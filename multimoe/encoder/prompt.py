"""What can be counted in a prompt: length, digits, symbols, form. It tells difficulty, where an embedding tells topic.

On tables of real outcomes these few numbers lower the error of predicted quality as much as the embedding itself does,
and both together lower it further (`benchmarks/features.py`).
"""

import re
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

WAVES = 128  # random Fourier features of the counts: quality is no linear function of length
FREQUENCY = 0.2  # their standard deviation, for counts of spread 1
WAVES_PART = 0.5  # of all variance, against that of the counts themselves
READ = 8000  # characters; more would take long and tell nothing more
FARTHEST = 4.0  # standard deviations that a count may lie from the usual

OPTION = re.compile(r"(?m)^[ \t]*\(?[A-J][\).:]\s")
NEGATION = re.compile(r"\b(not|except|never|least|false|incorrect)\b")

# Each count with its mean and spread over exam questions, tasks and code of the public routing tables.
Count = Callable[[str], float]
COUNTS: tuple[tuple[Count, float, float], ...] = (
    (lambda t: np.log(max(1, len(t))), 5.9, 0.8),
    (lambda t: np.log(max(1, len(t.split()))), 4.2, 0.75),
    (lambda t: np.log(t.count("\n") + 1), 2.0, 0.4),
    (lambda t: len(t) / max(1, len(t.split())), 5.8, 0.9),
    (lambda t: np.log1p(len(OPTION.findall(t))), 1.9, 0.5),
    (lambda t: np.sqrt(_share(t, str.isdigit)), 0.11, 0.15),
    (lambda t: np.log1p(_count(t, str.isdigit)), 1.3, 1.6),
    (lambda t: np.sqrt(_share(t, _is_operator)), 0.06, 0.085),
    (lambda t: np.log1p(_count(t, _is_operator)), 0.9, 1.1),
    (lambda t: float("?" in t), 0.56, 0.5),
    (lambda t: np.log1p(_count(t, "()[]{}".__contains__)), 0.55, 0.95),
    (lambda t: _share(t, str.isupper), 0.05, 0.04),
    (lambda t: float(not t.isascii()), 0.14, 0.35),
    (lambda t: _share(t, _is_foreign), 0.002, 0.007),
    (lambda t: float("\\" in t), 0.06, 0.23),
    (lambda t: float("_" in t), 0.11, 0.31),
    (lambda t: np.log1p(len(NEGATION.findall(t.lower()))), 0.29, 0.54),
    (lambda t: float("def " in t or "return" in t), 0.02, 0.14),
    (lambda t: len({word.lower() for word in t.split()}) / max(1, len(t.split())), 0.74, 0.17),
    (lambda t: np.log1p(np.median([len(line) for line in t.split("\n")])), 3.4, 0.86),
    (lambda t: np.log1p(max((len(word) for word in t.split()), default=0)), 2.6, 0.23),
    (lambda t: np.log1p(t.count(",")), 0.9, 1.0),
    (lambda t: np.log1p(t.count(".")), 2.3, 0.67),
    (lambda t: float('"' in t or "'" in t), 0.33, 0.47),
)
PROMPT = len(COUNTS) + WAVES  # features in all


def prompt_features(texts: Sequence[str]) -> Float:
    """(n, PROMPT) float32: standardised counts, then random Fourier features of them (Rahimi & Recht 2007).

    Their mean square norm is about that of a centred sentence embedding of length 1. Deterministic.
    """
    if not texts:
        return np.zeros((0, PROMPT), np.float32)
    short = [text[:READ] for text in texts]
    counts = np.array([[(count(t) - mean) / spread for count, mean, spread in COUNTS] for t in short])
    counts = np.clip(counts, -FARTHEST, FARTHEST)
    frequencies, phases = _waves()
    waves = np.cos(counts @ frequencies + phases) * np.sqrt(2 * WAVES_PART / WAVES)
    return np.hstack([counts / np.sqrt(len(COUNTS)), waves]).astype(np.float32)


@cache
def _waves() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies (counts, WAVES) and phases (WAVES,), the same in every process."""
    generator = np.random.default_rng(0)
    return (
        generator.normal(scale=FREQUENCY, size=(len(COUNTS), WAVES)),
        generator.uniform(0, 2 * np.pi, WAVES),
    )


def _count(text: str, kind: Callable[[str], bool]) -> int:
    return sum(map(kind, text))


def _share(text: str, kind: Callable[[str], bool]) -> float:
    return _count(text, kind) / max(1, len(text))


def _is_operator(char: str) -> bool:
    return char in "+-*/=^<>%$\\"


def _is_foreign(char: str) -> bool:
    return ord(char) > 127
