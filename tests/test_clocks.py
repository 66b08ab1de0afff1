"""Wall clocks that jump, packages that are too old: tests/drills/clocks.py at a small scale."""

from drills.clocks import jumps, supply


def test_a_clock_that_jumps_or_stands_still_refuses_nobody_and_shows_in_no_duration() -> None:
    rows = list(jumps("quick"))
    assert len(rows) > 10
    assert [row for row in rows if not row.met] == []
    assert any(row.control for row in rows)


def test_no_package_is_older_than_the_first_without_a_known_hole() -> None:
    older, decoder, compromised = supply("quick")
    assert older.met, older
    assert compromised.met, compromised
    assert not decoder.met, "pillow 13 may be had: raise its floor in drills/clocks.py"
