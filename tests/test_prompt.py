"""What is counted in a prompt."""

import time

import numpy as np
import pytest

from multimoe.encoder.prompt import COUNTS, PROMPT, prompt_features


def test_every_prompt_gives_finite_numbers_of_usual_size():
    odd = ["", " ", "\n" * 500, "?", "a" * 100_000, "\x00", "日本語の質問", "=+-*/" * 99, "(A) x\n(B) y", "🙂"]
    features = prompt_features(odd)

    assert features.shape == (len(odd), PROMPT)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert (features**2).sum(axis=1).max() < 16


def test_no_prompt_at_all_is_an_empty_table():
    assert prompt_features([]).shape == (0, PROMPT)


def test_the_same_prompt_alone_or_among_others_is_the_same():
    assert np.array_equal(prompt_features(["What is 2 + 2?", "x"])[0], prompt_features(["What is 2 + 2?"])[0])


@pytest.mark.parametrize(
    ("plain", "marked"),
    [
        ("Tell me why", "Tell me why " * 50),
        ("What is it", "What is it?"),
        ("Name two plus two", "Name 2 + 2 = 4"),
        ("def is a word", "def f(x):\n    return x"),
        ("Which is true?", "Which is not true?"),
        ("One of these", "One of these\nA. x\nB. y\nC. z\n"),
    ],
)
def test_what_tells_prompts_apart_is_seen(plain, marked):
    a, b = prompt_features([plain, marked])

    assert np.abs(a[: len(COUNTS)] - b[: len(COUNTS)]).max() > 0.1


def test_a_long_or_hostile_prompt_takes_no_longer_than_a_page():
    """A pattern that tried every blank line again from every other took minutes for these."""
    began = time.process_time()
    prompt_features(["\n" * 100_000, " " * 100_000, "(" * 100_000, "\n(A" * 30_000])

    assert time.process_time() - began < 2
