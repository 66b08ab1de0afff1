import asyncio
import math
import time
from dataclasses import replace

import pytest

from experts.content_type import ContentType
from experts.echo import Echo
from experts.llamacpp import Chat
from experts.sentiment import Sentiment, opinion
from multimoe.config import Card, Catalog, ExpertSpec
from multimoe.errors import BadConfig, BadInput, ExpertFailed
from multimoe.expert import Delta, Expert, FindWeights, Token
from multimoe.messages import ChatRequest, Message, TextPart
from multimoe.outputs import Labels
from multimoe.passage import passage


def spec(name: str = "tested", **changes: object) -> ExpertSpec:
    base = {"name": name, "backend": "a:B", "inputs": ["text"], "output": "text", "card": Card(description="d")}
    return ExpertSpec.model_validate(base | changes)


def no_weights(uri: str) -> object:
    raise AssertionError(f"asked for {uri}")


def ask(text: str, *before: tuple[str, str], **settings: object) -> ChatRequest:
    turns = [*before, ("user", text)]
    messages = tuple(Message(role, (TextPart(words),)) for role, words in turns)  # type: ignore[arg-type]
    return ChatRequest("r", messages, **settings)  # type: ignore[arg-type]


async def answered(expert: Expert, request: ChatRequest) -> tuple[str, Delta]:
    deltas = [delta async for delta in expert.answer(request)]
    return "".join(delta.text for delta in deltas), deltas[-1]


async def labels(expert: Expert, text: str) -> dict[str, float]:
    (delta,) = [delta async for delta in expert.answer(ask(text))]
    assert isinstance(delta.output, Labels)
    return {label.id or label.name: label.probability for label in delta.output.labels}


# echo


async def test_echo_streams_the_question_word_by_word() -> None:
    expert = Echo(spec(), no_weights)  # type: ignore[arg-type]
    deltas = [delta.text async for delta in expert.answer(ask("one two  three"))]
    assert deltas == ["one", " two", " three", ""]
    text, last = await answered(expert, ask("one two three", max_tokens=2))
    assert (text, last.finish, last.usage and last.usage.completion_tokens) == ("one two", "length", 2)


async def test_echo_takes_the_part_of_a_classifier() -> None:
    expert = Echo(spec(options={"labels": {"dog": 0.2, "cat": 0.7}, "space": "pets"}), no_weights)  # type: ignore[arg-type]
    first = await anext(expert.answer(ask("?")))
    assert isinstance(first.output, Labels)
    assert (first.output.space, [label.name for label in first.output.labels]) == ("pets", ["cat", "dog"])


async def test_echo_fails_at_once_or_midway_as_told() -> None:
    at_once = Echo(spec(options={"fail": True}), no_weights)  # type: ignore[arg-type]
    with pytest.raises(ExpertFailed):
        await anext(at_once.answer(ask("hi")))
    midway = Echo(spec(options={"fail": "midway"}), no_weights).answer(ask("hi there"))  # type: ignore[arg-type]
    assert (await anext(midway)).text == "hi"
    with pytest.raises(ExpertFailed):
        await anext(midway)


def test_echo_refuses_an_option_it_does_not_have() -> None:
    with pytest.raises(BadConfig, match="dealy"):
        Echo(spec(options={"dealy": 1}), no_weights)  # type: ignore[arg-type]


# the passage a question is about


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("What is this?\n```python\nprint(1)\n```\nThanks", "print(1)\n"),
        ("Look: ```\nSELECT 1", "SELECT 1"),
        ("Which language is this? SELECT * FROM t;", "SELECT * FROM t;"),
        ("Is this review positive?\n\nI hated it.", "I hated it."),
        ("Classify the sentiment of this review: I hated it.", "I hated it."),
        ("class Foo:\n    x = 1", "class Foo:\n    x = 1"),
        ("for item in items:\n    print(item)", "for item in items:\n    print(item)"),
        ("int x = a ? b : c;", "int x = a ? b : c;"),
        ("What is love?", "What is love?"),
    ],
)
def test_tells_a_passage_from_the_instruction_around_it(text: str, about: str) -> None:
    assert passage(text) == about


# sentiment


@pytest.fixture(scope="module")
def sentiment() -> Sentiment:
    return Sentiment(spec(output="labels"), no_weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "likeliest"),
    [
        ("I loved this film, the acting was superb!", "positive"),
        ("The food was terrible and the staff were rude.", "negative"),
        ("The train leaves at nine from platform two.", "neutral"),
        ("Is this review positive? The plot was boring and a waste of time.", "negative"),
        ("Is the review “I hated every awful minute of it” positive or negative?", "negative"),
    ],
)
async def test_tells_how_a_text_feels(sentiment: Sentiment, text: str, likeliest: str) -> None:
    found = await labels(sentiment, text)
    assert max(found, key=found.__getitem__) == likeliest
    assert sum(found.values()) == pytest.approx(1)


def test_a_quoted_word_is_not_yet_an_opinion() -> None:
    assert opinion('The "great" service was awful') == 'The "great" service was awful'


# content type


@pytest.fixture(scope="module")
def content_type() -> ContentType:
    return ContentType(spec(output="labels"), no_weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "mime"),
    [
        ("import os\n\ndef area(r):\n    return 3.14 * r ** 2\n\nprint(area(float(os.environ['R'])))", "text/x-python"),
        (
            "Which language is this?\n```\nSELECT name, age FROM users WHERE age > 30 ORDER BY name;\n```",
            "application/x-sql",
        ),
        ('{"name": "multimoe", "tags": ["a", "b"], "stars": 3}', "application/json"),
        ("Dear Anna, thank you for your letter. We arrived on Monday and the sea is lovely.", "text/plain"),
    ],
)
async def test_tells_code_from_data_and_prose(content_type: ContentType, text: str, mime: str) -> None:
    found = await labels(content_type, text)
    assert max(found, key=found.__getitem__) == mime


# chat


@pytest.fixture(scope="module")
def chat(catalog: Catalog, weights: FindWeights) -> Chat:
    return Chat(catalog.expert("chat").model_copy(update={"options": {"context": 512, "parallel": 2}}), weights)


@pytest.mark.weights
async def test_answers_and_counts_its_tokens(chat: Chat) -> None:
    text, last = await answered(chat, ask("What is the capital of France?"))
    assert "Paris" in text
    assert last.finish == "stop"
    assert last.usage is not None
    assert 30 < last.usage.prompt_tokens < 50
    assert 5 < last.usage.completion_tokens < 15


@pytest.mark.weights
async def test_streams_token_by_token(chat: Chat) -> None:
    pieces = [delta.text async for delta in chat.answer(ask("Tell me about the sea.", max_tokens=12)) if delta.text]
    assert len(pieces) == 12


@pytest.mark.weights
async def test_stops_at_max_tokens_and_says_so(chat: Chat) -> None:
    _, last = await answered(chat, ask("Write a long story about the sea.", max_tokens=8))
    assert (last.finish, last.usage and last.usage.completion_tokens) == ("length", 8)


@pytest.mark.weights
async def test_stops_before_a_stop_sequence(chat: Chat) -> None:
    text, last = await answered(chat, ask("What is the capital of France?", stop=("Paris",)))
    assert "Paris" not in text
    assert last.finish == "stop"


@pytest.mark.weights
async def test_a_seed_repeats_a_sampled_answer(chat: Chat) -> None:
    request = ask("Write a short poem.", temperature=1.5, max_tokens=16, seed=7)
    await answered(chat, request)  # from here on both find the same prompt already read
    first, second = [(await answered(chat, request))[0] for _ in range(2)]
    other, _ = await answered(chat, replace(request, seed=8))
    assert first == second != other


@pytest.mark.weights
async def test_remembers_earlier_turns(chat: Chat) -> None:
    history = (("user", "My name is Anna."), ("assistant", "Nice to meet you, Anna."))
    text, _ = await answered(chat, ask("What is my name?", *history, max_tokens=24))
    assert "Anna" in text


@pytest.mark.weights
async def test_an_early_close_frees_its_slot(chat: Chat) -> None:
    long = ask("Write a very long story about the sea.", max_tokens=400)
    for _ in range(3):  # more than there are slots
        stream = chat.answer(long)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # every answer is an async generator
    started = time.monotonic()
    await answered(chat, ask("Hi", max_tokens=2))
    assert time.monotonic() - started < 8  # 400 tokens take longer on any machine of one thread


@pytest.mark.weights
async def test_two_answers_are_written_side_by_side(chat: Chat) -> None:
    order: list[str] = []

    async def read(name: str) -> None:
        async for _ in chat.answer(ask("Write a story about the sea.", max_tokens=24)):
            order.append(name)

    await asyncio.gather(read("a"), read("b"))
    assert "".join(order).strip("a") != "b" * 25
    assert "".join(order).strip("b") != "a" * 25


@pytest.mark.weights
async def test_forgets_the_oldest_turns_when_a_conversation_grows_too_long(chat: Chat) -> None:
    history = [
        turn for n in range(40) for turn in (("user", f"Tell me fact number {n}."), ("assistant", "A fact. " * 9))
    ]
    _, last = await answered(chat, ask("What is the capital of France?", *history, max_tokens=8))
    assert last.usage is not None
    assert 400 < last.usage.prompt_tokens <= 512 - 8


@pytest.mark.weights
async def test_a_question_too_long_by_itself_is_refused_with_the_limit(chat: Chat) -> None:
    with pytest.raises(BadInput, match=r"at most 384") as refusal:
        await answered(chat, ask("word " * 600, max_tokens=256))
    assert refusal.value.code == "context_length_exceeded"


@pytest.mark.weights
def test_chat_refuses_an_option_it_does_not_have(catalog: Catalog, weights: FindWeights) -> None:
    with pytest.raises(BadConfig, match="contxt"):
        Chat(catalog.expert("chat").model_copy(update={"options": {"contxt": 1}}), weights)


@pytest.mark.weights
async def test_token_by_token_it_writes_what_it_writes_in_one_go(catalog: Catalog, weights: FindWeights) -> None:
    plain = Chat(catalog.expert("chat").model_copy(update={"options": {"context": 256, "sampling": {}}}), weights)
    request = ask("Say the sea in emoji and in Japanese: 海 🌊", max_tokens=12)
    whole, last = await answered(plain, request)
    written: list[Token] = []
    while len(written) < 12 and not (written and written[-1].ends):
        listed = await plain.next_tokens(request, tuple(token.id for token in written), 5)
        assert len(listed.tokens) == 5
        assert 0.1 < sum(math.exp(token.logprob) for token in listed.tokens) <= 1 + 1e-6
        written.append(listed.tokens[0])
    said = b"".join(token.piece for token in written).decode("utf-8", "ignore")
    assert said.startswith(whole)
    assert last.usage
    assert last.usage.prompt_tokens == listed.prompt_tokens


@pytest.mark.weights
async def test_knows_which_token_ends_an_answer(chat: Chat) -> None:
    request = ask("What is the capital of France?", ("user", "Hi"), ("assistant", "Hello."))
    whole, _ = await answered(chat, request)
    listed = await chat.next_tokens(request, (), 1)
    written: tuple[int, ...] = ()
    while not listed.tokens[0].ends and len(written) < 24:
        written += (listed.tokens[0].id,)
        listed = await chat.next_tokens(request, written, 1)
    assert listed.tokens[0].ends
    assert listed.tokens[0].piece == b""
    assert "Paris" in whole
