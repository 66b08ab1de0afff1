"""What words before a question do to who is asked, with the real gate: a slice of tests/drills/rerouting.py."""

from dataclasses import replace

import pytest
from drills.rerouting import HARD, MOST_UPGRADED, PREFIXES, QUESTIONS, WEIGHED, arena_of, spending

from multimoe.expert import FindWeights
from multimoe.messages import TextPart


def test_what_a_key_can_spend_in_a_day_is_capped_however_its_requests_are_routed() -> None:
    capped, control = spending()
    assert capped.met, capped
    assert control.met, control


@pytest.mark.weights
def test_a_scholarly_beginning_reaches_a_dear_expert_less_where_its_price_counts(weights: FindWeights) -> None:
    arena = arena_of("text", "scholar")
    plain, dressed = ([TextPart(prefix + question) for question in QUESTIONS[::7]] for prefix in ("", PREFIXES[1]))
    assert arena.reached(dressed) > arena.reached(plain) + MOST_UPGRADED
    weighed = replace(arena, policy=WEIGHED)
    assert weighed.reached(dressed) <= weighed.reached(plain) + MOST_UPGRADED
    assert weighed.reached([TextPart(question) for question in HARD]) > MOST_UPGRADED
