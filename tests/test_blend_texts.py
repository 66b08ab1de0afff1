"""A vote among texts, what is told to one who fuses them, and the mixture of next tokens: against sums done by hand."""

import math

import numpy as np
import pytest

from multimoe.blend.texts import to_fuse, vote
from multimoe.blend.tokens import Words, mix_tokens, pick
from multimoe.expert import NextToken, Token, vocabulary_fingerprint
from multimoe.messages import ChatRequest, ImagePart, Message, TextPart

EAST, NORTH = (1.0, 0.0), (0.0, 1.0)
BETWEEN = (math.sqrt(0.5), math.sqrt(0.5))
GENERATOR = np.random.default_rng(7)


def listed(vocabulary: str = "v", **probabilities: float) -> NextToken:
    """Tokens named by a letter, whose id is its place in the alphabet; "z" ends an answer."""
    tokens = [
        Token(ord(name) - ord("a"), math.log(p), b"" if name == "z" else name.encode(), name == "z")
        for name, p in probabilities.items()
    ]
    return NextToken(tuple(sorted(tokens, key=lambda token: -token.logprob)), vocabulary)


def shares(tokens: tuple[Token, ...]) -> dict[str, float]:
    return {chr(token.id + ord("a")): math.exp(token.logprob) for token in tokens}


# the vote


def test_who_says_what_others_say_wins_over_a_weightier_loner() -> None:
    voted = vote([0.4, 0.3, 0.3], [EAST, NORTH, NORTH])
    assert voted.winner == 1
    assert voted.utilities == pytest.approx((0.4, 0.6, 0.6))


def test_utility_is_the_expectation_of_likeness_by_weight() -> None:
    weights, vectors = np.array([0.5, 0.2, 0.3]), np.array([EAST, NORTH, BETWEEN])
    by_hand = [sum(w * float(a @ b) for w, b in zip(weights, vectors, strict=True)) for a in vectors]
    assert vote([5, 2, 3], vectors.tolist()).utilities == pytest.approx(by_hand)


def test_of_two_the_weightier_wins_whatever_they_say() -> None:
    for angle in np.linspace(0.1, math.pi, 7):
        assert vote([0.4, 0.6], [EAST, (math.cos(angle), math.sin(angle))]).winner == 1


def test_agreement_is_with_the_others_and_not_with_oneself() -> None:
    assert vote([0.9, 0.1], [EAST, NORTH]).agreement == pytest.approx(0)
    assert vote([0.9, 0.1], [EAST, EAST]).agreement == pytest.approx(1)
    assert vote([1, 0], [EAST, NORTH]).agreement == pytest.approx(0)
    assert vote([1], [EAST]).agreement == 1


def test_the_vote_does_not_hang_on_the_order() -> None:
    weights, vectors = GENERATOR.random(6), GENERATOR.normal(size=(6, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = GENERATOR.permutation(6)
    there = vote(weights.tolist(), vectors.tolist())
    again = vote(weights[order].tolist(), vectors[order].tolist())
    assert order[again.winner] == there.winner
    assert again.agreement == pytest.approx(there.agreement)


def test_there_is_no_vote_on_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to vote on"):
        vote([], [])


# what is fused


def test_candidates_are_told_best_first_with_their_weights() -> None:
    request = ChatRequest("r", (Message("system", (TextPart("Be kind."),)), Message("user", (TextPart("Where?"),))))
    asked = to_fuse(request, [(1, "In Rome."), (3, "In Paris.")])
    assert asked.text.index("Where?") < asked.text.index("(trust 75%): In Paris.")
    assert asked.text.index("(trust 75%): In Paris.") < asked.text.index("(trust 25%): In Rome.")
    assert asked.messages[0].text == "Be kind."


def test_who_fuses_keeps_the_pictures_it_can_see() -> None:
    picture = ImagePart(np.zeros((2, 2, 3), np.uint8))
    request = ChatRequest("r", (Message("user", (TextPart("What is it?"), picture)),))
    assert to_fuse(request, [(1, "a cat")], frozenset({"text", "image"})).images == (picture,)
    assert to_fuse(request, [(1, "a cat")], frozenset({"text"})).modalities == {"text"}


def test_a_very_long_candidate_is_cut() -> None:
    asked = to_fuse(ChatRequest("r", (Message("user", (TextPart("?"),)),)), [(1, "word " * 5000)])
    assert len(asked.text) < 5000


# the mixture of next tokens


def test_a_mixture_is_the_weighted_sum_over_all_tokens_listed() -> None:
    mixed = mix_tokens([(3, listed(a=0.5, b=0.5)), (1, listed(b=0.25, c=0.75))])
    assert shares(mixed) == pytest.approx({"a": 0.375, "b": 0.4375, "c": 0.1875})
    assert [chr(token.id + ord("a")) for token in mixed] == ["b", "a", "c"]


def test_a_mixture_of_one_is_itself_whatever_its_weight() -> None:
    alone = listed(a=0.6, b=0.3, z=0.1)
    for weight in (0.0, 0.2, 5.0):
        assert shares(mix_tokens([(weight, alone)])) == pytest.approx(shares(alone.tokens))


def test_weight_nought_says_nothing() -> None:
    one, other = listed(a=0.6, b=0.4), listed(b=0.1, c=0.9)
    assert shares(mix_tokens([(1, one), (0, other)])) == pytest.approx({"a": 0.6, "b": 0.4})


def test_mixtures_keep_what_is_certain_and_sum_to_what_is_listed() -> None:
    for _ in range(20):
        parts = [
            (float(GENERATOR.random()), listed(**dict(zip("abcdz", GENERATOR.dirichlet(np.ones(6))[:5], strict=True))))
            for _ in range(3)
        ]
        mixed = shares(mix_tokens(parts))
        total = sum(weight for weight, _ in parts)
        for name in "abcdz":
            by_hand = sum(w / total * shares(part.tokens)[name] for w, part in parts)
            assert mixed[name] == pytest.approx(by_hand)
        assert sum(mixed.values()) <= 1 + 1e-9


def test_an_end_mark_stays_one() -> None:
    mixed = mix_tokens([(1, listed(a=0.4, z=0.6)), (1, listed(a=0.9))])
    assert {chr(token.id + ord("a")): token.ends for token in mixed} == {"a": False, "z": True}


def test_tokens_of_different_vocabularies_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="one vocabulary"):
        mix_tokens([(1, listed("mine", a=1)), (1, listed("yours", a=1))])


def test_a_fingerprint_is_of_the_pieces_and_their_places() -> None:
    assert vocabulary_fingerprint([b"a", b"b"]) == vocabulary_fingerprint(iter((b"a", b"b")))
    assert len({vocabulary_fingerprint(p) for p in ([b"a", b"b"], [b"b", b"a"], [b"ab"], [b"", b"ab"])}) == 4


@pytest.mark.parametrize("temperature", [0, 1e-320])
def test_at_temperature_0_the_likeliest_is_picked(temperature: float) -> None:
    tokens = mix_tokens([(1, listed(a=0.3, b=0.4, c=0.3))])
    assert pick(tokens, temperature, 1, GENERATOR).piece == b"b"


def test_else_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    tokens = mix_tokens([(1, listed(a=0.6, b=0.3, c=0.05))])
    drawn = [pick(tokens, 1, 1, GENERATOR).piece for _ in range(4000)]
    assert drawn.count(b"a") / 4000 == pytest.approx(0.6 / 0.95, abs=0.03)
    cold = [pick(tokens, 0.5, 1, GENERATOR).piece for _ in range(4000)]
    assert cold.count(b"a") / 4000 == pytest.approx(0.36 / (0.36 + 0.09 + 0.0025), abs=0.03)


def test_the_nucleus_holds_the_token_that_crosses_it_and_none_after() -> None:
    tokens = mix_tokens([(1, listed(a=0.5, b=0.3, c=0.2))])
    assert {pick(tokens, 1, 0.4, GENERATOR).piece for _ in range(100)} == {b"a"}
    assert {pick(tokens, 1, 0.6, GENERATOR).piece for _ in range(200)} == {b"a", b"b"}
    assert {pick(tokens, 1, 1.0, GENERATOR).piece for _ in range(400)} == {b"a", b"b", b"c"}


# what is said of it


@pytest.mark.parametrize("cut", range(1, 8))
def test_only_whole_characters_are_said(cut: int) -> None:
    text = "é🌊a"
    words, said = Words(), []
    for at in range(0, len(text.encode()), cut):
        said.append(words.add(text.encode()[at : at + cut]))
    assert "".join(said) + words.rest() == text
    assert all("\ufffd" not in piece for piece in said)


def test_half_a_character_at_the_end_is_left_out() -> None:
    words = Words()
    assert words.add("a🌊".encode()[:3]) + words.rest() == "a"


@pytest.mark.parametrize("pieces", [["one END two"], ["one E", "ND two"], ["one ", "E", "N", "D", "two"]])
def test_nothing_from_a_stop_sequence_on_is_said(pieces: list[str]) -> None:
    words, said = Words(["END", "FIN"]), ""
    for piece in pieces:
        if not words.stopped:
            said += words.add(piece.encode())
    assert (said + words.rest(), words.stopped) == ("one ", True)


def test_what_only_looks_like_a_stop_sequence_is_said_in_the_end() -> None:
    words = Words(["END"])
    assert words.add(b"the E") == "the "
    assert words.add(b"N") == ""
    assert words.add(b"vy") == "ENvy"
    assert words.add(b" E") == " "
    assert words.rest() == "E"
