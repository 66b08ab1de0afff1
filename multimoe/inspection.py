"""What an expert hands over is looked at before anybody relies on it: kind, numbers, letters and size.

An expert may be wrong; what is refused here is what no honest one says. Whatever it is, it becomes ExpertFailed, and
the next best expert is asked.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from multimoe.config import ExpertSpec
from multimoe.errors import ExpertFailed
from multimoe.expert import Delta, NextToken
from multimoe.messages import ChatRequest
from multimoe.outputs import Events, Labels, Objects, Output, Text, Transcript, Usage, Words

MOST_CHARS = 1_000_000  # of one answer, in all its pieces
MOST_ITEMS = 25_000  # labels, boxes, segments or events; ImageNet-21k has 21,841 labels
MOST_VALUES = 16 * MOST_ITEMS
MOST_EMPTY = 1024  # pieces without a word
PIECES_PER_TOKEN = 16  # there are upstreams that send letter by letter
SLACK = 0.01  # by which probabilities may add up to more than 1
KINDS: dict[str, type[BaseModel]] = {
    "text": Text,
    "labels": Labels,
    "words": Words,
    "objects": Objects,
    "transcript": Transcript,
    "events": Events,
}


async def inspected(
    deltas: AsyncIterator[Delta], spec: ExpertSpec, request: ChatRequest
) -> AsyncGenerator[Delta, None]:
    """The same, until one is not what `spec` promises. Raises ExpertFailed, and closes what it read from."""
    most = PIECES_PER_TOKEN * request.max_tokens + MOST_EMPTY
    chars = pieces = 0
    source: Any = deltas
    async with aclosing(source):
        async for delta in source:
            pieces += 1
            if pieces > most:
                raise _lie(spec, f"does not stop after {most:,} pieces")
            if not isinstance(delta, Delta) or not isinstance(delta.text, str):
                raise _lie(spec, f"handed over {type(delta).__name__!r} in place of words")
            chars += len(delta.text)
            if chars > MOST_CHARS:
                raise _lie(spec, f"wrote more than {MOST_CHARS:,} characters")
            if delta.text and not delta.text.isascii():
                _check_letters(delta.text, spec)
            if delta.output is not None:
                _check_output(delta.output, spec)
            if delta.usage is not None:
                _check_usage(delta.usage, spec)
            if delta.finish not in (None, "stop", "length"):
                raise _lie(spec, f"ended by {delta.finish!r:.40}")
            yield delta


def inspected_tokens(listed: NextToken, spec: ExpertSpec, top: int) -> NextToken:
    """The same. Raises ExpertFailed."""
    if not isinstance(listed, NextToken) or not listed.tokens:
        raise ExpertFailed(f"expert {spec.name!r} listed no token")
    if len(listed.tokens) > top:
        raise _lie(spec, f"listed {len(listed.tokens):,} tokens, asked for {top}")
    if not all(math.isfinite(token.logprob) and len(token.piece) <= MOST_EMPTY for token in listed.tokens):
        raise _lie(spec, "listed tokens with impossible probabilities or pieces")
    if sum(math.exp(min(token.logprob, 1.0)) for token in listed.tokens) > 1 + SLACK:
        raise _lie(spec, "listed tokens that are likelier than certain together")
    return listed


def _check_output(output: Output, spec: ExpertSpec) -> None:
    kind = KINDS[spec.output]
    if type(output) is not kind:
        raise _lie(spec, f"handed over {type(output).__name__!r}, and its kind is {spec.output!r}")
    if any(len(value) > MOST_ITEMS for value in vars(output).values() if isinstance(value, tuple | list)):
        raise _lie(spec, f"found more than {MOST_ITEMS:,} things")  # before anything is done with each of them
    try:  # what crossed a process was not built by its class, and may be anything
        tree = output.model_dump(warnings=False)
        _check_tree(tree, spec)
        kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise _lie(spec, f"handed over an impossible {where}: {first['msg']}") from None
    except (PydanticSerializationError, AttributeError) as error:
        raise _lie(spec, f"handed over something that is no {spec.output}: {type(error).__name__}") from None
    if isinstance(output, Labels):
        for listed in (output, *output.each):
            if sum(label.probability for label in listed.labels) > 1 + SLACK:
                raise _lie(spec, "gave probabilities that add up to more than 1")


def _check_tree(tree: Any, spec: ExpertSpec) -> None:
    """Every number finite, every text of real letters, and all of it together not too much."""
    chars = items = 0
    level = [tree]
    while level:
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below += node.values()
                items += 1
            elif isinstance(node, list | tuple):
                below += node
            elif isinstance(node, float) and not math.isfinite(node):
                raise _lie(spec, f"handed over {node} as a number")
            elif isinstance(node, str):
                chars += len(node)
                _check_letters(node, spec)
        if chars > MOST_CHARS or items + len(below) > MOST_VALUES:
            raise _lie(spec, "handed over more than anybody reads")
        level = below
    if items > MOST_ITEMS:
        raise _lie(spec, f"found {items:,} things; at most {MOST_ITEMS:,} are taken")


def _check_letters(text: str, spec: ExpertSpec) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _lie(spec, "wrote half a character, which no text can hold") from None


def _check_usage(usage: Usage, spec: ExpertSpec) -> None:
    counts = (usage.prompt_tokens, usage.completion_tokens)
    cost = usage.cost
    sane = all(isinstance(count, int) and 0 <= count < 2**53 for count in counts)
    if not sane or not (cost is None or (math.isfinite(cost) and cost >= 0)):
        raise _lie(spec, "counts tokens or cost that cannot be")


def _lie(spec: ExpertSpec, what: str) -> ExpertFailed:
    return ExpertFailed(f"expert {spec.name!r} {what}", None, "bad_output")
