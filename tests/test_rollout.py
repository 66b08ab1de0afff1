from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median

import numpy as np
import pytest

from multimoe.config import RolloutSpec
from multimoe.decision import Choice, Considered, Contest, Decision, Policy
from multimoe.evidence import (
    PER_RATER,
    Earned,
    Look,
    Pair,
    Seen,
    advantage,
    earned,
    earned_before,
    heard,
    look,
    rewards,
    seen,
)
from multimoe.feedback import Interaction, Rated, Rating
from multimoe.journal import Standing, Step, Trial
from multimoe.offpolicy import Estimate
from multimoe.rollout import first_step, next_step, still_stands
from multimoe.sequential import Bounds, passes

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SPEC = RolloutSpec(shadow_requests=20, canary_share=0.2, canary_ratings=100, watch_ratings=50, days=7)
SHADOW = Standing(champions=(0, 3), trial=Trial(version=5, share=0.0, since=NOW))
CANARY = Standing(champions=(0, 3), trial=Trial(version=5, share=0.2, since=NOW))
WATCHED = Standing(champions=(0, 3, 5), watched=NOW)
PROOF = Estimate(value=0.1, low=0.02, high=0.18, effective_sample_size=80, n=200)


# --- the statistics, in worlds of known truth ---


def ratings(seed: int, n: int, share: float, differ: float, gain: float, usual: float = 0.7) -> tuple[np.ndarray, ...]:
    """Scores (n,) and ratios (n,) of a canary that chooses otherwise on a part of requests and earns `gain` more."""
    generator = np.random.default_rng(seed)
    other, mine = generator.random(n) < differ, generator.random(n) < share
    better = generator.random(n) < np.where(other & mine, usual + gain / differ, usual)
    return better.astype(float), np.where(other, np.where(mine, 1 / share, -1 / (1 - share)), 0.0)


def caught_after(seed: int, n: int, share: float, differ: float, gain: float) -> float:
    """Ratings until the canary is called worse; infinite where that never happens."""
    from multimoe.sequential import log_wealth

    terms, _, ceilings = advantage(*ratings(seed, n, share, differ, gain), share)
    passed = np.nonzero(log_wealth(-terms, -ceilings, 0.0) >= np.log(20))[0]
    return float(passed[0] + 1) if len(passed) else np.inf


@pytest.mark.parametrize(("share", "differ"), [(0.1, 0.3), (0.5, 1.0)])
def test_a_canary_as_good_as_the_champion_is_called_worse_in_at_most_one_run_of_twenty(share, differ):
    assert sum(caught_after(seed, 3000, share, differ, 0.0) < np.inf for seed in range(400)) <= 0.05 * 400


def test_a_canary_that_is_the_same_gate_is_never_called_worse():
    scores = np.random.default_rng(0).random(500)
    terms, floors, ceilings = advantage(scores, np.zeros(500), 0.1)
    assert not passes(-terms, -ceilings, 0.0)
    assert not terms.any()
    assert (floors < 0).all()


@pytest.mark.parametrize(("share", "most"), [(0.1, 3500), (0.25, 1700), (0.5, 1500)])
def test_a_canary_five_points_worse_is_caught(share, most):
    after = [caught_after(seed, 8000, share, 0.3, -0.05) for seed in range(60)]
    assert median(after) < most
    assert max(after) < np.inf


def test_a_far_worse_canary_is_caught_soon():
    assert median(caught_after(seed, 500, 0.1, 0.5, -0.3) for seed in range(40)) < 200


def test_terms_stay_within_their_bounds_and_average_to_the_gain():
    for seed in range(20):
        scores, ratios = ratings(seed, 1000, 0.2, 0.6, -0.1)
        terms, floors, ceilings = advantage(scores, ratios, 0.2)
        assert (floors - 1e-12 <= terms).all()
        assert (terms <= ceilings + 1e-12).all()
    many = np.concatenate([advantage(*ratings(seed, 2000, 0.2, 0.6, -0.1), 0.2)[0] for seed in range(50)])
    assert many.mean() == pytest.approx(-0.1, abs=0.02)


# --- reading the log ---


class Log:
    def __init__(self, *rated: Rated) -> None:
        self.rows = rated

    def rated(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Rated]:
        inside = (r for r in self.rows if since is None or r.interaction.created >= since)
        return (r for r in inside if r.ratings and (until is None or r.interaction.created < until))

    def interactions(
        self, limit: int = 50, before: str | None = None, expert: str | None = None, since: datetime | None = None
    ) -> Sequence[Interaction]:
        return [r.interaction for r in self.rows if since is None or r.interaction.created >= since][:limit]


def answer(
    number: int, gate: int, *scores: float, contest: Contest | None = None, user: str | None = None,
    policy: Policy | None = None, delay: float = 1.0,
) -> Rated:  # fmt: skip
    """Answered by `gate` in minute `number`, rated `delay` minutes later."""
    decision = Decision(
        chosen=(Choice(expert="a", probability=0.5, quality=0.5, weight=1.0),),
        considered=(Considered(expert="a", probability=0.5, quality=0.5),),
        propensity=0.5,
        explored=False,
        strategy="softmax",
        seed=1,
        gate_version=gate,
        modalities=("text",),
        policy=policy or Policy(),
        contest=contest,
    )
    at = NOW + timedelta(minutes=number)
    given = tuple(
        Rating(completion_id=f"c{number}", score=score, user=user, created=at + timedelta(minutes=delay))
        for score in scores
    )
    return Rated(interaction=Interaction(id=f"c{number}", created=at, model="m", decision=decision), ratings=given)


def both(share: float = 0.0, **told: object) -> Contest:
    usual = {"champion_chance": 0.5, "challenger_chance": 0.5, "champion_choice": ("a",), "challenger_choice": ("b",)}
    return Contest.model_validate({"champion": 3, "challenger": 5, "share": share, **usual, **told})


def test_what_both_gates_did_is_counted():
    contests = [both(gain=0.2), both(challenger_choice=("a",), gain=0.0), both(error="boom", challenger_choice=())]
    found = seen(contests, {"a": 0.01, "b": 0.03})
    assert (found.requests, found.errors, found.error) == (2, 1, "boom")
    assert (found.agreement, found.gain) == (0.5, 0.1)
    assert found.shares == {"a": Pair(champion=1.0, challenger=0.5), "b": Pair(champion=0.0, challenger=0.5)}
    assert (found.cost.champion, found.cost.challenger) == pytest.approx((0.01, 0.02))


def test_only_the_contest_that_is_on_counts():
    log = Log(
        answer(0, 3, 1.0, contest=both(0.2)),
        answer(1, 3, 1.0, contest=both(0.1)),  # an earlier share
        answer(2, 3, 1.0, contest=both(0.2, champion=0)),  # another champion
        answer(3, 3, 1.0),  # asked for by number
        answer(-5, 3, 1.0, contest=both(0.2)),  # an earlier trial
    )
    found = look(log, CANARY, SPEC, {}, [])
    assert (found.seen.requests, found.canary.ratings) == (1, 1)


def test_a_request_on_which_both_agree_says_nothing_about_either():
    agreed = [answer(i, 3, float(i % 3 == 0), contest=both(0.2)) for i in range(60)]
    found = earned(rewards(agreed), CANARY, 0.02)
    assert (found.ratings, found.gain.value) == (60, 0.0)


def test_nobody_decides_alone_however_loud():
    loud = [answer(i, 3, 0.0, contest=both(0.2), user="loud") for i in range(200)]
    others = [answer(200 + i, 3, 1.0, contest=both(0.2), user=f"u{i}") for i in range(10)]
    assert len(heard(rewards(loud + others))) == PER_RATER + 10
    assert earned(rewards(loud + others), CANARY, 0.02).ratings == PER_RATER + 10


def test_ratings_of_other_versions_take_nobody_s_place():
    before = [answer(-300 + i, 0, 0.0, user="eager") for i in range(40)]
    of_the_champion = [answer(-100 + i, 3, float(i >= 10), user="eager") for i in range(40)]
    known = earned_before(Log(*before, *of_the_champion), WATCHED, timedelta(days=30))
    assert [reward.score for reward in known] == [1.0] * PER_RATER  # the newest
    now = Log(
        *(answer(i, 3, 0.0, user="eager") for i in range(40)), *(answer(50 + i, 5, 1.0, user="eager") for i in range(9))
    )
    assert look(now, WATCHED, SPEC, {}, known).watch.ratings == 9


def test_ratings_count_in_the_order_they_were_given():
    late, soon = answer(0, 3, 1.0, delay=60), answer(5, 3, 0.0)
    assert [reward.score for reward in rewards([late, soon])] == [0.0, 1.0]


def test_several_people_s_ratings_of_one_answer_are_one_reward():
    assert [reward.score for reward in rewards([answer(0, 3, 1.0, 0.0)])] == [0.5]


def test_a_new_champion_is_held_against_what_the_one_before_earned_until_it_went():
    log = Log(
        *(answer(-100 + i, 3, 1.0) for i in range(40)),
        answer(-30, 0, 0.0),  # of another version
        answer(-20, 3, 0.0, policy=Policy(gate=3)),  # asked for by number
        answer(-1, 3, 0.0, delay=5),  # rated after it went
        *(answer(i, 5, 0.0) for i in range(30)),
    )
    before = earned_before(log, WATCHED, timedelta(days=30))
    assert [reward.score for reward in before] == [1.0] * 40
    assert before[0].at > before[-1].at
    found = look(log, WATCHED, SPEC, {}, before)
    assert (found.enough, found.watch.ratings, found.watch.gain.value) == (40, 30, -1.0)
    step = next_step(found, SPEC, None, NOW)
    assert (step.action, step.version) == ("rolled back", 3)
    assert "earned less" in step.reason


# --- the steps ---


def known(
    ratings: int = 0, value: float = 0.0, error: float = 1.0, worse: bool = False, better: bool = False
) -> Earned:
    gain = Bounds(value=value, low=-1, high=1, n=ratings)
    return Earned(ratings=ratings, gain=gain, error=error, worse=worse, no_worse=better)


def after(look: Look, spec: RolloutSpec = SPEC, proof: Estimate | None = PROOF, days: float = 0) -> str:
    step = next_step(look, spec, proof, NOW + timedelta(days=days))
    return step.action if step else "wait"


@pytest.mark.parametrize(
    ("spec", "action"),
    [
        (SPEC, "shadow"),
        (RolloutSpec(shadow_requests=0), "canary"),
        (RolloutSpec(shadow_requests=0, canary_share=0), "promoted"),
        (RolloutSpec(), "shadow"),
    ],
)
def test_a_proven_version_starts_where_the_catalog_says(spec, action):
    assert first_step(5, spec, NOW, "better").action == action


@pytest.mark.parametrize("ratings", [0, 50])
def test_a_champion_promoted_by_itself_is_watched_where_the_catalog_says_so(ratings):
    spec = RolloutSpec(shadow_requests=0, canary_share=0, watch_ratings=ratings)
    assert first_step(5, spec, NOW, "better").watched is (ratings > 0)


def test_a_shadow_becomes_a_canary_after_enough_requests_or_days():
    assert after(Look(standing=SHADOW, seen=Seen(requests=19))) == "wait"
    assert after(Look(standing=SHADOW, seen=Seen(requests=20))) == "canary"
    assert after(Look(standing=SHADOW, seen=Seen(requests=3)), days=7) == "canary"
    assert next_step(Look(standing=SHADOW, seen=Seen(requests=20)), SPEC, PROOF, NOW).share == 0.2


def test_a_shadow_is_promoted_where_there_is_no_canary():
    spec = SPEC.model_copy(update={"canary_share": 0.0})
    assert after(Look(standing=SHADOW, seen=Seen(requests=20)), spec) == "promoted"


def test_a_shadow_put_there_by_hand_waits_for_a_hand_where_nothing_else_could_tell():
    there = Look(standing=SHADOW, seen=Seen(requests=999))
    assert after(there, SPEC.model_copy(update={"shadow_requests": 0}), days=99) == "wait"
    assert after(there, SPEC.model_copy(update={"canary_share": 0.0}), proof=None, days=99) == "wait"


@pytest.mark.parametrize("standing", [SHADOW, CANARY])
def test_one_failure_to_decide_ends_the_trial(standing):
    found = Look(standing=standing, seen=Seen(requests=5, errors=1, error="boom"), canary=known())
    step = next_step(found, SPEC, PROOF, NOW)
    assert (step.action, step.version, step.reason) == ("withdrawn", 5, "it could not decide: boom")


def test_a_shadow_that_costs_too_much_is_withdrawn():
    def costs(challenger: float, champion: float = 0.01) -> str:
        cost = Pair(champion=champion, challenger=challenger)
        return after(Look(standing=SHADOW, seen=Seen(requests=20, cost=cost)))

    assert (costs(0.02), costs(0.021), costs(0.001, 0.0), costs(0.0, 0.0)) == (
        "canary",
        "withdrawn",
        "withdrawn",
        "canary",
    )


@pytest.mark.parametrize(
    ("canary", "proof", "action"),
    [
        (known(30, -0.2, 0.1, worse=True), PROOF, "withdrawn"),
        (known(30, 0.2, 0.1, better=True), None, "promoted"),
        (known(99, 0.0, 0.1), PROOF, "wait"),
        (known(100, 0.05, 0.06), PROOF, "promoted"),  # inconclusive, and the proof stands
        (known(100, -0.05, 0.06), PROOF, "withdrawn"),  # inconclusive, and it does not
        (known(100, 0.05, 0.06), None, "withdrawn"),  # nothing has ever proven it better
        (known(100, 0.0, 0.005), None, "promoted"),  # hardly any different
    ],
)
def test_what_becomes_of_a_canary(canary, proof, action):
    assert after(Look(standing=CANARY, seen=Seen(requests=500), canary=canary), proof=proof) == action


def test_a_canary_nobody_rates_ends_by_time_and_by_its_proof():
    found = Look(standing=CANARY, seen=Seen(requests=5), canary=known())
    assert (after(found, days=6), after(found, days=7)) == ("wait", "promoted")
    assert after(found, proof=None, days=7) == "withdrawn"


def test_a_proof_is_outweighed_by_a_canary_that_knows_more():
    assert still_stands(PROOF, known(10, -0.3, 0.5))
    assert not still_stands(PROOF, known(1000, -0.02, 0.01))


def test_a_watch_ends_with_enough_ratings_or_days():
    assert after(Look(standing=WATCHED, watch=known(49), enough=50)) == "wait"
    assert after(Look(standing=WATCHED, watch=known(50), enough=50)) == "confirmed"
    assert after(Look(standing=WATCHED, watch=known(3), enough=50), days=7) == "confirmed"
    assert after(Look(standing=WATCHED, watch=known(), enough=0)) == "confirmed"  # nothing to compare it with
    assert after(Look(standing=WATCHED, watch=known(20, worse=True), enough=50)) == "rolled back"


def test_a_champion_that_fails_goes_before_what_is_on_trial_against_it():
    standing = WATCHED.model_copy(update={"trial": Trial(version=6, share=0.2, since=NOW)})
    found = Look(standing=standing, seen=Seen(requests=9), canary=known(50, better=True), watch=known(20, worse=True))
    assert after(found) == "rolled back"


def test_every_step_can_be_taken_from_where_it_was_called_for():
    for standing, found in (
        (SHADOW, Look(standing=SHADOW, seen=Seen(requests=20))),
        (CANARY, Look(standing=CANARY, seen=Seen(requests=20), canary=known(30, better=True))),
        (CANARY, Look(standing=CANARY, seen=Seen(requests=20), canary=known(30, worse=True))),
        (WATCHED, Look(standing=WATCHED, watch=known(20, worse=True), enough=50)),
        (WATCHED, Look(standing=WATCHED, watch=known(50), enough=50)),
    ):
        step = next_step(found, SPEC, PROOF, NOW)
        assert isinstance(step, Step)
        standing.check(step)
        assert standing.after(step) != standing
