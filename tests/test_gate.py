import time
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from worlds import embed_texts, expert, gate_spec, request

from multimoe.config import Strategy
from multimoe.decision import Policy
from multimoe.embedding import Embedding
from multimoe.errors import BadConfig, CheckpointError, NoExpert, NotFound, Unavailable, UnknownModel
from multimoe.gate import Gate
from multimoe.quality import Learned
from multimoe.routing import every_order

CHAT = expert("chat", "text", text=("Why is the sky blue?", "Tell me a joke"))
MATHS = expert("maths", "text", text=("What is two and two?",))
SEES = expert("sees", "image", text=("What is in this picture?",), image=("cat", "dog"))
READS = expert("reads", "image", text=("What is written here?",), image=("sign", "page"))
HEARS = expert("hears", "audio", audio=("a person talking",))
ALL = (CHAT, MATHS, SEES, READS, HEARS)
GREEDY = Policy(explore=False)


def gate(experts=ALL, **spec) -> Gate:
    return Gate.from_cards(experts, embed_texts, gate_spec(**spec))


@pytest.mark.parametrize(
    ("said", "best"),
    [
        ({"text": "Why is the sky blue?"}, "chat"),
        ({"text": "What is two and two?"}, "maths"),
        ({"image": "cat"}, "sees"),
        ({"image": "page"}, "reads"),
        ({"audio": "a person talking"}, "hears"),
        ({"image": "sign", "text": "What is written here?"}, "reads"),
    ],
)
def test_an_unrated_gate_follows_the_cards(said, best):
    decision = gate().decide(request(noise=0.7, **said), GREEDY, seed=0)

    assert decision.chosen[0].expert == best
    assert decision.gate_version == 0


def test_first_qualities_are_sensible():
    quality = dict(zip("abcd", gate().qualities(request(text="Tell me a joke"), ["chat", "maths"]), strict=False))

    assert 0.55 < quality["a"] < 0.9
    assert 0.1 < quality["b"] < 0.5


def test_a_wish_beside_a_picture_goes_to_who_writes_and_next_to_who_sees_such_pictures():
    decision = gate().decide(request(image="cat", text="Tell me a joke"), GREEDY, seed=0)

    assert decision.chosen[0].expert == "chat"
    seeing = [expert.expert for expert in decision.considered if expert.expert in ("sees", "reads")]
    assert seeing == ["sees", "reads"]


def test_an_expert_that_reads_all_of_the_request_is_preferred():
    both = expert("both", "text", "image", text=("x",), image=("y",))
    half = expert("half", "image", text=("x",), image=("y",))

    quality = gate([both, half]).qualities(request(text="x", image="y"), ["both", "half"])

    assert quality[0] > quality[1]


def test_the_decision_is_whole():
    decision = gate().decide(request(text="Tell me a joke"), Policy(top_k=2, explore=True), seed=7)

    assert sum(choice.weight for choice in decision.chosen) == pytest.approx(1)
    assert decision.seed == 7
    assert decision.explored
    assert {c.expert for c in decision.considered} == {"chat", "maths"}
    assert set(decision.ineligible) == {"sees", "reads", "hears"}
    assert decision.ineligible["sees"] == "reads image, the request has text"
    assert [c.probability for c in decision.considered] == sorted(c.probability for c in decision.considered)[::-1]
    assert decision.encoder_revisions == {"text": "t1"}
    assert decision.modalities == ("text",)
    assert "drawn by chance" in decision.reasons[-1]


def test_reasons_quote_the_closest_card_example():
    decision = gate().decide(request(text="Tell me a joke"), GREEDY, seed=0)

    assert decision.reasons[0].startswith("chat: text present; closest card example 'Tell me a joke' (cosine 1.00)")
    assert "not rated yet" in decision.reasons[0]


def test_the_same_seed_draws_the_same_experts_and_others_draw_others():
    ask = lambda seed: gate().decide(request(text="x"), Policy(explore=True), seed)  # noqa: E731

    assert ask(3) == ask(3)
    assert len({tuple(c.expert for c in ask(seed).chosen) for seed in range(30)}) > 1


def test_the_logged_propensity_is_how_often_the_choice_is_drawn():
    g, x, policy = gate(explore=0.4), request(text="x"), Policy()
    decisions = [g.decide(x, policy, seed) for seed in range(4000)]

    for first in ({tuple(c.expert for c in d.chosen): d for d in decisions}).values():
        order = [c.expert for c in first.chosen]
        frequency = np.mean([[c.expert for c in d.chosen] == order for d in decisions])
        assert frequency == pytest.approx(first.propensity, abs=0.035)


def test_a_gate_gives_its_own_choice_the_propensity_it_logged():
    g, x = gate(), request(text="x", image="y")

    for seed in range(50):
        decision = g.decide(x, Policy(explore=True, preference=0.3, top_k=3), seed)
        assert g.choice_probability(x, decision) == pytest.approx(decision.propensity)


def test_another_gates_probabilities_over_the_logged_experts_sum_to_one():
    x, log = request(text="x", image="y"), gate()
    other = gate((*ALL[1:], expert("new")))
    decision = log.decide(x, Policy(top_k=2), 0)
    names, plan = other.replan(x, decision)

    assert set(names) == {"maths", "sees", "reads"}
    assert sum(plan.probability(o) for n in (1, 2) for o in every_order(3, n).tolist()) == pytest.approx(1)


def test_a_choice_with_a_lost_expert_has_probability_zero():
    x = request(text="Tell me a joke")
    decision = gate().decide(x, GREEDY, 0)

    assert gate([MATHS]).choice_probability(x, decision) == 0.0


def test_without_any_of_the_logged_experts_nothing_can_be_replayed():
    decision = gate([CHAT]).decide(request(text="x"), GREEDY, 0)

    with pytest.raises(NotFound, match="none of the experts"):
        gate([MATHS]).replan(request(text="x"), decision)


def test_learned_parameters_move_only_the_experts_they_are_of():
    x = request(text="Tell me a joke")
    own = np.array([[4.0, 0, 0, 0], [9.0, 0, 0, 0]])
    learned = replace(Learned().rows(["maths", "gone"]), own=own, rated=np.array([12, 3]))
    wiser = gate().with_learned(learned, 5)

    assert wiser.qualities(x, ["chat"]) == pytest.approx(gate().qualities(x, ["chat"]))
    decision = wiser.decide(x, GREEDY, 0)
    assert (decision.chosen[0].expert, decision.gate_version) == ("maths", 5)
    assert "rated 12 times" in decision.reasons[0]


def test_a_new_expert_is_routed_to_from_its_card_and_the_rest_keeps_what_it_learned():
    asked = []

    def counting(texts):
        asked.extend(texts)
        return embed_texts(texts)

    learned = replace(Learned().rows(["chat"]), own=np.array([[1.0, 0, 0, 0]]), rated=np.array([1]))
    old = gate().with_learned(learned, 2)
    new = old.with_roster((*ALL, expert("poet", text=("Write a poem",))), counting)

    assert asked == ["Write a poem", "about poet"]
    assert new.decide(request(text="Write a poem", noise=0.5), GREEDY, 0).chosen[0].expert == "poet"
    assert new.version == 2
    assert new.learned is learned


def test_unavailable_experts_are_passed_over_with_the_reason():
    decision = gate().decide(request(text="Tell me a joke"), GREEDY, 0, unavailable={"chat": "no replica is up"})

    assert decision.chosen[0].expert == "maths"
    assert decision.ineligible["chat"] == "no replica is up"


def test_the_cheap_expert_wins_when_asked_for_cheap():
    g = gate([expert("dear", cost=1.0, latency_ms=1000, text=("joke",)), expert("cheap", cost=0.01, latency_ms=10)])
    first = lambda preference: g.decide(request(text="joke"), Policy(explore=False, preference=preference), 0).chosen[0]  # noqa: E731

    assert first(1.0).expert == "dear"
    assert first(0.0).expert == "cheap"


def test_what_would_go_to_a_full_expert_goes_to_the_next_best_and_the_log_says_so():
    x = request(text="Tell me a joke")
    decision = gate().decide(x, GREEDY, 0, load={"chat": 1.2, "maths": 0.3})

    assert [c.expert for c in decision.chosen] == ["maths"]
    assert decision.overflowed == ("chat",)
    assert decision.ineligible["chat"] == "is full, at 120% of its room"
    assert "chat is full, at 120% of its room: its requests go to the next best" in decision.reasons
    assert decision.load == {"chat": 1.2, "maths": 0.3}


def test_where_all_are_full_nobody_is_left_out():
    x = request(text="Tell me a joke")
    decision = gate().decide(x, GREEDY, 0, load={"chat": 1.2, "maths": 3.0})

    assert decision.chosen[0].expert == "chat"
    assert decision.overflowed == ()


def test_a_queue_moves_a_request_that_minds_waiting_and_no_other():
    g = gate([expert("a", text=("joke",)), expert("b", text=("joke",))], top_k=1)
    first = lambda preference: g.decide(  # noqa: E731
        request(text="joke"), Policy(explore=False, preference=preference), 0, load={"a": 0.8}
    ).chosen[0]

    assert first(1.0).expert == "a"
    assert first(0.5).expert == "b"


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_under_load_a_gate_still_gives_its_own_choice_the_propensity_it_logged(strategy):
    g, x = gate(explore=0.3), request(text="x", image="y")

    for seed in range(20):
        policy = Policy(strategy=strategy, preference=0.3)
        decision = g.decide(x, policy, seed, load={"chat": 0.9, "maths": 1.0, "reads": 0.2})
        assert g.choice_probability(x, decision) == decision.propensity


def test_a_modality_nobody_reads_says_what_the_catalog_reads():
    with pytest.raises(NoExpert, match="no expert reads image; the catalog reads text"):
        gate([CHAT, MATHS]).decide(request(image="cat"), GREEDY, 0)


def test_an_empty_request_has_no_expert():
    with pytest.raises(NoExpert, match="no expert reads nothing"):
        gate().decide(Embedding({}, {}), GREEDY, 0)


def test_when_all_are_down_it_is_not_the_requests_fault():
    with pytest.raises(Unavailable, match="hears: starting"):
        gate().decide(request(audio="x"), GREEDY, 0, unavailable={"hears": "starting"})


def test_limits_that_leave_nobody_say_so():
    with pytest.raises(NoExpert, match="loosen"):
        gate().decide(request(audio="x"), Policy(max_latency_ms=1), 0)


def test_an_expert_asked_for_by_a_wrong_name_is_unknown():
    with pytest.raises(UnknownModel):
        gate().decide(request(text="x"), Policy(experts=("chatt",)), 0)


def test_refuses_vectors_of_another_encoder_than_it_learned_from():
    g = gate().with_learned(Learned(revisions={"text": "t1"}), 3)
    other = request({"text": "t2"}, text="x")

    with pytest.raises(CheckpointError, match=r"version 3 learned from text encoder 't1'.*'t2'"):
        g.decide(other, GREEDY, 0)
    assert gate().decide(other, GREEDY, 0)


def test_qualities_of_an_unknown_expert_are_refused():
    with pytest.raises(NotFound, match="'nope'"):
        gate().qualities(request(text="x"), ["nope"])


def test_refuses_card_vectors_of_the_wrong_shape():
    with pytest.raises(BadConfig, match="384"):
        Gate.from_cards([CHAT], lambda texts: np.zeros((len(texts), 3), np.float32), gate_spec())


def test_a_gate_without_experts_is_refused():
    with pytest.raises(BadConfig, match="at least one expert"):
        gate(())


def test_predicting_quality_takes_well_under_a_millisecond():
    g, x = gate([expert(f"e{i}", text=tuple(f"{i} {j}" for j in range(8))) for i in range(16)]), request(text="x")
    names = [e.name for e in g.experts]

    def once() -> float:
        begin = time.perf_counter()
        g.qualities(x, names)
        return time.perf_counter() - begin

    assert min(once() for _ in range(200)) < 0.5e-3
