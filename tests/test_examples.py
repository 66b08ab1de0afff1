import numpy as np
import pytest
from worlds import embed_texts, expert, gate_spec, rated, request

from multimoe.decision import Policy
from multimoe.examples import Label, label_votes, largest_share, limited, parties, read, split, votes, without
from multimoe.feedback import Interaction, Outcome, Rating
from multimoe.gate import Gate

GATE = Gate.from_cards([expert("a", text=("x",)), expert("b", text=("x",))], embed_texts, gate_spec())
X = request(text="x")
DECISION = GATE.decide(X, Policy(explore=False), 0)  # both cards fit alike: half each


def answer(score: float | None, user: str | None = "u", **named) -> Rating:
    return Rating(completion_id="c1", score=score, user=user, **named)


def test_a_rating_of_the_answer_counts_for_those_who_gave_it_by_their_part():
    (example,) = read([rated(1, X, DECISION, answer(0.8))])

    assert {label.expert for label in example.labels} == {"a", "b"}
    assert sum(label.part for label in example.labels) == pytest.approx(1)
    assert {label.score for label in example.labels} == {0.8}
    assert (example.reward, example.rater, example.ratings) == (0.8, "u", 1)


def test_a_rating_of_one_expert_counts_for_that_one_alone():
    (example,) = read([rated(1, X, DECISION, answer(0.0, target="expert", expert="b"))])

    assert [(label.expert, label.score, label.part) for label in example.labels] == [("b", 0.0, 1.0)]
    assert example.reward == 0.0


def test_the_reward_is_that_of_the_answer_where_it_was_rated_and_else_of_its_experts_by_their_part():
    both = [answer(1.0, target="expert", expert="a"), answer(0.5, target="expert", expert="b")]
    parts = {choice.expert: choice.weight for choice in DECISION.chosen}

    assert read([rated(1, X, DECISION, *both)])[0].reward == pytest.approx(parts["a"] + 0.5 * parts["b"])
    assert read([rated(1, X, DECISION, *both, answer(0.1))])[0].reward == 0.1


def test_those_who_really_answered_get_the_credit_not_those_who_failed():
    interaction = Interaction(
        id="c",
        created="2026-11-01T00:00:00Z",
        model="multimoe",
        decision=DECISION,
        outcomes=(
            Outcome(expert="a", role="answer", weight=0.6, status="timeout"),
            Outcome(expert="b", role="answer", weight=0.4, status="ok"),
            Outcome(expert="c", role="skipped", weight=0.2, status="skipped"),
        ),
    )

    assert parties(interaction) == (("b", 1.0),)


@pytest.mark.parametrize(
    "outcomes",
    [
        pytest.param(
            [("a", "answer", 0.0, "error"), ("b", "aside", 1.0, "ok"), ("s", "answer", 0.0, "ok")], id="beside"
        ),
        pytest.param([("s", "answer", 0.0, "timeout"), ("b", "skipped", 0.0, "skipped")], id="broke off"),
    ],
)
def test_who_was_not_asked_gets_no_credit_for_a_stand_in_or_one_that_broke_off(outcomes):
    did = [Outcome(expert=e, role=role, weight=weight, status=status) for e, role, weight, status in outcomes]
    interaction = Interaction(
        id="c", created="2026-11-01T00:00:00Z", model="multimoe", decision=DECISION, outcomes=tuple(did)
    )

    assert parties(interaction) == (("s", 1.0),)


def test_a_comparison_of_two_experts_is_a_win_and_no_reward():
    (example,) = read([rated(1, X, DECISION, answer(None, target="comparison", preferred="b", rejected=("a",)))])

    assert [(win.winners, win.losers) for win in example.wins] == [((("b", 1.0),), (("a", 1.0),))]
    assert example.reward is None
    assert example.ratings == 1


def test_a_comparison_with_another_answer_names_the_experts_of_both():
    alone = GATE.decide(X, Policy(explore=False, top_k=1), 0)
    compared = answer(None, target="comparison", preferred="c2", rejected=("b",))
    examples = read([rated(1, X, DECISION, compared), rated(2, X, alone, answer(1.0))])

    assert examples[0].wins[0].winners == ((alone.chosen[0].expert, 1.0),)
    assert examples[0].wins[0].losers == (("b", 1.0),)


def test_what_cannot_teach_is_left_out():
    unknown = answer(None, target="comparison", preferred="gone", rejected=("away",))
    no_embedding = rated(3, X, DECISION, answer(1.0))
    no_embedding = no_embedding.model_copy(
        update={"interaction": no_embedding.interaction.model_copy(update={"embedding": None})}
    )

    assert (
        read([rated(1, X, DECISION, answer(None, label="funny")), rated(2, X, DECISION, unknown), no_embedding]) == ()
    )


def test_an_answer_whose_expert_was_named_teaches_only_through_its_outcome():
    pinned = rated(1, X, None, answer(1.0, target="expert", expert="a"))

    assert read([pinned])[0].decision is None
    assert read([pinned])[0].labels[0].expert == "a"


def test_vectors_of_a_former_encoder_are_left_out():
    old = request({"text": "t0"}, text="x")

    examples = read([rated(1, old, DECISION, answer(1.0)), rated(2, X, DECISION, answer(1.0))])

    assert [example.id for example in examples] == ["c2"]


def test_only_the_newest_are_kept():
    examples = read((rated(i, X, DECISION, answer(1.0)) for i in range(10)), most=3)

    assert [example.id for example in examples] == ["c7", "c8", "c9"]


def test_a_lone_rater_and_raters_alike_count_in_full():
    assert votes(["me"] * 500).tolist() == [1.0] * 500
    assert votes([f"u{i % 20}" for i in range(2000)]) == pytest.approx(np.ones(2000))
    assert votes([None] * 5).tolist() == [1.0] * 5


def test_among_hundreds_nobody_has_more_than_a_hundredth_of_all_weight():
    raters = [f"u{i % 300}" for i in range(6000)] + ["flood"] * 10_000

    counted = votes(raters)

    assert largest_share(raters, counted) <= 0.0101
    assert counted[:6000] == pytest.approx(np.ones(6000))


def test_a_rating_of_an_answer_weighs_the_same_however_many_experts_gave_it():
    shared = [Label(expert, 0.0, 0.25, rater) for rater in ("ann", "bob", "cid") for expert in "wxyz"] * 10
    alone = [Label("x", 0.0, 1.0, rater) for rater in ("dan", "eve", "fay")] * 10
    often = [Label("x", 0.0, 1.0, "gus")] * 50

    counted = label_votes([*shared, *alone, *often])

    assert counted[: len(shared)] == pytest.approx(np.full(len(shared), 0.25))  # nobody is near the limit, whole
    assert counted[len(shared) : -50] == pytest.approx(np.ones(len(alone)))
    assert 20 < counted[-50:].sum() < 30  # two sevenths of all: of 110 ratings less the surplus
    assert label_votes([]).shape == (0,)


def test_one_busy_rater_among_few_is_damped_not_silenced():
    raters = ["busy"] * 900 + [f"u{i % 4}" for i in range(100)]

    share = largest_share(raters, votes(raters))

    assert 0.3 < share <= 0.45


def test_what_is_judged_comes_after_all_that_is_fitted():
    past, later = split(read([rated(i, X, DECISION, answer(1.0)) for i in range(10)]), 0.7)

    assert [example.id for example in past] == [f"c{i}" for i in range(7)]
    assert [example.id for example in later] == ["c7", "c8", "c9"]


def test_one_rater_cannot_push_all_others_into_the_past():
    honest = [rated(i, X, DECISION, answer(1.0, user=f"u{i % 50}")) for i in range(300)]
    flood = [rated(300 + i, X, DECISION, answer(0.0, user="flood")) for i in range(600)]

    _, later = split(read([*honest, *flood]), 0.7)

    assert sum(example.rater != "flood" for example in later) > 75


def test_an_answer_that_two_rated_is_worth_their_mean():
    (example,) = read([rated(1, X, DECISION, answer(1.0, user="u"), answer(0.0, user="v"))])

    assert (example.reward, example.rater, example.ratings) == (0.5, "u", 2)
    assert [(opinion.rater, opinion.worth) for opinion in example.opinions] == [("u", 1.0), ("v", 0.0)]


def test_an_expert_s_own_rating_says_nothing_of_the_whole_where_others_rated_that():
    (example,) = read(
        [rated(1, X, DECISION, answer(1.0, user="u"), answer(0.0, user="v", target="expert", expert="a"))]
    )

    assert example.reward == 1.0


def test_who_rates_everything_counts_for_little_in_what_each_answer_was_worth():
    rows = [rated(i, X, DECISION, answer(0.0, user="flood"), answer(1.0, user=f"u{i}")) for i in range(100)]
    examples = read(rows)

    assert {example.rater for example in examples} == {f"u{i}" for i in range(100)}
    assert min(example.reward or 0 for example in examples) > 0.95


def test_without_one_rater_the_others_words_stay():
    both = [answer(1.0, user="u"), answer(0.0, user="v"), answer(0.5, user="v", target="expert", expert="b")]
    (example,) = read([rated(1, X, DECISION, *both)])
    left = without(example, {"v"})

    assert left is not None
    assert (left.reward, left.rater, left.ratings, left.raters) == (1.0, "u", 1, ("u",))
    assert without(example, {"nobody"}) is example
    assert without(example, {"u", "v"}) is None


def test_no_share_is_above_the_limit_where_that_is_possible():
    mass = np.array([100.0, 50.0, *[1.0] * 30])
    weight = mass * limited(mass, 0.1)

    assert weight.max() / weight.sum() <= 0.1001
    assert weight[2:].tolist() == [1.0] * 30
    assert limited(np.ones(3), 2 / 3).tolist() == [1.0] * 3
