"""Temperatures: the true one is found, and nothing is claimed from what was fitted on."""

import numpy as np
import pytest
from scipy.special import log_softmax

from multimoe.errors import TooLittleData
from multimoe.outputs import Label, Labels
from multimoe.temperature import calibrate, cross_fitted, fit, listed, tempered


def world(temperature: float, n: int = 2000, k: int = 8, seed: int = 0):
    """Logits that are too large by `temperature`, and what really came."""
    generator = np.random.default_rng(seed)
    true = log_softmax(2 * generator.normal(size=(n, k)), axis=1)
    truth = np.array([generator.choice(k, p=row) for row in np.exp(true)])
    return true * temperature, truth


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_finds_the_temperature_that_makes_probabilities_true(temperature):
    assert fit(*world(temperature)) == pytest.approx(temperature, rel=0.07)


def test_an_overconfident_classifier_becomes_calibrated_and_a_calibrated_one_stays_so():
    over = calibrate(*world(3.0), np.random.default_rng(0))
    assert over.error_before > 0.15 > 0.04 > over.error_after
    assert over.nll_after < over.nll_before - 0.1

    true = calibrate(*world(1.0), np.random.default_rng(0))
    assert true.error_after == pytest.approx(true.error_before, abs=0.01)


def test_no_example_is_scored_at_a_temperature_that_has_seen_it():
    logits, truth = world(2.0, n=40)
    turned = truth.copy()
    turned[7] = logits[7].argmin()
    before, after = (cross_fitted(logits, found, np.random.default_rng(0), 40) for found in (truth, turned))
    np.testing.assert_array_equal(before[7], after[7])
    assert (before != after).any(axis=1).sum() == 39


@pytest.mark.parametrize("right", [True, False])
def test_examples_that_are_all_right_or_never_right_give_no_temperature(right):
    logits = np.random.default_rng(0).normal(size=(50, 5))
    truth = logits.argmax(axis=1) if right else logits.argmin(axis=1)
    with pytest.raises(TooLittleData, match="50 examples"):
        fit(logits, truth)


def test_no_examples_give_no_temperature():
    with pytest.raises(TooLittleData):
        fit(np.zeros((0, 3)), np.zeros(0, dtype=np.intp))


def answers(logits, top):
    found = []
    for row in np.exp(log_softmax(logits, axis=1)):
        best = np.argsort(-row)[:top]
        found.append(Labels(space="s", labels=tuple(Label(name=f"l{i}", id=f"i{i}", probability=row[i]) for i in best)))
    return found


@pytest.mark.parametrize("name", ["l", "i"])
def test_answers_alone_give_nearly_the_same_temperature(name):
    logits, truth = world(2.0, n=600, k=20)
    assert fit(*listed(answers(logits, 20), [f"{name}{i}" for i in truth])) == pytest.approx(
        fit(logits, truth), rel=0.01
    )
    assert fit(*listed(answers(logits, 8), [f"{name}{i}" for i in truth])) == pytest.approx(fit(logits, truth), rel=0.1)


def test_a_tempered_answer_is_the_softmax_at_that_temperature_in_the_same_order():
    logits, _ = world(2.0, n=1)
    (answer,) = answers(logits, 8)
    found = tempered(answer, 2.0)
    expected = sorted(np.exp(log_softmax(logits[0] / 2)).tolist(), reverse=True)
    assert [label.probability for label in found.labels] == pytest.approx(expected, abs=1e-6)
    assert [label.id for label in found.labels] == [label.id for label in answer.labels]
    assert tempered(answer, 1.0).labels[0].probability == pytest.approx(answer.labels[0].probability)


def test_what_an_answer_does_not_list_is_tempered_too():
    half = Labels(space="s", labels=(Label(name="a", probability=0.8),))
    assert tempered(half, 0.5).labels[0].probability == pytest.approx(0.64 / 0.68)
