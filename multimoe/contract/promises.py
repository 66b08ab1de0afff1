"""What an expert promises, one function each: the name is the promise, the body tries it.

Each returns where the promise was kept and raises Broken, with advice, where it was not.
"""

import asyncio
import pickle  # noqa: TID251  # of what was made here
import time
from collections.abc import Iterable
from contextlib import aclosing, suppress

from pydantic import TypeAdapter

from multimoe.config import ExpertSpec
from multimoe.contract.examination import WINDOW_S, Asked, Broken, Examination, Untried, asking, busy, output_of
from multimoe.contract.probes import STORY, edges
from multimoe.contract.soundness import alike, improbable, likeness, misplaced
from multimoe.errors import BadConfig, BadInput, MultimoeError
from multimoe.expert import BatchExpert
from multimoe.messages import ChatRequest, TextPart
from multimoe.outputs import Output, Text

STALL_S = 0.25  # for which the event loop may stand still
TRIES = 4  # at an answer that did not stall it
QUIET_S = 2.0  # within which work must end after its iterator was closed, beside the time of an answer under way
BUSY = 0.1  # of one processor, beside what it uses idle: what counts as work
FEW = 4  # tokens
CLOSED = 3  # answers that are given up midway


# --- loading ---


async def refuses_unknown_options(examination: Examination) -> None:
    spec = examination.spec.model_copy(update={"options": {**examination.spec.options, "no-such-option": 1}})
    await _must_refuse(examination, spec, "an unknown option was taken: read them by `self.options(MyOptions)`")


async def refuses_missing_weights(examination: Examination) -> None:
    if not examination.spec.weights:
        raise Untried("its spec lists no weights")
    spec = examination.spec.model_copy(update={"weights": {}})
    await _must_refuse(examination, spec, "it loaded without weights: ask for them by `self.weight(name)` in __init__")


async def _must_refuse(examination: Examination, spec: ExpertSpec, otherwise: str) -> None:
    try:
        await asyncio.to_thread(examination.load, spec, examination.find)
    except BadConfig:
        return
    except Exception as error:  # the finding is that it is another one
        raise Broken(f"it raised {type(error).__name__} ({error}), not BadConfig") from error
    raise Broken(otherwise)


# --- answering ---


async def answers_what_it_reads(examination: Examination) -> None:
    """Each modality of `inputs` alone and all together; in the kind of `output`."""
    singles = [asking(examination.probes.of(modality)[0]) for modality in sorted(examination.spec.inputs)]
    answers = [await examination.ask(single) for single in singles] if len(singles) > 1 else []
    for asked in [*answers, await examination.alone()]:
        _check_kind(asked, examination.spec)


def _check_kind(asked: Asked, spec: ExpertSpec) -> None:
    reads = ", ".join(sorted(asked.request.modalities))
    if not asked.deltas:
        raise Broken(f"there was no answer to {reads}: yield at least one Delta")
    if asked.output.kind != spec.output:
        raise Broken(f"the answer to {reads} is {asked.output.kind}; the spec declares {spec.output}: make them agree")
    if isinstance(asked.output, Text) and not asked.output.text.strip():
        raise Broken(f"the answer to {reads} is blank: say something, or raise ExpertFailed")


async def ends_with_usage_and_finish(examination: Examination) -> None:
    deltas = (await examination.alone()).deltas
    if deltas[-1].finish is None or deltas[-1].usage is None:
        raise Broken("the last Delta lacks usage or finish: end with Delta(usage=Usage(...), finish='stop')")
    if any(delta.finish for delta in deltas[:-1]):
        raise Broken("a Delta before the last one says finish: only the last one may")
    if sum(delta.output is not None for delta in deltas) > 1:
        raise Broken("several Deltas carry an output: yield the whole of it once")


async def refuses_what_it_does_not_read(examination: Examination) -> None:
    others = examination.foreign()
    if not others:
        raise Untried("it reads everything")
    try:
        await examination.ask(asking(*others))
    except BadInput:
        return
    except MultimoeError as error:
        raise Broken(f"asked nothing it reads, it raised {type(error).__name__}: raise BadInput") from error
    raise Broken("it answered a question that holds nothing it reads: raise BadInput")


async def ignores_parts_it_does_not_read(examination: Examination) -> None:
    others = examination.foreign()
    if not others:
        raise Untried("it reads everything")
    among = await examination.ask(asking(*others, *examination.ordinary().question.parts))
    if not alike(among.output, (await examination.alone()).output, examination.tolerance):
        raise Broken("parts it does not read change its answer: look only at parts of the modalities in `inputs`")


async def bears_blank_and_absurd_input(examination: Examination) -> None:
    """An answer or one of our errors; anything else would count as a crash."""
    for modality in sorted(examination.spec.inputs):
        for name, part in edges(modality):
            try:
                asked = await examination.ask(asking(part))
            except MultimoeError:
                continue
            except Broken as late:
                raise Broken(f"asked {name}: {late}") from late
            except Exception as error:  # the finding is which one
                raise Broken(
                    f"asked {name}, it raised {type(error).__name__} ({str(error)[:200]}): answer, or raise BadInput"
                ) from error
            if asked.output.kind != examination.spec.output:
                raise Broken(f"asked {name}, it gave {asked.output.kind}, not {examination.spec.output} as declared")


async def obeys_max_tokens(examination: Examination) -> None:
    if examination.spec.output != "text":
        raise Untried("only text is written in tokens")
    asked = await examination.ask(await _long(examination, FEW))
    usage, words = asked.deltas[-1].usage, len(_said(asked).split())
    written = usage.completion_tokens if usage else 0
    if written > FEW or words > 2 * FEW:
        raise Broken(f"allowed {FEW} tokens, it wrote {max(written, words)}: stop at request.max_tokens")


async def _long(examination: Examination, max_tokens: int) -> ChatRequest:
    """What makes a writer write long; an ordinary question for who does not do stories."""
    if "text" not in examination.spec.inputs:
        return asking(*examination.ordinary().question.parts, max_tokens=max_tokens)
    story = asking(TextPart(STORY), max_tokens=max_tokens)
    try:
        async with aclosing(examination.opened(story)) as stream:
            await anext(stream, None)
    except MultimoeError:
        return asking(*examination.ordinary().question.parts, max_tokens=max_tokens)
    return story


def _said(asked: Asked) -> str:
    return asked.output.text if isinstance(asked.output, Text) else ""


# --- giving up ---


async def may_be_closed_early(examination: Examination) -> None:
    """Unread, midway, or cancelled while it waits: the work ends, nothing is left behind, and the next is answered."""
    request = await _long(examination, 512)
    await examination.alone()  # what it keeps running between requests is running
    tasks = len(asyncio.all_tasks())
    started = time.monotonic()
    for _ in range(CLOSED):
        await _give_up(examination, request)
    under_way = max(asked.seconds for asked in examination.answers)
    if not await _quiet_within(QUIET_S + under_way, examination.idle):
        seconds = time.monotonic() - started
        raise Broken(f"it still computes {seconds:.1f} s after its iterators were closed: stop the work in `finally`")
    if (left := len(asyncio.all_tasks()) - tasks) >= CLOSED:
        raise Broken(f"{left} tasks are left of {CLOSED} closed answers: cancel what answer() started in `finally`")
    await _serves_on(examination, "its iterator was closed")


async def _give_up(examination: Examination, request: ChatRequest) -> None:
    await examination.opened(request).aclose()
    async with aclosing(examination.opened(request)) as stream:
        if examination.spec.output == "text":
            await anext(stream, None)
            return
        first = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0.01)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first


async def _quiet_within(seconds: float, idle: float) -> bool:
    """Twice in a row, because another process may have had the processor the first time."""
    deadline, quiet = time.monotonic() + seconds, 0
    while quiet < 2 and time.monotonic() < deadline + WINDOW_S:
        quiet = quiet + 1 if await busy() < idle + BUSY else 0
    return quiet == 2


async def _serves_on(examination: Examination, after: str) -> None:
    again = await examination.ask(examination.ordinary())
    own, foreign = (await examination.alone(0)).output, (await examination.alone(1)).output
    _check_own(again.output, own, foreign, examination, f"after {after}")


# --- several at once ---


async def does_not_mix_requests_up(examination: Examination) -> None:
    """Two questions asked twice each, all at once: every answer is that to its own question."""
    alone = await _different_answers(examination)
    asked = await asyncio.gather(*(examination.ask(examination.ordinary(which)) for which in (0, 1, 0, 1)))
    for which, answer in zip((0, 1, 0, 1), asked, strict=True):
        _check_own(answer.output, alone[which], alone[1 - which], examination, "asked beside others")


async def answers_a_batch_as_one_by_one(examination: Examination) -> None:
    expert = examination.expert
    if not isinstance(expert, BatchExpert):
        raise Untried("it takes no batches")
    alone = await _different_answers(examination)
    answers = await asyncio.to_thread(expert.answer_batch, [examination.ordinary(0), examination.ordinary(1)])
    if len(answers) != 2:
        raise Broken(f"answer_batch gave {len(answers)} answers to 2 requests: give one each, in order")
    for which, answer in enumerate(answers):
        _check_own(answer.output, alone[which], alone[1 - which], examination, "in a batch")
        if not alike(answer.output, alone[which], examination.tolerance):
            raise Broken("in a batch it answers differently: look for padding, and for sums over the whole batch")


async def _different_answers(examination: Examination) -> tuple[Output, Output]:
    first, second = (await examination.alone(0)).output, (await examination.alone(1)).output
    if first == second if isinstance(first, Text) else alike(first, second, examination.tolerance):
        raise Untried("it answers both probes alike, so a mix-up could not be seen: pass it better probes")
    return first, second


def _check_own(given: Output, own: Output, foreign: Output, examination: Examination, when: str) -> None:
    if isinstance(given, Text) and isinstance(own, Text) and isinstance(foreign, Text):
        right = likeness(given, own) >= likeness(given, foreign)
    else:
        right = alike(given, own, examination.tolerance)
    if not right:
        raise Broken(f"{when}, it answers a question with something else: keep nothing of a request on self")


async def leaves_the_event_loop_free(examination: Examination) -> None:
    """The worst of all answers so far, tried again: another process may have had the processor."""
    worst = max(examination.answers, key=lambda asked: asked.stalled)
    stalled = worst.stalled
    for _ in range(TRIES):
        if stalled <= STALL_S:
            return
        with suppress(MultimoeError):
            worst = await examination.ask(worst.request)
        stalled = min(stalled, worst.stalled)
    if stalled > STALL_S:
        raise Broken(
            f"the event loop stood still for {stalled:.2f} s: compute in `asyncio.to_thread`, or a BatchExpert"
        )


# --- what was said ---


async def says_the_same_again(examination: Examination) -> None:
    """At temperature 0. An engine may read a prompt it knows in other steps, so the first time does not count."""
    first, second = [(await examination.ask(examination.ordinary())).output for _ in range(2)]
    same = first == second if isinstance(first, Text) else alike(first, second, 1e-5)
    if not same:
        raise Broken("asked the same twice at temperature 0, it says something else: draw nothing by chance then")


async def gives_probabilities(examination: Examination) -> None:
    _none_wrong(fault for asked in examination.answers for fault in improbable(asked.output))


async def places_things_within_what_was_sent(examination: Examination) -> None:
    _none_wrong(fault for asked in examination.answers for fault in misplaced(asked.output, asked.request))


def _none_wrong(faults: Iterable[str]) -> None:
    for fault in faults:
        raise Broken(fault)


async def crosses_processes(examination: Examination) -> None:
    """Specs and Deltas are pickled between processes, outputs become JSON."""
    deltas = (await examination.alone()).deltas
    for thing in (examination.spec, deltas):
        try:
            same = pickle.loads(pickle.dumps(thing)) == thing  # noqa: S301  # what was pickled here
        except Exception as error:  # pickle raises whatever it likes
            raise Broken(
                f"its answer cannot be pickled ({error}): build it of the types in multimoe.outputs"
            ) from error
        if not same:
            raise Broken("its answer is another after pickling: build it of the types in multimoe.outputs")
    output, adapter = output_of(deltas), TypeAdapter[Output](Output)
    try:
        again = adapter.validate_json(adapter.dump_json(output))
    except ValueError as error:
        raise Broken(f"its output is no valid JSON of its kind: {error}") from error
    if again != output:
        raise Broken("its output is another after being JSON: use plain numbers and strings")


OF_LOADING = (refuses_unknown_options, refuses_missing_weights)
ANSWERS = answers_what_it_reads
OF_ANSWERS = (
    ends_with_usage_and_finish,
    refuses_what_it_does_not_read,
    ignores_parts_it_does_not_read,
    bears_blank_and_absurd_input,
    obeys_max_tokens,
    may_be_closed_early,
    does_not_mix_requests_up,
    answers_a_batch_as_one_by_one,
    says_the_same_again,
    leaves_the_event_loop_free,
    gives_probabilities,
    places_things_within_what_was_sent,
    crosses_processes,
)
