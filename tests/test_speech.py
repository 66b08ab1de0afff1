"""Recordings cut in the pauses, into pieces that a recogniser hears at once."""

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimoe.speech import PAUSE, pieces

Spans = list[tuple[float, float]]


@pytest.mark.parametrize(
    ("spoken", "cut"),
    [
        ([], []),
        ([(1, 3)], [(1, 3)]),
        ([(0, 3), (3.2, 9)], [(0, 9)]),  # fits, and the pause is short
        ([(0, 1), (5, 6)], [(0, 1), (5, 6)]),  # fits, but nobody speaks for long
        ([(0, 6), (6.2, 8), (8.9, 12)], [(0, 8), (8.9, 12)]),  # too long: the widest pause
        ([(0, 25)], [(0, 25)]),  # no pause to cut in
    ],
)
def test_speech_is_cut_at_the_widest_pause(spoken: Spans, cut: Spans) -> None:
    assert list(pieces(spoken, longest=10)) == cut


@given(st.lists(st.tuples(st.floats(0.3, 12), st.floats(0.1, 3)), max_size=60))
def test_pieces_hold_all_speech_in_order_and_none_is_too_long(lengths: Spans) -> None:
    spoken, now = [], 0.0
    for speech, pause in lengths:
        spoken.append((now, now + speech))
        now += speech + pause
    found = list(pieces(spoken, longest=10))
    assert found == sorted(found)
    inside = [[span for span in spoken if first <= span[0] and span[1] <= last] for first, last in found]
    assert list(chain.from_iterable(inside)) == spoken
    for (first, last), spans in zip(found, inside, strict=True):
        assert last - first <= 10 or len(spans) == 1
        assert all(after[0] - before[1] < PAUSE for before, after in pairwise(spans))
