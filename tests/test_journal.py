from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import pytest

from multimoe.errors import CheckpointError, Conflict
from multimoe.journal import Journal, Standing, Step, Trial

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "gates" / "journal.jsonl")


def step(action: str, version: int, **told: object) -> Step:
    return Step.model_validate({"at": NOW, "action": action, "version": version, **told})


def test_version_0_is_champion_before_anything_happened(journal):
    assert journal.champions() == (0,)


def test_the_last_promoted_version_is_champion(journal):
    journal.take(step("promoted", 1))
    journal.take(step("promoted", 4))

    assert journal.champions() == (0, 1, 4)


def test_rolling_back_twice_goes_two_back_and_the_history_stays(journal):
    journal.take(step("promoted", 1))
    journal.take(step("promoted", 2))

    assert journal.take(step("rolled back", 1)).champion == 1
    assert journal.take(step("rolled back", 0)).champion == 0
    assert journal.champions() == (0,)
    assert [(s.action, s.version) for s in journal.steps()] == [
        ("promoted", 1),
        ("promoted", 2),
        ("rolled back", 1),
        ("rolled back", 0),
    ]


def test_nothing_lies_before_version_0(journal):
    with pytest.raises(Conflict, match="no champion before"):
        journal.take(step("rolled back", 0))


def test_promoting_the_champion_again_changes_nothing(journal):
    journal.take(step("promoted", 1))
    journal.take(step("promoted", 1))

    assert len(journal.steps()) == 1


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_a_line_torn_by_a_power_cut_never_happened(journal, kept):
    journal.take(step("promoted", 1))
    whole = journal.path.read_bytes()
    journal.take(step("promoted", 2))
    journal.path.write_bytes(whole + journal.path.read_bytes()[len(whole) :][:kept])

    assert journal.champions() == (0, 1)
    journal.take(step("promoted", 3))
    assert journal.champions() == (0, 1, 3)


def test_a_damaged_journal_is_refused(journal):
    journal.take(step("promoted", 1))
    journal.path.write_bytes(b"{}\n" + journal.path.read_bytes())

    with pytest.raises(CheckpointError, match="damaged"):
        journal.champions()


# --- trials ---


def test_a_trial_goes_through_shadow_and_canary_to_champion(journal):
    assert journal.take(step("shadow", 3)).trial == Trial(version=3, share=0.0, since=NOW)
    assert journal.take(step("canary", 3, share=0.2)).trial.stage == "canary"
    assert journal.take(step("promoted", 3, watched=True)) == Standing(champions=(0, 3), watched=NOW)
    assert journal.take(step("confirmed", 3)) == journal.standing() == Standing(champions=(0, 3))


@pytest.mark.parametrize(
    "illegal",
    [
        step("shadow", 2),  # champion
        step("withdrawn", 3),  # not on trial
        step("confirmed", 2),  # not watched
        step("rolled back", 0),  # the one before is 1
    ],
)
def test_a_step_that_leads_nowhere_is_refused_and_not_written(journal, illegal):
    for version in (1, 2):
        journal.take(step("promoted", version))
    with pytest.raises(Conflict):
        journal.take(illegal)
    assert len(journal.steps()) == 2


def test_a_step_decided_on_an_older_standing_is_refused(journal):
    seen = journal.standing()
    journal.take(step("canary", 3, share=0.1))
    with pytest.raises(Conflict, match="meanwhile gate 0 serves and gate 3 is in canary"):
        journal.take(step("promoted", 4), expected=seen)


def test_a_change_of_champion_ends_the_trial_against_the_former_one(journal):
    journal.take(step("canary", 3, share=0.1))
    journal.take(step("promoted", 4))
    assert journal.standing() == Standing(champions=(0, 4))


def test_every_version_has_a_place_with_the_reason_why(journal):
    journal.take(step("promoted", 1, reason="better"))
    journal.take(step("canary", 2, share=0.1))
    journal.take(step("withdrawn", 2, reason="it earned less"))
    journal.take(step("shadow", 3))
    journal.take(step("shadow", 4))
    journal.take(step("promoted", 5, watched=True))
    journal.take(step("rolled back", 1, reason="5 earned less"))
    places = {version: (place.stage, place.reason) for version, place in journal.places().items()}
    assert places == {
        0: ("former", "gate 1 became champion"),
        1: ("champion", "back from gate 5: 5 earned less"),
        2: ("withdrawn", "it earned less"),
        3: ("withdrawn", "gate 4 took its place"),
        4: ("withdrawn", "gate 5 took its place"),
        5: ("rolled back", "back to gate 1: 5 earned less"),
    }


def test_a_journal_of_before_there_were_trials_is_read(journal):
    journal.path.parent.mkdir(parents=True)
    journal.path.write_text('{"at":"2026-11-01T00:00:00Z","action":"promoted","version":2}\n')
    assert journal.standing() == Standing(champions=(0, 2))


def _contend(path: Path, version: int) -> bool:
    try:
        Journal(path).take(step("promoted", version), expected=Standing())
    except Conflict:
        return False
    return True


def test_of_many_processes_that_promote_against_one_champion_exactly_one_wins(journal):
    with get_context("spawn").Pool(3) as pool:
        won = pool.starmap(_contend, [(journal.path, version) for version in range(1, 13)])

    assert sum(won) == 1
    assert len(journal.steps()) == 1


def test_a_disk_that_takes_no_step_is_trouble_of_ours_with_a_name(journal, monkeypatch):
    journal.take(step("promoted", 1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multimoe.journal.os.fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        journal.take(step("promoted", 2))
