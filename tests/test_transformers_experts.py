"""The experts on transformers, on tiny random models: what is asked for is honoured, and every failure says what to do.

That they keep the contract is `test_gpu_catalog`'s business.
"""

import asyncio
import gc
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from tiny_models import picture

from experts.transformers_chat import Chat
from experts.transformers_classify import Classifier
from experts.transformers_speech import Recogniser
from experts.transformers_vision_chat import VisionChat
from multimoe import hub, tokens
from multimoe.config import Card, Catalog, ExpertSpec, Limits
from multimoe.errors import BadConfig, BadInput, ExpertFailed, WeightsError
from multimoe.expert import Delta, Expert, FindWeights
from multimoe.media import decode_audio
from multimoe.messages import SAMPLE_RATE, AudioPart, ChatRequest, Message, Part, TextPart
from multimoe.outputs import Events, Labels, Transcript
from multimoe.pretrained import imagenet_labels, whisper
from multimoe.turns import conversation, fitted

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder of a tiny model, made once: `made(tiny_models.language_model, "llama")`."""
    folders: dict[tuple[object, ...], Path] = {}

    def make(kind: Callable[..., Path], *arguments: Any, **settings: Any) -> Path:
        key = (kind.__name__, *map(repr, arguments), repr(settings))
        if key not in folders:
            folders[key] = kind(tmp_path_factory.mktemp(kind.__name__), *arguments, **settings)
        return folders[key]

    return make


@pytest.fixture(scope="module")
def chat(made: Make) -> Chat:
    return Chat(spec(options={"context": 256}, batch={"size": 4}), at(made(tiny_models.language_model, "llama")))


@pytest.fixture(scope="module")
def vision(made: Make) -> VisionChat:
    seeing = spec(inputs=["text", "image"], options={"context": 512, "image_side": 112}, batch={"wait_ms": 50})
    return VisionChat(seeing, at(made(tiny_models.vision_language_model)))


def spec(**changes: object) -> ExpertSpec:
    base = {"name": "tested", "backend": "a:B", "inputs": ["text"], "output": "text", "card": Card(description="d")}
    return ExpertSpec.model_validate(base | {"weights": {"model": "file:/model"}} | changes)


def at(folder: Path) -> FindWeights:
    return lambda uri: folder


def ask(*parts: str | Part, **settings: Any) -> ChatRequest:
    said = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    return ChatRequest("r", (Message("user", said),), **settings)


async def answered(expert: Expert, request: ChatRequest) -> tuple[str, Delta]:
    deltas = [delta async for delta in expert.answer(request)]
    return "".join(delta.text for delta in deltas), deltas[-1]


async def written(expert: Expert, request: ChatRequest) -> str:
    return (await answered(expert, request))[0]


def noise(seconds: float) -> AudioPart:
    return AudioPart(np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32))


# --- text ---


@pytest.mark.parametrize("model_type", tiny_models.LANGUAGE)
async def test_writes_the_tokens_that_generate_would(made: Make, model_type: str) -> None:
    folder = made(tiny_models.language_model, model_type)
    expert = Chat(spec(options={"context": 256, "dtype": "float32"}), at(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What?"}], add_generation_prompt=True, return_tensors="pt"
    )
    whole = network.generate(**prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
    ids = whole[0, prompt["input_ids"].shape[1] :]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert await written(expert, ask("What?", max_tokens=16)) == text.rstrip("\N{REPLACEMENT CHARACTER}")  # cut in two


async def test_streams_counts_and_stops_at_max_tokens(chat: Chat) -> None:
    deltas = [delta async for delta in chat.answer(ask("Tell me about the sea.", max_tokens=12))]
    assert 6 < len(deltas) <= 13
    assert deltas[-1].finish == "length"
    assert deltas[-1].usage is not None
    assert (deltas[-1].usage.completion_tokens, deltas[-1].usage.prompt_tokens > 20) == (12, True)


async def test_others_in_the_batch_change_nothing(chat: Chat) -> None:
    requests = [ask("one", max_tokens=20), ask("another " * 20, max_tokens=8), ask("third", max_tokens=30)]
    requests += [replace(request, temperature=1.0, seed=5) for request in requests]
    alone = [await written(chat, request) for request in requests]
    assert await asyncio.gather(*(written(chat, request) for request in requests)) == alone
    assert len(set(alone)) == len(alone)


async def test_a_stop_sequence_ends_the_answer_and_is_not_shown(chat: Chat) -> None:
    whole = await written(chat, ask("What?", max_tokens=16))
    stop = whole[4:7]
    text, last = await answered(chat, ask("What?", max_tokens=16, stop=(stop, "never")))
    assert (text, last.finish) == (whole[: whole.index(stop)], "stop")
    assert last.usage is not None
    assert last.usage.completion_tokens < 16


async def test_an_end_mark_ends_the_answer(made: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(made(tiny_models.language_model, "llama"), tmp_path / "model")
    usual = Chat(spec(options={"context": 256}), at(folder))
    third = (await ids_of(usual, "What?", 3))[-1]
    transformers.GenerationConfig(eos_token_id=[third]).save_pretrained(folder)
    _, last = await answered(Chat(spec(options={"context": 256}), at(folder)), ask("What?", max_tokens=16))
    assert (last.finish, last.usage and last.usage.completion_tokens) == ("stop", 3)


async def ids_of(chat: Chat, question: str, count: int) -> tuple[int, ...]:
    found: tuple[int, ...] = ()
    while len(found) < count:
        found += ((await chat.next_tokens(ask(question), found, 1)).tokens[0].id,)
    return found


async def test_a_seed_repeats_a_draw_and_another_gives_another(chat: Chat) -> None:
    request = ask("Write.", temperature=1.0, max_tokens=16, seed=7)
    assert await written(chat, request) == await written(chat, request)
    assert await written(chat, request) != await written(chat, replace(request, seed=8))
    assert await written(chat, request) != await written(chat, replace(request, temperature=0.0))
    assert await written(chat, replace(request, top_p=1e-6)) == await written(chat, replace(request, temperature=0.0))


def test_draws_follow_the_distribution() -> None:
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05])
    keys = torch.tensor([tokens.key(seed, 1) for seed in range(20_000)])
    drawn = (wanted.log() + tokens.gumbel(keys, 4)).argmax(dim=1).bincount(minlength=4) / len(keys)
    assert (drawn - wanted).abs().max() < 0.015  # 4 standard errors
    assert torch.equal(tokens.gumbel(torch.tensor([0]), 4), torch.zeros(1, 4))


async def test_closing_the_iterator_frees_its_place(chat: Chat) -> None:
    for _ in range(6):  # more than there are places
        async with aclosing(cast(Any, chat.answer(ask("Tell me.", max_tokens=200)))) as stream:
            await anext(stream)
    async with asyncio.timeout(20):
        await written(chat, ask("Hi", max_tokens=2))
    await asyncio.sleep(0.2)
    assert chat._engine._streams == {}
    assert not chat._engine._manager.batch_processor.scheduler.active_requests


async def test_old_turns_go_until_the_question_fits(chat: Chat) -> None:
    old = [Message(role, (TextPart(f"old {n} " * 10),)) for n in range(9) for role in ("user", "assistant")]
    request = ChatRequest("r", (*old, Message("user", (TextPart("And now?"),))), max_tokens=8)  # type: ignore[arg-type]
    _, last = await answered(chat, request)
    assert last.usage is not None
    assert 40 < last.usage.prompt_tokens <= 248
    with pytest.raises(BadInput, match="shorten it"):
        await answered(chat, ask("word " * 500))


async def test_a_system_prompt_reaches_models_without_a_place_for_one(made: Make) -> None:
    mixtral = Chat(spec(options={"context": 256}), at(made(tiny_models.language_model, "mixtral")))
    briefly = ChatRequest("r", (Message("system", (TextPart("Be brief."),)), *ask("What?").messages), max_tokens=4)
    plain, prompted = [(await answered(mixtral, r))[1].usage for r in (ask("What?", max_tokens=4), briefly)]
    assert plain is not None
    assert prompted is not None
    assert prompted.prompt_tokens > plain.prompt_tokens


async def test_an_engine_that_dies_fails_its_answers_and_is_begun_anew(chat: Chat) -> None:
    broken = chat._engine._manager.batch_processor
    usual = await written(chat, ask("Hi", max_tokens=4))
    broken.update_batch = lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ExpertFailed, match=r"ran out of memory: ask less at once \(batch.size"):
        await written(chat, ask("Hi", max_tokens=4))
    assert await written(chat, ask("Hi", max_tokens=4)) == usual


def test_an_expert_that_is_gone_leaves_no_thread(made: Make) -> None:
    before = set(threading.enumerate())
    expert = Chat(spec(options={"context": 256}), at(made(tiny_models.language_model, "llama")))
    begun = set(threading.enumerate()) - before
    assert len(begun) == 2
    assert all(thread.daemon for thread in begun)
    del expert
    gc.collect()
    for thread in begun:
        thread.join(5)
        assert not thread.is_alive()


# --- one token at a time ---


async def test_next_tokens_spell_the_greedy_answer(chat: Chat, made: Make) -> None:
    for expert in (chat, Chat(spec(options={"context": 256}), at(made(tiny_models.language_model, "mixtral")))):
        whole = await written(expert, ask("What?", max_tokens=10))
        pieces = b""
        found: tuple[int, ...] = ()
        for _ in range(10):
            following = await expert.next_tokens(ask("What?"), found, 3)
            found += (following.tokens[0].id,)
            pieces += following.tokens[0].piece
        assert pieces.decode(errors="ignore").strip() == whole.replace("\N{REPLACEMENT CHARACTER}", "").strip()
        assert following.prompt_tokens > 5


async def test_next_tokens_are_a_distribution_whatever_was_asked_before(chat: Chat) -> None:
    first = await chat.next_tokens(ask("What?"), (5, 6), 10_000)
    assert sum(np.exp([token.logprob for token in first.tokens])) == pytest.approx(1, abs=1e-4)
    assert sum(token.ends for token in first.tokens) == 1
    await chat.next_tokens(ask("Something else?"), (7,), 1)  # by the same name
    again = await chat.next_tokens(ask("What?"), (5, 6), 10_000)
    with pytest.raises(ExpertFailed, match="no room for more than 256 tokens"):
        await chat.next_tokens(ask("What?"), (5,) * 250, 1)
    assert {t.id: t.logprob for t in again.tokens} == pytest.approx({t.id: t.logprob for t in first.tokens}, abs=1e-4)


# --- loading ---


def test_an_unknown_option_is_refused_with_the_right_one(made: Make) -> None:
    with pytest.raises(BadConfig, match="did you mean 'dtype'"):
        Chat(spec(options={"dtyp": "float16"}), at(made(tiny_models.language_model, "llama")))


def test_a_gpu_that_is_not_there_is_said(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_gpu = spec(serve={"ray_actor_options": {"num_gpus": 0.5}})
    with pytest.raises(BadConfig, match=r"num_gpus 0\.5, and this process sees no GPU"):
        Chat(on_gpu, at(made(tiny_models.language_model, "llama")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
async def test_weights_are_as_fine_as_asked_for(made: Make, dtype: str) -> None:
    expert = Chat(spec(options={"context": 256, "dtype": dtype}), at(made(tiny_models.language_model, "llama")))
    assert expert._network.dtype == getattr(torch, dtype)
    assert await written(expert, ask("Hi", max_tokens=4))


def test_weights_that_are_missing_pickled_or_need_code_are_refused(made: Make, tmp_path: Path) -> None:
    whole = made(tiny_models.language_model, "llama")
    with pytest.raises(WeightsError, match="cannot read"):
        Chat(spec(), at(tmp_path / "nothing"))
    pickled = shutil.copytree(whole, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="safetensors"):
        Chat(spec(), at(pickled))
    deeper = shutil.copytree(whole, tmp_path / "deeper")
    config = (deeper / "config.json").read_text()
    (deeper / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(WeightsError, match=r"lacks \d+ weights of its LlamaForCausalLM"):
        Chat(spec(), at(deeper))
    foreign = shutil.copytree(whole, tmp_path / "foreign")
    (foreign / "config.json").write_text(
        config.replace('"llama"', '"new", "auto_map": {"AutoModelForCausalLM": "m.M"}')
    )
    with pytest.raises(WeightsError, match="cannot read"):
        Chat(spec(), at(foreign))


def test_running_out_of_memory_says_what_to_do_and_other_errors_stay() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 8 GB")):
        with pytest.raises(ExpertFailed, match="num_gpus"), hub.running("x"):
            raise error
    with pytest.raises(RuntimeError, match="shape"), hub.running("x"):
        raise RuntimeError("shape mismatch")


# --- pictures ---


async def test_each_picture_and_question_of_a_batch_gets_its_own_answer(vision: VisionChat) -> None:
    requests = [
        ask("What is it?", picture(), max_tokens=12),
        ask("Hello", max_tokens=5),
        ask("What is it?", picture(1), max_tokens=9, temperature=1.0, seed=3),
    ]
    alone = [await written(vision, request) for request in requests]
    assert await asyncio.gather(*(written(vision, request) for request in requests)) == alone
    assert len(set(alone)) == 3


async def test_a_picture_counts_and_an_earlier_one_is_still_seen(vision: VisionChat) -> None:
    bare, seen = [(await answered(vision, ask("Why?", *parts, max_tokens=2)))[1].usage for parts in ((), (picture(),))]
    assert bare is not None
    assert seen is not None
    assert seen.prompt_tokens - bare.prompt_tokens > 8
    turns = (*ask("This.", picture()).messages, Message("assistant", (TextPart("Yes."),)), *ask("Why?").messages)
    later = (await answered(vision, ChatRequest("r", turns, max_tokens=2)))[1].usage
    assert later is not None
    assert later.prompt_tokens > seen.prompt_tokens


async def test_vision_chat_streams_stops_and_may_be_closed(vision: VisionChat) -> None:
    deltas = [delta async for delta in vision.answer(ask("What?", picture(), max_tokens=12))]
    assert len(deltas) > 5
    whole = "".join(delta.text for delta in deltas)
    text, last = await answered(vision, ask("What?", picture(), max_tokens=12, stop=(whole[3:5],)))
    assert (text, last.finish) == (whole[: whole.index(whole[3:5])], "stop")
    async with asyncio.timeout(20):
        async with aclosing(cast(Any, vision.answer(ask("What?", picture(), max_tokens=400)))) as stream:
            await anext(stream)
        assert await written(vision, ask("What?", picture(), max_tokens=12)) == whole


# --- speech ---


async def test_recognisers_time_what_they_hear_within_the_recording(made: Make) -> None:
    for kind in (tiny_models.whisper, tiny_models.ctc):
        hearing = spec(inputs=["audio"], output="transcript", options={"only_speech": False, "window": 5})
        expert = Recogniser(hearing, at(made(kind)))
        (short, long) = await asyncio.gather(*(answered(expert, ask(noise(seconds))) for seconds in (2.0, 32.0)))
        for (_, delta), seconds in ((short, 2.0), (long, 32.0)):
            assert isinstance(delta.output, Transcript)
            assert delta.output.segments
            assert all(0 <= segment.start <= segment.end <= seconds for segment in delta.output.segments)


async def test_nothing_is_heard_where_nobody_speaks(made: Make) -> None:
    expert = Recogniser(spec(inputs=["audio"], output="transcript"), at(made(tiny_models.whisper)))
    _, delta = await answered(expert, ask(AudioPart(np.zeros(2 * SAMPLE_RATE, np.float32))))
    assert delta.output == Transcript(segments=())


@pytest.mark.weights
async def test_hears_words_with_real_weights(catalog: Catalog, weights: FindWeights, tmp_path: Path) -> None:
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng speaks the sentence")
    for part in whisper(weights(catalog.expert("speech").weights["model"])):
        part.save_pretrained(tmp_path)
    spoken = subprocess.run(["espeak-ng", "--stdout", "the cat sat on the mat"], capture_output=True, check=True)
    expert = Recogniser(spec(inputs=["audio"], output="transcript"), at(tmp_path))
    _, delta = await answered(expert, ask(decode_audio(spoken.stdout, Limits())))
    assert isinstance(delta.output, Transcript)
    assert "sat on the mat" in delta.output.text.lower()


# --- labels ---


async def test_imagenet_is_recognised_and_pictures_are_averaged(made: Make) -> None:
    folder = made(tiny_models.image_classifier, [synonyms for _, synonyms in imagenet_labels()])
    expert = Classifier(spec(inputs=["image"], output="labels", options={"top": 1000}), at(folder))
    one, other, both = [
        (await answered(expert, ask(*pictures)))[1].output
        for pictures in ((picture(0),), (picture(1),), (picture(0), picture(1)))
    ]
    assert isinstance(one, Labels)
    assert isinstance(other, Labels)
    assert isinstance(both, Labels)
    assert both.space == "imagenet-1k"
    first, second, mean = ({label.id: label.probability for label in some.labels} for some in (one, other, both))
    assert mean == pytest.approx({id: (first[id] + second[id]) / 2 for id in first}, abs=1e-4)
    assert len(both.each) == 2
    assert next(label for label in one.labels if label.id == "n02123045").synonyms == ("tabby cat",)


async def test_temperature_makes_it_less_sure(made: Make) -> None:
    folder = made(tiny_models.text_classifier, ["negative", "positive"], initializer_range=0.5)
    sure, unsure = (
        Classifier(spec(output="labels", options={"temperature": t, "space": "sentiment"}), at(folder))
        for t in (0.1, 10)
    )
    found = [(await answered(expert, ask("I loved it!")))[1].output for expert in (sure, unsure)]
    assert all(isinstance(output, Labels) and output.space == "sentiment" for output in found)
    top = [cast(Labels, output).labels[0].probability for output in found]
    assert top[0] > top[1] > 0.5


async def test_a_tagger_says_several_things_of_each_stretch(made: Make) -> None:
    settings = {"problem_type": "multi_label_classification"}
    folder = made(tiny_models.audio_classifier, ["Speech", "Music", "Dog"], **settings)
    tagger = Classifier(spec(inputs=["audio"], output="events", options={"least": 0.0}), at(folder))
    _, delta = await answered(tagger, ask(noise(12), noise(3)))
    assert isinstance(delta.output, Events)
    assert {(event.start, event.end) for event in delta.output.events} == {(0.0, 10.0), (10.0, 15.0)}
    assert len(delta.output.events) == 6
    one_of_them = Classifier(
        spec(inputs=["audio"], output="labels", options={"scores": "softmax", "top": 3}), at(folder)
    )
    _, delta = await answered(one_of_them, ask(noise(3)))
    assert isinstance(delta.output, Labels)
    assert sum(label.probability for label in delta.output.labels) == pytest.approx(1, abs=1e-5)


def test_a_classifier_of_two_modalities_is_refused(made: Make) -> None:
    with pytest.raises(BadConfig, match="one of text, image and audio"):
        Classifier(spec(inputs=["text", "image"], output="labels"), at(made(tiny_models.text_classifier, ["a", "b"])))


# --- turns and spelling ---


def test_a_conversation_alternates_and_keeps_one_system_prompt() -> None:
    def said(role: str, text: str) -> Message:
        return Message(role, (TextPart(text),))  # type: ignore[arg-type]

    request = ChatRequest(
        "r",
        (said("assistant", "hello"), said("system", "a"), said("user", "b"), said("user", "c"), said("system", "d")),
    )
    turns = conversation(request, frozenset(("text",)), "unused")
    assert [(turn.role, turn.text) for turn in turns] == [("system", "a\n\nd"), ("user", "b\nc")]
    with pytest.raises(BadInput):
        conversation(ask(picture()), frozenset(("text",)))
    long = [said("system", "s"), *(said(role, "x" * 10) for role in ("user", "assistant") * 5), said("user", "?")]
    kept = fitted(long, 25, lambda turns: sum(len(turn.text) for turn in turns))
    assert [turn.role for turn in kept] == ["system", "user", "assistant", "user"]


def test_spelling_waits_for_whole_characters_and_possible_stops(made: Make) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(made(tiny_models.language_model, "llama"))
    ids = tokenizer("größer als 7, END und mehr")["input_ids"]
    spelling = tokens.Spelling(tokenizer.backend_tokenizer, ("END und", "ENDE"))
    shown = [spelling.write([id]) for id in ids]
    assert "".join(shown) == "größer als 7, "
    assert spelling.stopped
    unfinished = tokens.Spelling(tokenizer.backend_tokenizer, ("mehr als",))
    assert "".join(unfinished.write([id]) for id in ids).endswith("und ")
    assert unfinished.rest() == "mehr"
