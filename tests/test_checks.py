"""What refuses a gate that is better on average, each with the gate beside it that is not refused."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from worlds import Town, embed_texts, expert, gate_spec, request

from multimoe.checks import calibration, golden, known_within, refusals
from multimoe.config import ExpertSpec
from multimoe.decision import Policy
from multimoe.examples import Example, read
from multimoe.gate import Gate
from multimoe.golden import Golden
from multimoe.judge import Holdout
from multimoe.quality import Learned
from multimoe.verdict import Check, Verdict

RIGHT = {"red": "a", "blue": "b", "green": "c"}
EXPERTS = [expert("a", text=("red",)), expert("b", text=("blue",)), expert("c", text=("green",), cost=0.01)]


def gate(experts: Sequence[ExpertSpec] = EXPERTS, **promotion) -> Gate:
    spec = gate_spec(top_k=1, explore=0.1, promotion=promotion)
    return Gate.from_cards(experts, embed_texts, spec)


def with_bias(champion: Gate, slope: float = 0.6, **bias: float) -> Gate:
    own = np.array([[bias.get(e.name, 0.0), 0, 0, 0] for e in champion.experts])
    learned = replace(Learned().rows([e.name for e in champion.experts]), own=own, slope=slope)
    return champion.with_learned(learned, 1)


@pytest.fixture(scope="module")
def lived() -> tuple[Example, ...]:
    return read(Town(1, RIGHT).live(gate(), 400, Policy(explore=True)))


def checked(rows: Sequence[Example], candidate: Gate, champion: Gate) -> dict[str, Check]:
    return {check.name: check for check in refusals([Holdout(rows, candidate)], champion, rows, ())}


def test_an_expert_is_known_the_better_the_more_it_was_rated(lived):
    within = known_within(lived, gate([*EXPERTS, expert("new")]))

    assert within[3] == pytest.approx(0.49)
    assert all(within[:3] < 0.1)
    assert known_within(lived[:30], gate())[0] > within[0]


def test_whoever_starves_an_expert_that_little_is_known_of_is_refused(lived):
    champion = gate([*EXPERTS, expert("new", text=("grey",))])

    check = checked(unrated_new(champion), with_bias(champion, new=-9.0), champion)["starvation"]

    assert not check.passed
    assert check.reason.startswith("starves an expert: new's share of requests it may answer falls from ")
    assert check.reason.endswith("though its quality is known only to ±0.49")


def test_an_expert_that_is_known_to_be_bad_may_be_dropped(lived):
    check = checked(lived, with_bias(gate(), a=-9.0), gate())["starvation"]

    assert check.passed


def test_an_expert_that_never_had_a_share_is_not_starved():
    champion = with_bias(gate([*EXPERTS, expert("new")]), new=-9.0)
    rows = unrated_new(champion)

    assert checked(rows, with_bias(champion, new=-9.0, b=1.0), champion)["starvation"].passed


def test_whoever_predicts_much_worse_is_refused_for_its_calibration(lived):
    wrong = calibration([Holdout(lived, with_bias(gate(), a=-3.0, b=-3.0, c=-3.0))], gate(), gate().spec.promotion)
    same = calibration([Holdout(lived, gate())], gate(), gate().spec.promotion)

    assert not wrong.passed
    assert wrong.reason.startswith("loses calibration: calibration error 0.")
    assert wrong.figures["calibration_error"] > wrong.figures["calibration_error_before"] + 0.05
    assert same.passed


def test_a_calibration_that_is_worse_by_chance_alone_is_no_reason(lived):
    few = [Holdout(lived[:12], with_bias(gate(), a=0.5, b=-0.5))]

    assert calibration(few, gate(), gate().spec.promotion).passed


def test_one_flooding_rater_cannot_make_a_gate_lose_its_calibration(lived):
    flood = [replace(row, labels=tuple(replace(label, score=0.0, rater="x") for label in row.labels)) for row in lived]
    candidate = with_bias(gate(), a=0.3, b=0.3, c=0.3)

    assert calibration([Holdout([*lived, *flood], candidate)], gate(), gate().spec.promotion).passed


def test_nothing_rated_later_says_nothing_of_calibration():
    assert calibration([Holdout([], gate())], gate(), gate().spec.promotion).passed


def test_load_that_moves_further_than_agreed_is_refused(lived):
    strict = gate(load_drift=0.2)

    moved = checked(lived, with_bias(strict, a=9.0), strict)["load"]

    assert not moved.passed
    assert moved.reason.startswith("moves a's share of the load by +")
    assert checked(lived, with_bias(strict, a=0.05), strict)["load"].passed
    assert checked(lived, with_bias(gate(), a=9.0), gate())["load"].passed


def test_a_gate_that_makes_requests_much_dearer_is_refused(lived):
    dear = checked(lived, with_bias(gate(), c=9.0), gate())["cost"]

    assert not dear.passed
    assert dear.reason.startswith("costs US$0.0")
    assert checked(lived, with_bias(gate(most_cost=9.0), c=9.0), gate(most_cost=9.0))["cost"].passed
    assert checked(lived, with_bias(gate(), a=9.0), gate())["cost"].passed


def test_golden_requests_of_experts_that_are_gone_are_not_asked(lived):
    gone = Golden("grey", request(text="grey"), ("new",))

    checks = refusals([Holdout(lived, gate())], gate(), lived, [gone])

    assert "golden" not in {check.name for check in checks}


def test_a_golden_request_may_go_to_the_second_best_of_two():
    two = Gate.from_cards(EXPERTS, embed_texts, gate_spec(top_k=2, explore=0.3))
    second = two.decide(request(text="red"), Policy(explore=False), 0).considered[1].expert

    assert golden([Golden("red", request(text="red"), (second,))], two).passed
    assert not golden([Golden("red", request(text="red"), (second,))], gate()).passed


def test_a_golden_request_is_not_answered_by_who_is_good_but_too_dear_to_be_asked():
    cheap = Gate.from_cards(EXPERTS, embed_texts, gate_spec(top_k=2, explore=0.3, preference=0.0))
    green = request(text="green")
    considered = cheap.decide(green, Policy(explore=False), 0).considered

    assert "c" in [one.expert for one in considered[:2]]  # by quality it is second, by worth the last
    assert not golden([Golden("green", green, ("c",))], cheap).passed
    assert golden([Golden("green", green, ("a",))], cheap).passed
    assert golden([Golden("green", green, ("b",))], cheap).passed


def test_a_golden_request_may_not_go_to_the_second_best_where_one_alone_is_asked():
    switch = Gate.from_cards(EXPERTS, embed_texts, gate_spec(top_k=2, explore=0.3, strategy="switch"))
    first, second = (one.expert for one in switch.decide(request(text="red"), Policy(explore=False), 0).considered[:2])

    assert golden([Golden("red", request(text="red"), (first,))], switch).passed
    assert not golden([Golden("red", request(text="red"), (second,))], switch).passed


def test_one_failed_check_refuses_what_was_better_and_is_told_of_what_was_not():
    failed = Check(name="golden", passed=False, reason="fails 1 of 2 golden requests")

    refused = Verdict("better", "better: +0.1").weighed([failed])
    unproven = Verdict("not proven", "not proven better: +0.0").weighed([failed])

    assert refused.outcome == "refused"
    assert refused.reason == "refused, for it fails 1 of 2 golden requests; on average better: +0.1"
    assert unproven.outcome == "not proven"
    assert unproven.reason == "not proven better: +0.0; besides, it fails 1 of 2 golden requests"
    assert Verdict("better", "").weighed([failed.model_copy(update={"passed": True})]).better


def unrated_new(champion: Gate) -> tuple[Example, ...]:
    """Requests that `new` might have answered, and never did."""
    rows = read(Town(2, RIGHT | {"grey": "new"}).live(champion, 300, Policy(explore=True)))
    return tuple(row for row in rows if row.decision and row.decision.chosen[0].expert != "new")
