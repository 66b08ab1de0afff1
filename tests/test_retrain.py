"""The loop without models: people ask, a gate whose cards are wrong chooses, they rate, it learns or is refused."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from worlds import Rows, Town, embed_texts, expert, gate_spec

from multimoe.checkpoint import TENSORS, Manifest, Registry
from multimoe.decision import Policy
from multimoe.errors import Conflict, TooLittleData
from multimoe.feedback import FeedbackLog, Rated
from multimoe.gate import Gate
from multimoe.retrain import RatingLog, retrain

NOW = datetime(2026, 11, 22, tzinfo=UTC)
EXPERTS = [expert("a", text=("red",)), expert("b", text=("blue",)), expert("c", text=("green",))]
RIGHT = {"red": "b", "blue": "c", "green": "a"}  # every card points to the wrong one
GREEDY = Policy(explore=False)


def gate(**spec) -> Gate:
    return Gate.from_cards(EXPERTS, embed_texts, gate_spec(**{"top_k": 1, "explore": 0.3, **spec}))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "gates")


@pytest.fixture(scope="module")
def lived() -> list[Rated]:
    """600 rated answers of a town whose cards are all wrong."""
    return Town(1, RIGHT).live(gate(), 600)


def trained(log: RatingLog, registry: Registry, over: Gate | None = None, **named) -> Manifest:
    return retrain(log, registry, over or gate(), now=NOW, seed=0, progress=lambda share, doing: None, **named)


def serving(registry: Registry) -> Gate:
    return gate().with_learned(registry.load(registry.champion()), registry.champion())


def rightly_routed(town: Town, served: Gate, n: int = 150) -> float:
    asked = [town.ask() for _ in range(n)]
    return sum(served.decide(x, GREEDY, 0).chosen[0].expert == RIGHT[kind] for kind, x in asked) / n


def test_600_ratings_with_exploration_turn_a_wrong_gate_into_a_right_one(registry, lived):
    town = Town(5, RIGHT)
    before = rightly_routed(town, gate())

    manifest = trained(Rows(lived), registry)

    assert before < 0.1
    assert manifest.promoted
    assert registry.champion() == manifest.version == 1
    assert rightly_routed(town, serving(registry)) > 0.95
    assert manifest.metrics["gain_doubly_robust"].low > 0
    assert manifest.metrics["gain_snips"].low > 0
    assert manifest.reason.startswith("better: +")


def test_a_few_hundred_answers_drawn_on_purpose_are_enough(registry):
    town = Town(2, RIGHT)

    manifest = trained(Rows(town.live(gate(explore=0.1), 300, Policy(explore=True))), registry, gate(explore=0.1))

    assert manifest.promoted
    assert rightly_routed(town, serving(registry)) > 0.95


def test_the_manifest_tells_the_whole_story(registry, lived):
    manifest = trained(Rows(lived), registry)

    assert (manifest.parent, manifest.created, manifest.ratings) == (0, NOW, 600)
    assert manifest.since is not None
    assert manifest.until is not None
    assert (manifest.until - manifest.since).total_seconds() == 599 * 60
    assert manifest.counts == {"answers": 600, "fitted": 420, "judged": 180, "raters": 40}
    assert manifest.experts == ("a", "b", "c")
    assert manifest.encoder_revisions == {"text": "t1"}
    assert 0 <= manifest.scores["calibration_error"] < 0.15
    assert manifest.scores["largest_rater_share"] == pytest.approx(1 / 40)
    assert manifest.settings["seed"] == 0


def test_random_ratings_do_not_promote_in_19_of_20_towns(tmp_path):
    promoted = []
    for seed in range(20):
        town = Town(seed, RIGHT, good=0.5, bad=0.5)
        promoted.append(trained(Rows(town.live(gate(), 200)), Registry(tmp_path / f"{seed}")).promoted)

    assert sum(promoted) <= 1


def test_a_candidate_that_is_not_better_is_written_and_says_why(registry):
    manifest = trained(Rows(Town(3, RIGHT, good=0.5, bad=0.5).live(gate(), 200)), registry)

    assert not manifest.promoted
    assert registry.versions() == (0, 1)
    assert registry.champion() == 0
    assert manifest.reason.startswith(("not proven better", "60 logged choices are worth"))


def test_it_may_be_asked_not_to_promote(registry, lived):
    manifest = trained(Rows(lived), registry, promote=False)

    assert manifest.reason.startswith("better")
    assert not manifest.promoted
    assert registry.champion() == 0


def test_the_next_generation_is_judged_against_the_champion_and_a_rollback_returns_to_it(registry, lived):
    trained(Rows(lived), registry)
    changed = Town(2, {"red": "c", "blue": "a", "green": "b"})  # tastes change
    manifest = trained(Rows(changed.live(serving(registry), 600)), registry)

    assert manifest.parent == 1
    assert manifest.promoted
    assert registry.champion() == 2
    assert registry.rollback(NOW) == 1
    assert rightly_routed(Town(5, RIGHT), serving(registry)) > 0.95


def test_too_few_ratings_say_how_many_are_missing(registry):
    with pytest.raises(TooLittleData, match="12 ratings can be learned from, 30 are needed: 18 more"):
        trained(Rows(Town(1, RIGHT).live(gate(), 12)), registry)
    assert registry.versions() == (0,)


def test_an_empty_log_is_too_little(registry):
    with pytest.raises(TooLittleData, match="30 more"):
        trained(Rows([]), registry)


def test_all_the_same_rating_promotes_nothing(registry):
    manifest = trained(Rows(Town(1, RIGHT, good=1.0, bad=1.0).live(gate(), 200)), registry)

    assert not manifest.promoted


def test_a_gate_promoted_meanwhile_wins_and_the_late_one_is_kept(registry, lived):
    early = trained(Rows(lived), registry, promote=False)

    def interrupt(share: float, doing: str) -> None:
        if doing.startswith("judging"):
            registry.promote(early.version, NOW)

    with pytest.raises(Conflict, match="gate 2 was judged against 0, but 1 serves now"):
        retrain(Rows(lived), registry, gate(), now=NOW, seed=0, progress=interrupt)
    assert registry.champion() == 1
    assert registry.versions() == (0, 1, 2)


def test_a_damaged_champion_is_replaced_by_a_good_one(registry, lived, caplog):
    trained(Rows(lived), registry)
    (registry.root / "0001" / TENSORS).write_bytes(b"junk")

    manifest = trained(Rows(lived), registry)

    assert (manifest.version, manifest.parent, manifest.promoted) == (2, 0, True)
    assert "gate version 1 cannot serve" in caplog.text


def test_after_a_change_of_encoder_it_starts_again_from_the_cards(registry, lived):
    trained(Rows(lived), registry)
    newer = Town(1, RIGHT, revisions={"text": "t2"})

    manifest = trained(Rows([*lived, *newer.live(gate(), 100)]), registry)

    assert (manifest.parent, manifest.ratings) == (0, 100)
    assert manifest.encoder_revisions == {"text": "t2"}


def test_a_rater_who_floods_the_newest_part_of_the_log_does_not_judge_alone(registry, lived):
    flood = Town(3, RIGHT, good=0.0, bad=1.0).live(gate(), 600, raters=1)
    flood = [
        row.model_copy(update={"ratings": (row.ratings[0].model_copy(update={"user": "flood"}),)}) for row in flood
    ]

    manifest = trained(Rows([*lived, *flood]), registry)

    assert manifest.promoted
    assert manifest.scores["largest_rater_share"] < 0.06
    assert rightly_routed(Town(5, RIGHT), serving(registry)) > 0.95


def test_progress_only_rises_and_ends_with_the_verdict(registry):
    told: list[tuple[float, str]] = []

    manifest = retrain(
        Rows(Town(1, RIGHT).live(gate(), 100)),
        registry,
        gate(),
        now=NOW,
        seed=0,
        progress=lambda *said: told.append(said),
    )

    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert told[0][0] == 0
    assert told[-1] == (1.0, manifest.reason)


def test_it_learns_from_the_real_log_as_from_a_list(tmp_path, registry):
    rows = Town(1, RIGHT).live(gate(), 120)
    with FeedbackLog.open(f"sqlite:///{tmp_path}/log.db") as log:
        for row in rows:
            log.record(row.interaction)
            for rating in row.ratings:
                log.rate(rating)
        from_log = trained(log, registry)
    from_list = trained(Rows(rows), registry)

    assert from_log.sha256 == from_list.sha256
    assert from_log.metrics == from_list.metrics
