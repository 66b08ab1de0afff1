"""Who is left out before learning: who pushes, buries or contradicts; not the strict, the mild, the few, the new."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from worlds import City, Person, citizens, request

from multimoe.decision import Policy
from multimoe.examples import Example, Label, Win, label_votes, read
from multimoe.feedback import Rated
from multimoe.screen import FEWEST_RATERS, screen
from multimoe.topics import topics

CITY = City(0)
LAST = CITY.names[-1]


@cache
def honest_ratings(n: int = 1500) -> list[Rated]:
    return CITY.live(citizens(60), n, seed=1)


def beside_them(people: list[Person], n: int, city: City = CITY) -> tuple[Example, ...]:
    """What these people say, among what sixty honest ones do."""
    rows = [*honest_ratings(), *city.live(people, n, seed=2)]
    return read(sorted(rows, key=lambda row: row.interaction.created))


def left_out(examples: tuple[Example, ...]) -> dict[str, int]:
    """Ratings that are gone, by the first letter of who gave them."""
    kept = {example.id for example in screen(examples).examples}
    gone = [str(example.rater)[0] for example in examples if example.id not in kept]
    return {letter: gone.count(letter) for letter in sorted(set(gone))}


def attackers(n: int, **does) -> list[Person]:
    return [Person(f"x{i}", policy=Policy(explore=True), **does) for i in range(n)]


def test_of_honest_people_hardly_anybody_is_left_out():
    honest = read(honest_ratings())

    assert left_out(honest).get("u", 0) <= 0.03 * len(honest)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (lambda kind, who, honest, generator, at: float(who == LAST), "pushes one expert"),
        (lambda kind, who, honest, generator, at: 1.0 if who == LAST else honest, "pushes one expert"),
        (lambda kind, who, honest, generator, at: 0.0 if who == "a" else honest, "buries one expert"),
        (lambda kind, who, honest, generator, at: 1 - honest, "contradicts the others"),
    ],
    ids=["pushes", "boosts", "buries", "contradicts"],
)
def test_hostile_people_are_left_out_and_the_reason_counted(says, reason):
    examples = beside_them(attackers(3, says=says), 240)

    gone, quarantined = left_out(examples), screen(examples).quarantined

    assert gone["x"] >= 160
    assert gone.get("u", 0) <= 60
    assert quarantined[reason] >= 150
    assert sum(quarantined.values()) == sum(gone.values())


def test_fifty_colluders_with_four_ratings_each_convict_one_another():
    pushing = attackers(50, says=lambda kind, who, honest, generator, at: float(who == LAST))

    gone = left_out(beside_them(pushing, 200))

    assert gone["x"] >= 100
    assert gone.get("u", 0) <= 60


def test_who_owns_a_rare_topic_and_pushes_there_is_left_out():
    pushing = attackers(
        3, asks=lambda generator, at: (7, False), says=lambda kind, who, honest, generator, at: float(who == LAST)
    )

    assert left_out(beside_them(pushing, 100))["x"] >= 60


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_people_who_always_say_the_same_are_no_enemies(score):
    same = [Person(f"s{i}", says=lambda kind, who, honest, generator, at: score) for i in range(5)]

    assert left_out(beside_them(same, 150)).get("s", 0) == 0


def test_half_hearted_ratings_are_no_crime():
    mild = [Person(f"s{i}", says=lambda kind, who, honest, generator, at: 0.3 + 0.4 * honest) for i in range(5)]

    assert left_out(beside_them(mild, 150)).get("s", 0) == 0


def test_a_new_topic_whose_people_like_what_nobody_liked_before_is_learned():
    city = City(0, kinds=9)
    city.quality[8] = [0.1, 0.1, 0.1, 0.1, 0.9]
    city.popularity[8] = 0
    city.popularity /= city.popularity.sum()
    newcomers = [Person(f"n{i}", asks=lambda generator, at: (8, False)) for i in range(15)]

    gone = left_out(beside_them(newcomers, 200, city))

    assert gone.get("n", 0) <= 20


def test_who_turns_hostile_is_heard_until_then():
    turncoat = Person("x", says=lambda kind, who, honest, generator, at: honest if at < 0.5 else float(who == LAST))

    kept = screen(beside_them([turncoat], 240)).examples
    moments = sorted(example.created for example in kept)
    of_turncoat = [example.created > moments[len(moments) // 2] for example in kept if example.rater == "x"]

    assert of_turncoat.count(False) >= 60
    assert of_turncoat.count(True) <= 65  # the stint in which it happened may still count


def test_among_few_people_nobody_is_judged():
    few = CITY.live(citizens(FEWEST_RATERS - 2), 300, seed=3)
    enemy = CITY.live(attackers(1, says=lambda kind, who, honest, generator, at: 1 - honest), 100, seed=4)
    examples = read([*few, *enemy])

    assert screen(examples).examples == examples


def test_where_half_contradict_the_other_half_nobody_is_left_out(caplog):
    half = attackers(60, says=lambda kind, who, honest, generator, at: float(who == LAST))
    examples = beside_them(half, 1500)

    assert screen(examples).quarantined == {}
    assert "contradict each other too much" in caplog.text


def test_unnamed_people_are_heard():
    nobody = [Person(None, says=lambda kind, who, honest, generator, at: float(who == LAST))]

    assert left_out(beside_them(nobody, 60)).get("N", 0) == 0


def test_nobody_owns_a_topic_and_nobody_else_is_cut():
    fan = [Person("fan", asks=lambda generator, at: (7, False))]
    kept = screen(beside_them(fan, 200)).examples

    about = topics([example.embedding for example in kept])
    raters = np.array([example.rater for example in kept])
    weight = label_votes([example.labels[0] for example in kept])
    there = about == np.bincount(about[raters == "fan"]).argmax()

    assert 0 < weight[there & (raters == "fan")].sum() <= 0.12 * weight[there].sum()
    assert np.mean([example.labels[0].part for example in kept if example.rater != "fan"]) > 0.9


def test_comparisons_can_be_hostile_too():
    x, moment = request(text="x"), honest_ratings()[0].interaction.created

    def compared(i: int, rater: str, winner: str, loser: str) -> Example:
        win = Win(x, ((winner, 1.0),), x, ((loser, 1.0),), rater)
        return Example(f"{rater}{i}", moment, x, None, (), (win,), None, rater, 1)

    generator = np.random.default_rng(0)
    honest = [compared(i, f"u{i % 30}", *(("a", "b") if generator.random() < 0.85 else ("b", "a"))) for i in range(400)]
    hostile = [compared(i, f"x{i % 2}", "b", "a") for i in range(40)]

    assert left_out((*honest, *hostile)).get("x", 0) == 40


def test_of_an_answer_that_two_rated_only_the_hostile_word_goes():
    examples = beside_them(attackers(2, says=lambda k, who, honest, g, at: float(who == LAST)), 100)
    shared = [
        replace(
            example,
            labels=(*example.labels, Label(example.labels[0].expert, 1.0, 1.0, "guest")),
            ratings=2,
        )
        if example.rater == "x0"
        else example
        for example in examples
    ]

    kept = {example.id: example for example in screen(shared).examples}
    also = [kept[example.id] for example in shared if example.rater == "x0" and example.id in kept]

    assert len(also) > 30
    assert sum(example.raters == ("guest",) for example in also) > 20
    assert all(example.ratings == 1 for example in also if example.raters == ("guest",))
