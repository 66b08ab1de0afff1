import time
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from worlds import City, citizens

from multimoe.examples import Example, read
from multimoe.forgetting import half_life, recency


def lived(seed: int, n: int, drift: bool) -> tuple[Example, ...]:
    """In the second half, if anything drifts, everybody's favourite is another expert."""
    city = City(seed)
    rows = city.live(citizens(60), n // 2, seed=1, until=0.5)
    if drift:
        city.quality[:, :-1] = np.roll(city.quality[:, :-1], 1, axis=1)
    return read(rows + city.live(citizens(60), n // 2, seed=2, since=0.5))


def test_nothing_is_forgotten_where_nothing_changes():
    assert [half_life(lived(seed, 1500, drift=False)) for seed in range(4)] == [None] * 4


def test_after_a_change_of_taste_what_was_before_soon_counts_little():
    for seed in range(2):
        examples = lived(seed, 1500, drift=True)
        found = half_life(examples)

        assert found is not None
        assert found < timedelta(days=8)  # of 30
        assert recency(examples, found)[: len(examples) // 3].mean() < 0.25


def test_an_example_counts_half_after_a_half_life():
    examples = lived(0, 60, drift=False)
    newest = examples[-1].created
    weights = recency(examples, timedelta(days=3))

    assert weights[-1] == 1
    assert weights.tolist() == pytest.approx([0.5 ** ((newest - e.created) / timedelta(days=3)) for e in examples])
    assert recency(examples, None).tolist() == [1.0] * 60


def test_order_of_arrival_does_not_matter_only_the_time_of_the_request():
    examples = lived(0, 60, drift=False)
    late = [*examples[10:], *examples[:10]]  # the oldest were rated last

    assert sorted(recency(late, timedelta(days=3))) == pytest.approx(sorted(recency(examples, timedelta(days=3))))


@pytest.mark.parametrize("n", [0, 1, 50])
def test_of_a_short_log_nothing_is_said(n):
    assert half_life(lived(0, 60, drift=True)[:n]) is None


def test_a_log_of_one_moment_has_no_age():
    examples = lived(0, 400, drift=False)

    assert half_life([replace(example, created=examples[0].created) for example in examples]) is None


def test_it_takes_time_in_proportion_to_the_log():
    examples = lived(0, 1000, drift=False)
    many = [
        replace(example, created=example.created + k * timedelta(days=30)) for k in range(20) for example in examples
    ]
    started = time.process_time()
    half_life(many)

    assert time.process_time() - started < 5
