from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import pytest

from multimoe.errors import CheckpointError, Conflict
from multimoe.journal import Journal

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "gates" / "journal.jsonl")


def test_version_0_is_champion_before_anything_happened(journal):
    assert journal.champions() == (0,)


def test_the_last_promoted_version_is_champion(journal):
    journal.promote(1, NOW)
    journal.promote(4, NOW)

    assert journal.champions() == (0, 1, 4)


def test_rolling_back_twice_goes_two_back_and_the_history_stays(journal):
    journal.promote(1, NOW)
    journal.promote(2, NOW)

    assert journal.rollback(NOW, expected=2) == 1
    assert journal.rollback(NOW, expected=1) == 0
    assert journal.champions() == (0,)
    assert [(s.action, s.version) for s in journal.steps()] == [
        ("promoted", 1),
        ("promoted", 2),
        ("rolled back", 1),
        ("rolled back", 0),
    ]


def test_nothing_lies_before_version_0(journal):
    with pytest.raises(Conflict, match="no champion before"):
        journal.rollback(NOW, expected=0)


def test_a_candidate_judged_against_a_former_champion_is_refused(journal):
    journal.promote(1, NOW)

    with pytest.raises(Conflict, match="gate 2 was judged against 0, but 1 serves now"):
        journal.promote(2, NOW, expected=0)
    assert journal.champions()[-1] == 1


def test_promoting_the_champion_again_changes_nothing(journal):
    journal.promote(1, NOW)
    journal.promote(1, NOW)

    assert len(journal.steps()) == 1


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_a_line_torn_by_a_power_cut_never_happened(journal, kept):
    journal.promote(1, NOW)
    whole = journal.path.read_bytes()
    journal.promote(2, NOW)
    journal.path.write_bytes(whole + journal.path.read_bytes()[len(whole) :][:kept])

    assert journal.champions() == (0, 1)
    journal.promote(3, NOW)
    assert journal.champions() == (0, 1, 3)


def test_a_damaged_journal_is_refused(journal):
    journal.promote(1, NOW)
    journal.path.write_bytes(b"{}\n" + journal.path.read_bytes())

    with pytest.raises(CheckpointError, match="damaged"):
        journal.champions()


def _contend(path: Path, version: int) -> bool:
    try:
        Journal(path).promote(version, NOW, expected=0)
    except Conflict:
        return False
    return True


def test_of_many_processes_that_promote_against_one_champion_exactly_one_wins(journal):
    with get_context("spawn").Pool(3) as pool:
        won = pool.starmap(_contend, [(journal.path, version) for version in range(1, 13)])

    assert sum(won) == 1
    assert len(journal.steps()) == 1
