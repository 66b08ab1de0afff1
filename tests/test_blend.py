"""Blending: mixtures of distributions are exact, and words say what was found."""

import pytest

from multimoe.blend import Weighted, blend, hand_over, is_empty, mix_labels, say, say_all
from multimoe.messages import ChatRequest, Message, TextPart
from multimoe.outputs import Box, Event, Events, Label, Labels, Output, Segment, Text, Transcript, Words


def labels(space: str = "imagenet-1k", **probabilities: float) -> Labels:
    found = tuple(Label(name=name, probability=p, id=f"id-{name}") for name, p in probabilities.items())
    return Labels(space=space, labels=found)


def words(*lines: str) -> Words:
    return Words(boxes=tuple(Box(x0=0, y0=i, x1=9, y1=i + 1, text=line, score=0.9) for i, line in enumerate(lines)))


def test_labels_mix_as_distributions_over_the_union() -> None:
    mixed = mix_labels([(3.0, labels(cat=0.8, dog=0.2)), (1.0, labels(dog=0.6, fox=0.4))])
    assert {label.name: round(label.probability, 6) for label in mixed.labels} == {"cat": 0.6, "dog": 0.3, "fox": 0.1}
    assert [label.name for label in mixed.labels] == ["cat", "dog", "fox"]


def test_labels_of_one_id_are_one_label_whatever_they_are_called() -> None:
    one = Labels(space="s", labels=(Label(name="moped", probability=1.0, id="n03785016"),))
    other = Labels(space="s", labels=(Label(name="motor scooter", probability=1.0, id="n03785016"),))
    assert len(mix_labels([(1, one), (1, other)]).labels) == 1


def test_a_mixture_of_equal_distributions_is_that_distribution() -> None:
    one = labels(cat=0.7, dog=0.3)
    mixed = mix_labels([(0.2, one), (0.5, one), (0.3, one)])
    assert [label.probability for label in mixed.labels] == pytest.approx([0.7, 0.3])


def test_labels_without_any_weight_count_alike() -> None:
    assert mix_labels([(0.0, labels(cat=1.0)), (0.0, labels(dog=1.0))]).labels[0].probability == 0.5


def test_labels_of_different_spaces_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="one space"):
        mix_labels([(1, labels(cat=1.0)), (1, labels(space="sentiment", positive=1.0))])


def test_the_kind_with_most_weight_leads_even_when_no_single_part_does() -> None:
    parts = [Weighted(0.4, words("EXIT")), Weighted(0.3, labels(cat=0.9)), Weighted(0.3, labels(cat=0.5, dog=0.5))]
    lead = blend(parts)
    assert isinstance(lead, Labels)
    assert lead.labels[0].probability == pytest.approx(0.7)


def test_blending_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no part"):
        blend([])


def test_other_kinds_add_a_line_unless_they_found_nothing() -> None:
    said = say_all([Weighted(0.6, labels(street_sign=0.9)), Weighted(0.4, words("STOP", "ahead"))])
    assert said.splitlines()[1:] == ["STOP", "ahead"]
    assert say_all([Weighted(0.6, labels(cat=0.9)), Weighted(0.4, words())]).count("\n") == 0


def test_a_weak_label_is_said_as_a_guess() -> None:
    assert say(labels(cat=0.82)).startswith("Cat (82%)")
    assert say(labels(cat=0.3, dog=0.2)).startswith("I'm not sure")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Text(text="hello"), "hello"),
        (words(), "No words found in the picture."),
        (Transcript(segments=(Segment(start=0, end=1, text=" one "), Segment(start=1, end=2, text="two"))), "one two"),
        (Events(space="sound", duration=2, events=()), "Neither speech nor music: some other sound."),
        (
            Events(space="sound", duration=9, events=(Event(label="music", start=1, end=8.5, score=0.9),)),
            "Music (7.5 s).",
        ),
        (
            Events(
                space="notes",
                duration=1,
                events=(
                    Event(label="E4", start=0.5, end=1, score=0.9),
                    Event(label="C4", start=0, end=0.5, score=0.9),
                ),
            ),
            "Notes: C4 E4",
        ),
    ],
)
def test_every_kind_has_words(output: Output, expected: str) -> None:
    assert say(output) == expected


def test_empty_outputs_are_known_as_such() -> None:
    assert is_empty(words())
    assert is_empty(Transcript(segments=()))
    assert not is_empty(labels(cat=0.1))


def test_evidence_replaces_media_and_keeps_the_question() -> None:
    request = ChatRequest(
        "r", (Message("system", (TextPart("Be brief."),)), Message("user", (TextPart("Which dog?"),)))
    )
    handed = hand_over(request, [("image", labels(golden_retriever=0.4, kuvasz=0.3)), ("image", words())])
    assert handed.messages[0].text == "Be brief."
    assert "golden_retriever" in handed.text
    assert "Which dog?" in handed.text
    assert "probably" in handed.text


def test_a_writer_is_told_when_nothing_was_found() -> None:
    request = ChatRequest("r", (Message("user", (TextPart("What does it say?"),)),))
    assert "Nothing could be made out" in hand_over(request, [("image", words())]).text
