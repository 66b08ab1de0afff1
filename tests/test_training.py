import time
from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import pytest
from worlds import WIDTHS, embed_texts, expert, gate_spec, meaning, request, unit

from multimoe.calibration import calibration_error
from multimoe.embedding import Embedding, Vector
from multimoe.errors import TooLittleData
from multimoe.examples import Example, Label, Win
from multimoe.gate import Gate
from multimoe.training import fit, predictions

GATE = Gate.from_cards([expert(name, "text", "image") for name in ("a", "b", "c")], embed_texts, gate_spec())
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def example(embedding: Embedding, *labels: tuple[str, float], wins: tuple[Win, ...] = ()) -> Example:
    made = tuple(Label(name, score, 1.0, None) for name, score in labels)
    return Example("c", NOW, embedding, None, made, wins, None, None, len(made) + len(wins))


def say(kind: str, seed: int, **also: str) -> Embedding:
    return request(text=kind, noise=0.8, seed=seed, **also)


def quality(fitted, embedding: Embedding) -> dict[str, float]:
    names = [e.name for e in GATE.experts]
    return dict(zip(names, GATE.with_learned(fitted, 1).qualities(embedding, names).tolist(), strict=True))


def test_learns_which_expert_is_right_for_which_kind_of_request():
    data = [example(say(kind, i), ("a", float(kind == "red")), ("b", float(kind == "blue")))
            for i in range(60) for kind in ("red", "blue")]  # fmt: skip
    fitted = fit(data, GATE)

    red, blue = quality(fitted, say("red", 1000)), quality(fitted, say("blue", 1001))

    assert red["a"] > 0.75 > 0.25 > red["b"]
    assert blue["b"] > 0.75 > 0.25 > blue["a"]


def test_learns_from_the_picture_where_the_words_are_the_same():
    data = [
        example(say("what?", i, image=kind), ("a", float(kind == "cat"))) for i in range(60) for kind in ("cat", "dog")
    ]
    fitted = fit(data, GATE)

    assert quality(fitted, say("what?", 1000, image="cat"))["a"] > 0.7
    assert quality(fitted, say("what?", 1001, image="dog"))["a"] < 0.3


def test_an_expert_nobody_rated_keeps_the_order_of_the_cards():
    fitted = fit([example(say("red", i), ("a", 1.0)) for i in range(40)], GATE)

    assert fitted.rated.tolist() == [40, 0, 0]
    assert not fitted.own[1:].any()
    assert np.allclose(np.diagonal(fitted.covariance[1]), fitted.variance)
    doubt = fitted.doubt(fitted.vectors([say("red", 99)]))[0]
    assert doubt[0] < 0.8 * doubt[1]


def test_ten_ratings_move_a_little_and_a_hundred_much():
    before = quality(fit([example(say("red", 0), ("a", 0.5))], GATE), say("red", 99))["a"]
    ten = quality(fit([example(say("red", i), ("a", 1.0)) for i in range(10)], GATE), say("red", 99))["a"]
    hundred = quality(fit([example(say("red", i), ("a", 1.0)) for i in range(100)], GATE), say("red", 99))["a"]

    assert before < ten < hundred
    assert ten < 0.95 < hundred


def test_comparisons_teach_like_scores():
    wins = [
        example(e := say("red", i), wins=(Win(e, (("b", 1.0),), e, (("a", 1.0),), None),)) for i in range(60)
    ]  # fmt: skip
    fitted = fit(wins, GATE)

    learned = quality(fitted, say("red", 999))
    assert learned["b"] > learned["a"] + 0.3


def test_one_rater_who_floods_the_log_does_not_turn_it():
    def labelled(i: int, score: float, rater: str) -> Example:
        return Example("c", NOW, say("red", i), None, (Label("a", score, 1.0, rater),), (), score, rater, 1)

    honest = [labelled(i, 1.0, f"u{i % 150}") for i in range(450)]
    flood = [labelled(i, 0.0, "flood") for i in range(900)]

    assert quality(fit([*honest, *flood], GATE), say("red", 5000))["a"] > 0.8


def test_fitting_twice_gives_the_same():
    data = [example(say("red", i), ("a", i % 2)) for i in range(80)]

    assert fit(data, GATE).own.tobytes() == fit(data, GATE).own.tobytes()


def test_what_is_learned_remembers_its_encoders():
    data = [example(say("red", i, image="cat"), ("a", 1.0)) for i in range(5)]

    assert fit(data, GATE).revisions == {"text": "t1", "image": "i1"}


def test_without_a_rating_of_a_present_expert_there_is_nothing_to_fit():
    with pytest.raises(TooLittleData, match="in the catalog today"):
        fit([example(say("red", 0), ("gone", 1.0))], GATE)


def noisy(n: int, seed: int) -> Iterable[Example]:
    generator = np.random.default_rng(seed)
    for _ in range(n):
        kind = str(generator.choice(["red", "blue", "green"]))
        chance = {"red": 0.9, "blue": 0.6, "green": 0.3}[kind]
        yield example(say(kind, int(generator.integers(2**31))), ("a", float(generator.random() < chance)))


def test_predictions_are_calibrated_on_ratings_never_seen():
    wiser = GATE.with_learned(fit(list(noisy(900, 1)), GATE), 1)
    fresh = list(noisy(900, 2))

    assert calibration_error(*predictions(fresh, wiser)) < 0.06
    assert calibration_error(*predictions(fresh, GATE)) > 0.09  # the cards know of no liking


def test_ten_thousand_ratings_are_fitted_in_seconds():
    generator = np.random.default_rng(0)
    centre = {kind: meaning(kind) for kind in ("red", "blue", "green")}
    noise = generator.normal(size=(10_000, WIDTHS["text"])) / WIDTHS["text"] ** 0.5
    data = []
    for i, kind in enumerate(generator.choice(list(centre), size=10_000)):
        vector = unit(centre[str(kind)] + noise[i])
        data.append(
            example(Embedding({"text": Vector(vector, vector)}, {"text": "t1"}), ("abc"[i % 3], float(kind == "red")))
        )
    started = time.process_time()
    fit(data, GATE)

    assert time.process_time() - started < 30
