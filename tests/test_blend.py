"""Blending: mixtures of distributions are exact, and words say what was found."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimoe.blend import (
    Evidence,
    Weighted,
    blend,
    caveat,
    hand_over,
    is_empty,
    mix_labels,
    say,
    say_all,
    sureness,
)
from multimoe.blend.labels import plain
from multimoe.messages import SAMPLE_RATE, AudioPart, ChatRequest, ImagePart, Message, Modality, TextPart
from multimoe.outputs import Box, Event, Events, Label, Labels, Output, Segment, Text, Transcript, Words


def labels(space: str = "imagenet-1k", **probabilities: float) -> Labels:
    found = tuple(Label(name=name, probability=p, id=f"id-{name}") for name, p in probabilities.items())
    return Labels(space=space, labels=found)


def named(space: str, **probabilities: float) -> Labels:
    """Labels without ids."""
    return Labels(space=space, labels=tuple(Label(name=name, probability=p) for name, p in probabilities.items()))


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


def test_labels_of_different_things_are_not_mixed_but_said_side_by_side() -> None:
    parts = [
        Weighted(0.4, named("content-type", python=0.9)),
        Weighted(0.6, named("sentiment", positive=0.7, neutral=0.3)),
    ]
    assert blend(parts) == parts[1].output
    assert say_all(parts) == "Positive (70%); or neutral (30%).\nPython (90%)."


def test_sets_of_labels_with_wordnet_ids_are_mixed_by_these() -> None:
    fine = Labels(space="imagenet-1k", labels=(Label(name="moped", probability=0.8, id="n03785016"),))
    coarse = Labels(space="imagenet-21k", labels=(Label(name="motor_scooter", probability=0.4, id="n03785016"),))
    mixed = blend([Weighted(1, fine), Weighted(1, coarse)])
    assert isinstance(mixed, Labels)
    assert (mixed.space, len(mixed.labels)) == ("imagenet-1k+imagenet-21k", 1)
    assert mixed.labels[0].probability == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["Tabby Cat", "tabby_cat", "a tabby-cat", "tabby, tabby cat"])
def test_one_thing_under_several_names_is_one_label(name: str) -> None:
    known = Label(name="tabby", synonyms=("tabby cat",), probability=0.9, id="n02123045")
    found = mix_labels([(1, Labels(space="imagenet-1k", labels=(known,))), (1, named("pets", **{name: 0.7}))])
    assert [label.id for label in found.labels] == ["n02123045"]
    assert found.labels[0].probability == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["tabbies", "cat", "tabbycat"])
def test_other_names_are_other_labels(name: str) -> None:
    known = Label(name="tabby", synonyms=("tabby cat",), probability=0.9, id="n02123045")
    assert len(mix_labels([(1, Labels(space="s", labels=(known,))), (1, named("pets", **{name: 0.7}))]).labels) == 2


def test_a_name_that_one_expert_gives_to_two_things_joins_nothing() -> None:
    bird = Label(name="crane", probability=0.5, id="n02012849")
    machine = Label(name="crane", probability=0.4, id="n03126707")
    found = mix_labels([(1, Labels(space="imagenet-1k", labels=(bird, machine))), (1, named("birds", crane=0.9))])
    assert len(found.labels) == 3


def test_an_expert_has_no_opinion_on_what_it_cannot_name() -> None:
    seen = named("things", dog=0.9, pizza=0.06, burger=0.04)
    food = named("food", pizza=0.2, burger=0.8)  # whatever it is shown, it must call it some food
    found = {label.name: label.probability for label in mix_labels([(1, seen), (1, food)]).labels}
    assert found["dog"] == pytest.approx(0.9, abs=0.01)  # a plain linear pool would give 0.45, and say burger
    assert found["burger"] > found["pizza"]  # but of food it is heard
    assert sum(found.values()) == pytest.approx(1)


def test_where_spaces_share_nothing_the_weights_say_how_they_compare() -> None:
    found = mix_labels([(3, named("pets", cat=1.0)), (1, named("food", pizza=0.8, soup=0.2))])
    assert [label.probability for label in found.labels] == pytest.approx([0.75, 0.2, 0.05])


def test_what_an_expert_leaves_open_it_leaves_to_what_others_name() -> None:
    found = mix_labels([(1, named("food", pizza=0.1)), (1, named("pets", cat=0.6, dog=0.4))])
    assert {label.name: round(label.probability, 3) for label in found.labels} == {
        "cat": 0.57,
        "dog": 0.38,
        "pizza": 0.05,
    }
    same = mix_labels([(1, labels(cat=0.6)), (1, labels(dog=0.5))])  # of one space: open is what neither lists
    assert sum(label.probability for label in same.labels) == pytest.approx(0.55)


names = st.sampled_from(["cat", "dog", "fox", "owl", "a cat", "red_fox"])
ids = st.sampled_from([None, "n00000001", "n00000002", "n00000003"])


@st.composite
def distributions(draw: st.DrawFn) -> Labels:
    """Of one space, listing each id and each name but once, and perhaps not all of its mass."""
    keys = draw(st.lists(st.tuples(names, ids), min_size=1, max_size=5, unique_by=(lambda k: k[1] or k[0], plain_of)))
    raw = draw(st.lists(st.floats(0.01, 1), min_size=len(keys), max_size=len(keys)))
    listed = draw(st.floats(0.1, 1))
    found = (
        Label(name=name, id=id, probability=listed * p / sum(raw)) for (name, id), p in zip(keys, raw, strict=True)
    )
    return Labels(space=draw(st.sampled_from(["s", "t", "u"])), labels=tuple(found))


def plain_of(key: tuple[str, str | None]) -> str:
    return plain(key[0])


parts_of_mixtures = st.lists(st.tuples(st.floats(0, 5), distributions()), min_size=1, max_size=4)


few = settings(max_examples=40, deadline=None)


def by_label(found: Labels) -> list[float]:
    return sorted((label.probability for label in found.labels), reverse=True)


@few
@given(parts_of_mixtures)
def test_a_mixture_is_a_distribution_that_loses_no_mass(parts: list[tuple[float, Labels]]) -> None:
    total = sum(by_label(mix_labels(parts)))
    assert min(sum(by_label(labels)) for _, labels in parts) - 1e-6 <= total <= 1 + 1e-6


@few
@given(parts_of_mixtures, st.randoms())
def test_the_order_of_the_parts_does_not_matter(parts: list[tuple[float, Labels]], chance: Random) -> None:
    shuffled = list(parts)
    chance.shuffle(shuffled)
    assert by_label(mix_labels(shuffled)) == pytest.approx(by_label(mix_labels(parts)), abs=1e-6)


@few
@given(distributions(), st.floats(0, 5))
def test_one_expert_alone_is_itself(one: Labels, weight: float) -> None:
    alone = mix_labels([(weight, one)])
    assert {(label.name, label.id): label.probability for label in alone.labels} == pytest.approx(
        {(label.name, label.id): label.probability for label in one.labels}
    )


@few
@given(distributions(), st.lists(st.floats(0.01, 5), min_size=2, max_size=4), st.sampled_from(["s", "t"]))
def test_experts_that_say_the_same_say_it_together(one: Labels, weights: list[float], other: str) -> None:
    same = [(w, one if i else one.model_copy(update={"space": other})) for i, w in enumerate(weights)]
    assert by_label(mix_labels(same)) == pytest.approx(by_label(one), abs=1e-5)


@few
@given(distributions(), distributions(), st.floats(0.01, 5))
def test_equal_wordnet_ids_are_one_label(one: Labels, other: Labels, weight: float) -> None:
    mixed = [label.id for label in mix_labels([(1, one), (weight, other)]).labels if label.id]
    assert sorted(mixed) == sorted({label.id for labels in (one, other) for label in labels.labels if label.id})


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


# evidence for a writer


PICTURE = ImagePart(np.zeros((8, 8, 3), np.uint8))
RECORDING = AudioPart(np.zeros(SAMPLE_RATE, np.float32))
CLEAR = labels(lion=0.9, tiger=0.05)
UNCLEAR = labels(kuvasz=0.31, Egyptian_cat=0.22)


def heard(text: str, confidence: float | None = None) -> Transcript:
    return Transcript(segments=(Segment(start=0, end=1, text=text, confidence=confidence),))


def sounds(score: float) -> Events:
    return Events(space="sound", duration=9, events=(Event(label="music", start=1, end=8.5, score=score),))


def asked(question: str, *media: ImagePart | AudioPart) -> ChatRequest:
    brief = Message("system", (TextPart("Be brief."),))
    return ChatRequest("r", (brief, Message("user", (*media, TextPart(question)))))


def test_evidence_replaces_media_and_keeps_the_question() -> None:
    found = [Evidence("image", UNCLEAR), Evidence("image", words())]
    handed = hand_over(asked("Which dog?", PICTURE), found)
    assert handed.messages[0].text == "Be brief."
    assert handed.text.splitlines()[0] == "The picture is unclear and may show a kuvasz or an Egyptian_cat."
    assert handed.text.endswith("and say that you are not sure: Which dog?")
    assert handed.modalities == {"text"}


def test_strong_evidence_is_handed_over_as_a_fact() -> None:
    handed = hand_over(asked("Is it tame?", PICTURE), [Evidence("image", CLEAR)]).text
    assert handed.startswith("The picture shows a lion.\n")
    assert "not sure" not in handed


def test_a_writer_is_told_when_nothing_was_found() -> None:
    handed = hand_over(asked("What does it say?", PICTURE), [Evidence("image", words())])
    assert "Nothing could be made out" in handed.text


def test_a_writer_gets_what_it_reads_itself_as_it_is() -> None:
    request = asked("What is this?", PICTURE, RECORDING)
    sees: frozenset[Modality] = frozenset({"text", "image"})
    handed = hand_over(request, [Evidence("audio", heard("Hello."))], reads=sees)
    assert handed.modalities == {"text", "image"}
    assert "picture" not in handed.text
    assert caveat(request, [Evidence("audio", heard("Hello."))], reads=sees) == ""


def test_several_classifiers_are_handed_over_as_one() -> None:
    found = [Evidence("image", labels(lion=0.8), 3), Evidence("image", labels(lion=0.4, tiger=0.6), 1)]
    assert "The picture probably shows a lion." in hand_over(asked("What is it?", PICTURE), found).text


def test_a_picture_and_a_recording_are_both_handed_over() -> None:
    found = [Evidence("audio", heard("Roar")), Evidence("audio", sounds(0.8)), Evidence("image", CLEAR)]
    lines = hand_over(asked("What is it?", PICTURE, RECORDING), found).text.splitlines()
    assert lines[:3] == [
        "The picture shows a lion.",
        'The recording says: "Roar".',
        "The recording has music (7.5 s).",
    ]


def test_several_pictures_are_numbered() -> None:
    both = Labels(space="imagenet-1k", labels=CLEAR.labels, each=(CLEAR, UNCLEAR))
    second = Words(boxes=(Box(x0=0, y0=0, x1=9, y1=9, text="EXIT", score=0.9, picture=2),))
    request = asked("What are they?", PICTURE, PICTURE)
    lines = hand_over(request, [Evidence("image", both), Evidence("image", second, 2)]).text.splitlines()
    assert lines[:3] == [
        "Picture 1 shows a lion.",
        "Picture 2 has words: EXIT.",
        "Picture 2 is unclear and may show a kuvasz or an Egyptian_cat.",
    ]
    assert say(both).splitlines()[0] == "Picture 1: Lion (90%); or tiger (5%)."
    assert caveat(request, [Evidence("image", both)]).startswith("Picture 2 is unclear to me: perhaps a kuvasz (31%)")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            [Evidence("image", UNCLEAR)],
            "The picture is unclear to me: perhaps a kuvasz (31%) or an Egyptian_cat (22%).",
        ),
        ([Evidence("image", words())], "I could make nothing out in the picture."),
        ([], "I could make nothing out in the picture."),
        ([Evidence("image", CLEAR)], ""),
        ([Evidence("image", UNCLEAR), Evidence("image", words("EXIT"))], ""),  # the words are legible
        ([Evidence("image", Text(text="A lion."))], ""),  # who does not say how sure it is counts as sure
    ],
)
def test_what_is_weak_about_a_picture_is_said_and_only_that(found: list[Evidence], said: str) -> None:
    assert caveat(asked("What is it?", PICTURE), found) == said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([Evidence("audio", heard("to be", 0.3))], "The recording is hard to hear, so I may have misheard."),
        ([Evidence("audio", heard("to be", 0.9))], ""),
        ([Evidence("audio", heard("to be"))], ""),
        ([Evidence("audio", sounds(0.2))], "The recording is unclear to me."),
        ([Evidence("audio", Transcript(segments=()))], "I could make nothing out in the recording."),
        ([Evidence("audio", Transcript(segments=())), Evidence("audio", sounds(0.8))], ""),
    ],
)
def test_what_is_weak_about_a_recording_is_said_and_only_that(found: list[Evidence], said: str) -> None:
    assert caveat(asked("What is it?", RECORDING), found) == said


def test_doubts_about_a_picture_and_a_recording_are_one_sentence() -> None:
    request = asked("What is it?", PICTURE, RECORDING)
    weak = [Evidence("image", UNCLEAR), Evidence("audio", heard("to be", 0.3))]
    assert caveat(request, weak) == "I am not sure of the picture and the recording."
    assert caveat(request, [weak[0], Evidence("audio", heard("to be", 0.9))]).startswith("The picture is unclear")


def test_a_request_without_media_has_no_caveat() -> None:
    assert caveat(asked("Why?"), []) == ""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (labels(cat=0.3, dog=0.2), 0.3),
        (words("EXIT"), 0.9),
        (words(), 0.0),
        (sounds(0.2), 0.2),
        (heard("one"), None),
        (heard("one", 0.6), 0.6),
        (Text(text="one"), None),
    ],
)
def test_outputs_say_how_sure_they_are(output: Output, expected: float | None) -> None:
    assert sureness(output) == (None if expected is None else pytest.approx(expected))
