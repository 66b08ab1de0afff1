"""A slice of benchmarks/poison.py (T27): what hostile ratings do to what is learned, with defences and without."""

from functools import cache

import pytest
from worlds import City, Rows, attackers, citizens, unnamed

from multimoe.examples import read
from multimoe.feedback import Rated
from multimoe.gate import Gate
from multimoe.screen import screen
from multimoe.training import fit

CITY = City(3, explore=0.5)
RATINGS = 1500


@cache
def honest() -> list[Rated]:
    return CITY.live(citizens(), RATINGS, seed=1)


def attacked(attack: str, fraction: float) -> list[Rated]:
    hostile = CITY.live(attackers(attack, CITY, fraction), round(RATINGS * fraction / (1 - fraction)), seed=1000)
    return sorted([*honest(), *hostile], key=lambda row: row.interaction.created)


def learned(rows: list[Rated]) -> Gate:
    return CITY.gate.with_learned(fit(screen(read(Rows(rows).rated())).examples, CITY.gate), 1)


@pytest.fixture(scope="module")
def clean() -> float:
    return CITY.value(learned(honest()))


def test_without_attackers_the_defences_cost_nothing(clean):
    assert clean > 0.8
    assert clean > CITY.value(learned(unnamed(honest()))) - 0.01


@pytest.mark.parametrize(("attack", "fraction"), [("promote", 0.2), ("collusion", 0.2), ("cluster", 0.05)])
def test_attackers_take_no_more_than_a_point_and_without_defences_much(clean, attack, fraction):
    rows = attacked(attack, fraction)

    assert CITY.value(learned(rows)) > clean - 0.01
    assert CITY.value(learned(unnamed(rows))) < clean - 0.02


def test_a_trigger_phrase_is_not_learned_and_without_defences_it_is():
    rows = attacked("trigger", 0.05)

    assert CITY.sent_by_trigger(CITY.gate) < 0.05
    assert CITY.sent_by_trigger(learned(rows)) < 0.05
    assert CITY.sent_by_trigger(learned(unnamed(rows))) > 0.5
