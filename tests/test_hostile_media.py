"""Bombs, odd files, fuzz, leaks and dying decoders at the scale of every day; `make drill` runs the same for longer."""

import pytest
from drills.media import DRILLS, Drill


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.__name__)
def test_hostile_media_costs_nobody_anything(drill: Drill):
    rows = list(drill("quick"))
    assert rows
    assert [row for row in rows if not row.met] == []
