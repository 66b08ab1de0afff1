"""Several recognisers' transcripts, aligned and put to the vote."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimoe.blend.transcripts import rover
from multimoe.outputs import Segment, Transcript

VOCABULARY = [
    "the",
    "garden",
    "rain",
    "children",
    "play",
    "until",
    "sun",
    "home",
    "we",
    "old",
    "house",
    "river",
    "stood",
]


def said(*texts: str, confidence: float | None = None, language: str | None = "en") -> Transcript:
    """A transcript with a segment a text, each two seconds long."""
    segments = (
        Segment(start=2.0 * i, end=2.0 * i + 2, text=text, confidence=confidence) for i, text in enumerate(texts)
    )
    return Transcript(segments=tuple(segments), language=language)


def word_errors(reference: list[str], heard: list[str]) -> int:
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def misheard(words: list[str], rate: float, chance: random.Random) -> list[str]:
    """A word in 1 / `rate` is left out, taken for another, or followed by one that nobody said."""
    heard: list[str] = []
    for word in words:
        error = chance.random() < rate
        kind = chance.choice(["left out", "another", "added"]) if error else None
        heard += {None: [word], "left out": [], "another": [chance.choice(VOCABULARY)]}.get(
            kind, [word, chance.choice(VOCABULARY)]
        )
    return heard


# what is voted


@pytest.mark.parametrize(
    ("texts", "voted"),
    [
        (("the cat sat", "the bat sat", "the cat sat"), "the cat sat"),
        (("the cat", "the cat sat", "the cat sat"), "the cat sat"),  # two against one who heard nothing
        (("the cat sat down", "the cat sat", "cat sat"), "the cat sat"),
        (("go ten meters", "go forward ten metres", "go forward ten meters"), "go forward ten meters"),
        (("one", "two", ""), "one"),  # no majority: the first of equals
        (("", "", "thank you"), ""),  # a voice heard by one alone
    ],
)
def test_what_most_heard_wins(texts: tuple[str, ...], voted: str) -> None:
    assert rover([(1.0, said(text)) for text in texts]).text == voted


def test_weight_outvotes_number() -> None:
    parts = [said("four of clubs"), said("for of clubs"), said("for of clubs")]
    assert rover(list(zip([3.0, 1.0, 1.0], parts, strict=True))).text == "four of clubs"
    assert rover(list(zip([3.0, 2.0, 2.0], parts, strict=True))).text == "for of clubs"


def test_words_are_compared_without_case_and_punctuation_and_kept_as_the_weightiest_spells_them() -> None:
    heard = [(2.0, said("Clubs.")), (3.0, said("spades")), (1.5, said("CLUBS!"))]
    assert rover(heard).text == "Clubs."


def test_a_hyphen_parts_words_and_holds_them_together() -> None:
    heard = [said("an ill-disposed young man"), said("an ill disposed man"), said("an old-disposed young man")]
    assert rover([(1.0, part) for part in heard]).text == "an ill-disposed young man"


def test_confidence_decides_between_as_many() -> None:
    sure, unsure = said("Heaven", confidence=0.9), said("Seven", confidence=0.2)
    assert rover([(1.0, unsure), (1.0, sure)]).text == "Heaven"
    assert rover([(1.0, unsure), (1.0, sure)], alpha=1.0).text == "Seven"


def test_confidence_counts_only_where_every_recogniser_gives_it() -> None:
    assert rover([(1.1, said("Seven")), (1.0, said("Heaven", confidence=1.0))]).text == "Seven"


def test_a_doubtful_word_that_only_one_of_two_heard_is_left_out() -> None:
    heard = [said("thank you", confidence=0.3), said("you", confidence=0.9)]
    assert rover([(1.0, part) for part in heard]).text == "you"


def test_confidence_of_a_segment_is_the_share_that_heard_it() -> None:
    (segment,) = rover([(2.0, said("a b")), (1.0, said("a c"))]).segments
    assert (segment.text, segment.confidence) == ("a b", pytest.approx((1 + 2 / 3) / 2))


def test_no_transcript_is_refused() -> None:
    with pytest.raises(ValueError, match="no transcript"):
        rover([])


# what is kept


def test_segments_are_cut_as_the_weightiest_cuts_them_and_keep_the_times_of_the_words_that_won() -> None:
    leading = Transcript(
        segments=(Segment(start=1, end=2, text="good morning"), Segment(start=5, end=6, text="how are you"))
    )
    other = Transcript(
        segments=(Segment(start=1, end=6, text="good morning how are you"), Segment(start=9, end=10, text="goodbye"))
    )
    voted = rover([(2.0, leading), (1.5, other), (1.5, other)])
    assert [(part.start, part.end, part.text) for part in voted.segments] == [
        (1, 2, "good morning"),
        (5, 6, "how are you"),
        (9, 10, "goodbye"),
    ]


def test_language_is_kept_where_those_who_heard_something_agree() -> None:
    assert rover([(1.0, said("hello you")), (1.0, said("hello")), (1.0, said(language="fr"))]).language == "en"
    assert rover([(1.0, said("hello you")), (1.0, said("hello", language="de"))]).language is None


transcripts = st.builds(
    lambda texts: said(*texts),
    st.lists(st.text("abc ,.'-\u2014?D\u00e9", min_size=0, max_size=12), max_size=4),
)
weights = st.floats(0, 10, allow_subnormal=False)


@given(transcripts, st.lists(weights, min_size=1, max_size=4))
def test_one_alone_and_equal_ones_come_back_unchanged(transcript: Transcript, scale: list[float]) -> None:
    assert rover([(weight, transcript) for weight in scale]) is transcript


@given(st.lists(st.tuples(weights, transcripts), min_size=1, max_size=4))
def test_every_word_was_heard_by_somebody_and_times_stay_inside(parts: list[tuple[float, Transcript]]) -> None:
    voted = rover(parts)
    heard = {word for _, part in parts for word in part.text.replace("-", " ").split()}
    assert set(voted.text.replace("-", " ").split()) <= heard
    segments = [segment for _, part in parts for segment in part.segments]
    for segment in voted.segments:
        assert min(s.start for s in segments) <= segment.start <= segment.end <= max(s.end for s in segments) + 1e-9
        assert segment.confidence is None or 0 <= segment.confidence <= 1


@given(st.lists(st.tuples(st.floats(0.1, 10), transcripts), min_size=1, max_size=4))
def test_only_the_ratio_of_weights_counts(parts: list[tuple[float, Transcript]]) -> None:
    assert rover([(4 * weight, part) for weight, part in parts]) == rover(parts)


@given(transcripts, transcripts, transcripts)
def test_more_than_half_of_the_weight_is_never_outvoted(a: Transcript, b: Transcript, c: Transcript) -> None:
    assert rover([(1.0, a), (2.5, b), (1.0, c)]).text.split() == b.text.split()


def test_a_recogniser_without_weight_has_no_vote() -> None:
    assert rover([(0.0, said("a")), (1.0, said("b"))]) == said("b")


# what it is worth


def test_three_that_err_independently_are_better_together_than_the_best_of_them() -> None:
    chance = random.Random(7)
    words = [chance.choice(VOCABULARY) for _ in range(300)]
    copies = [misheard(words, 0.15, chance) for _ in range(3)]
    alone = [word_errors(words, copy) for copy in copies]
    together = word_errors(words, rover([(1.0, said(" ".join(copy))) for copy in copies]).text.split())
    assert together < 0.6 * min(alone)


def test_three_that_make_the_same_errors_are_no_better_together() -> None:
    chance = random.Random(7)
    words = [chance.choice(VOCABULARY) for _ in range(300)]
    wrong = misheard(words, 0.15, chance)
    other = misheard(words, 0.15, chance)
    alone = word_errors(words, wrong)
    assert word_errors(words, rover([(1.0, said(" ".join(w))) for w in (wrong, wrong, other)]).text.split()) == alone


def test_the_longest_recording_is_aligned_in_seconds() -> None:
    chance = random.Random(1)
    words = [chance.choice(VOCABULARY) for _ in range(2000)]  # ten minutes, the longest a request may bring
    copies = [said(" ".join(misheard(words, 0.2, chance))) for _ in range(3)]
    began = time.process_time()
    rover([(1.0, copy) for copy in copies])
    assert time.process_time() - began < 5
