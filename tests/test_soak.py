"""What finds a leak in tests/drills/soak.py, on readings whose growth is known."""

import random

import pytest
from drills.soak import A_REQUEST, Reading, growing, line


def readings(leak: float, noise: float = 300_000.0, number: int = 40) -> list[Reading]:
    """Of two processes: one steady, one that grows by `leak` bytes a request; both with `noise`."""
    chance = random.Random(1)
    return [
        Reading(
            at=3.0 * n,
            asked=100 * n,
            memory={
                "steady 1": 1e8 + chance.gauss(0, noise),
                "other 2": 1e8 + leak * 100 * n + chance.gauss(0, noise),
                **({"late 3": 1e8} if n > 5 else {}),
            },
        )
        for n in range(number)
    ]


def test_a_leak_is_found_where_it_is() -> None:
    found = growing(readings(leak=100_000))
    assert found["other 2"].slope == pytest.approx(100_000, rel=0.01)
    assert found["other 2"].low > A_REQUEST
    assert found["steady 1"].low < A_REQUEST


def test_noise_is_no_leak() -> None:
    assert all(one.low < A_REQUEST for one in growing(readings(leak=0)).values())


def test_a_process_that_came_later_is_not_judged() -> None:
    assert set(growing(readings(leak=0))) == {"steady 1", "other 2"}


def test_one_jump_is_no_slope() -> None:
    """As of a cache that fills once."""
    assert line([float(x) for x in range(40)], [0.0] * 20 + [0.0] + [0.0] * 19).low == 0
    assert line([float(x) for x in range(40)], [0.0] * 38 + [1e9] * 2).low == 0
