"""The loop without models: people ask, a gate whose cards are wrong chooses, they rate, it learns or is refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from worlds import Rows, Town, embed_texts, expert, gate_spec, rated, request

from multimoe.checkpoint import TABLES, TENSORS, Manifest, Registry
from multimoe.decision import Policy
from multimoe.errors import CheckpointError, TooLittleData
from multimoe.feedback import FeedbackLog, Rated, Rating
from multimoe.gate import Gate
from multimoe.golden import Golden
from multimoe.journal import Step
from multimoe.quality import Learned
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
    return Town(4, RIGHT).live(gate(), 600)


def trained(log: RatingLog, registry: Registry, over: Gate | None = None, **named) -> Manifest:
    """What came of a retraining; proven better, it serves."""
    told = retrain(log, registry, over or gate(), now=NOW, seed=0, progress=lambda share, doing: None, **named)
    if told.proven:
        registry.take(Step(at=NOW, action="promoted", version=told.version))
    return registry.manifest(told.version)


def serving(registry: Registry) -> Gate:
    return gate().with_learned(registry.load(registry.champion()), registry.champion())


def one_loud(town: Town, share: float, n: int = 400) -> list[Rated]:
    """Four people who rate by chance, and one who knows what is right and gives a `share` of the ratings."""
    chance = Town(7, RIGHT, good=0.5, bad=0.5)
    generator = np.random.default_rng(3)
    rows = []
    for number in range(n):
        loud = bool(generator.random() < share)
        one = (town if loud else chance).live(gate(), 1)[0]
        name = "loud" if loud else f"u{number % 4}"
        rating = one.ratings[0].model_copy(update={"user": name, "completion_id": f"c{number}"})
        created = NOW - timedelta(minutes=n - number)
        interaction = one.interaction.model_copy(update={"id": f"c{number}", "created": created})
        rows.append(Rated(interaction=interaction, ratings=(rating,)))
    return rows


def liked(number: int, name: str) -> Rating:
    return Rating(completion_id=f"c{number}", score=1.0, user="u1", target="expert", expert=name)


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
    assert (manifest.learned_until - manifest.since).total_seconds() == 515 * 60
    assert manifest.counts == {"answers": 600, "fitted": 516, "judged": 420, "raters": 40, "golden": 0}
    assert manifest.experts == ("a", "b", "c")
    assert manifest.encoder_revisions == {"text": "t1"}
    assert 0 <= manifest.scores["calibration_error"] < 0.15
    assert manifest.scores["largest_rater_share"] == pytest.approx(1 / 40, rel=0.03)  # topics cut a few
    assert manifest.settings["seed"] == 0


def test_random_ratings_do_not_promote_in_5_of_6_towns(tmp_path):
    promoted = []
    for seed in range(6):
        town = Town(seed, RIGHT, good=0.5, bad=0.5)
        promoted.append(trained(Rows(town.live(gate(), 200)), Registry(tmp_path / f"{seed}")).promoted)

    assert sum(promoted) <= 1


def test_a_candidate_that_is_not_better_is_written_and_says_why(registry):
    manifest = trained(Rows(Town(3, RIGHT, good=0.5, bad=0.5).live(gate(), 200)), registry)

    assert not manifest.promoted
    assert registry.versions() == (0, 1)
    assert registry.champion() == 0
    assert manifest.reason.startswith("not proven better")


def test_it_promotes_nothing_itself(registry, lived):
    manifest = retrain(Rows(lived), registry, gate(), now=NOW, seed=0, progress=lambda share, doing: None)

    assert manifest.proven
    assert manifest.reason.startswith("better")
    assert (manifest.promoted, registry.champion()) == (False, 0)


def test_the_next_generation_is_judged_against_the_champion_and_a_rollback_returns_to_it(registry, lived):
    trained(Rows(lived), registry)
    changed = Town(2, {"red": "c", "blue": "a", "green": "b"})  # tastes change
    manifest = trained(Rows(changed.live(serving(registry), 600)), registry)

    assert manifest.parent == 1
    assert manifest.promoted
    assert registry.champion() == 2
    assert registry.take(Step(at=NOW, action="rolled back", version=1)).champion == 1
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


def test_where_every_answer_is_rated_the_same_the_reason_says_so(registry):
    manifest = trained(Rows(Town(1, RIGHT, good=1.0, bad=1.0).live(gate(), 200)), registry)

    assert (manifest.outcome, manifest.proven) == ("not proven", False)
    assert "later answers have the same rating" in manifest.reason


def test_one_rating_teaches_nothing_and_promotes_nothing(registry):
    with pytest.raises(TooLittleData, match="no rating is about an expert"):
        trained(Rows(Town(1, RIGHT).live(gate(), 1)), registry, min_ratings=1)
    assert registry.versions() == (0,)


@pytest.mark.parametrize("table", [*TABLES, "slope"])
def test_a_fit_that_gives_no_numbers_is_neither_written_nor_promoted(registry, lived, monkeypatch, table):
    sound = Learned().rows(["a", "b", "c"])
    broken = replace(sound, **{table: np.full_like(getattr(sound, table), np.nan)})
    monkeypatch.setattr("multimoe.holdouts.fit", lambda examples, gate: broken)

    with pytest.raises(CheckpointError, match="not finite, so no version was written"):
        trained(Rows(lived[:100]), registry)
    assert registry.versions() == (0,)


def test_a_gate_that_is_worse_on_purpose_is_written_and_not_promoted(registry, monkeypatch):
    own = np.array([[9.0, 0, 0, 0], [-9.0, 0, 0, 0], [-9.0, 0, 0, 0]])  # all to one, where every card is right
    worse = replace(Learned().rows(["a", "b", "c"]), own=own)
    monkeypatch.setattr("multimoe.holdouts.fit", lambda examples, gate: worse)

    manifest = trained(Rows(Town(1, {"red": "a", "blue": "b", "green": "c"}).live(gate(), 300)), registry)

    assert (manifest.outcome, manifest.promoted) == ("not proven", False)
    assert manifest.metrics["gain_doubly_robust"].high < 0


def test_a_mix_that_drifts_further_than_agreed_is_refused_though_it_is_better(registry, lived):
    strict = gate(promotion={"load_drift": 0.05})
    town = Town(1, {"red": "b", "blue": "b", "green": "b"})

    manifest = trained(Rows(town.live(strict, 600)), registry, strict)

    assert (manifest.outcome, manifest.promoted) == ("refused", False)
    assert "share of the load by" in manifest.reason
    assert manifest.metrics["gain_doubly_robust"].low > 0
    assert [check.name for check in manifest.checks if not check.passed] == ["load"]


def test_golden_requests_are_not_learned_from_and_refuse_who_fails_them(registry, lived):
    golden = [Golden("red", request(text="red"), ("a",))]  # what people's ratings say is wrong
    leaked = [rated(900 + i, golden[0].embedding, None, liked(900 + i, "a")) for i in range(300)]

    manifest = trained(Rows([*lived, *leaked]), registry, golden=golden)

    assert (manifest.outcome, manifest.promoted) == ("refused", False)
    assert "fails 1 of 1 golden requests: 'red' does not go to a" in manifest.reason
    assert manifest.counts["golden"] == 300
    assert manifest.counts["answers"] == 600


def test_a_golden_request_that_is_answered_stands_in_nobodys_way(registry, lived):
    manifest = trained(Rows(lived), registry, golden=[Golden("red", request(text="red"), ("b",))])

    assert manifest.promoted


def test_where_one_rater_alone_makes_the_difference_a_person_decides(registry):
    manifest = trained(Rows(one_loud(Town(1, RIGHT), share=0.6)), registry)

    assert (manifest.outcome, manifest.proven, manifest.promoted) == ("held", False, False)
    assert manifest.reason.startswith("held for a person to decide: without the heaviest rater it is not proven better")
    assert manifest.metrics["gain_doubly_robust"].low > 0


def test_where_several_raters_agree_nobody_need_decide(registry, lived):
    manifest = trained(Rows(lived), registry)

    assert "raters" in {check.name for check in manifest.checks if check.passed}


def test_what_the_champion_learned_from_judges_nobody(registry, lived):
    first = trained(Rows(lived), registry)
    again = trained(Rows(lived), registry)

    assert first.promoted
    assert again.counts["fitted"] >= first.counts["fitted"]
    assert again.counts["judged"] <= 600 - first.counts["fitted"]


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
