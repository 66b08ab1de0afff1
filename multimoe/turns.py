"""A conversation as chat templates want it: a system prompt, then user and assistant by turns, no longer than fits.

It knows no template and no tokenizer: `count` says how long a conversation would be.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence

from multimoe.errors import BadInput
from multimoe.messages import ChatRequest, Message, Modality, Part, TextPart


def conversation(request: ChatRequest, reads: frozenset[Modality], system: str = "") -> list[Message]:
    """The system prompt (`system` where the request brings none), then user and assistant in strict alternation.

    Only parts of the modalities in `reads` stay. Raises BadInput where the question holds none.
    """
    if not request.modalities & reads:
        raise BadInput(f"the last user message holds no {' or '.join(sorted(reads))}")
    system = "\n\n".join(m.text for m in request.messages if m.role == "system" and m.text) or system
    spoken = [(m.role, part) for m in request.messages for part in m.parts if m.role != "system" and _says(part, reads)]
    by_turns = [
        Message(role, tuple(part for _, part in group))
        for role, group in itertools.groupby(spoken, key=lambda pair: pair[0])
    ]
    answered_nothing = by_turns[0].role == "assistant"
    return ([Message("system", (TextPart(system),))] if system else []) + by_turns[answered_nothing:]


def fitted(turns: Sequence[Message], allowed: int, count: Callable[[Sequence[Message]], int]) -> list[Message]:
    """`turns` without the oldest exchanges, as few gone as leaves at most `allowed` tokens.

    Raises BadInput where even the question alone is longer.
    """
    system, rest = list(turns[: turns[0].role == "system"]), turns[turns[0].role == "system" :]
    tails = [system + list(rest[at:]) for at, turn in enumerate(rest) if turn.role == "user"]  # longest first
    first = bisect.bisect_left(tails, True, key=lambda tail: count(tail) <= allowed)
    if first == len(tails):
        raise BadInput(
            f"the question has {count(tails[-1])} tokens with its instructions, and at most {allowed} are read: "
            "shorten it",
            "messages",
            "context_length_exceeded",
        )
    return tails[first]


def _says(part: Part, reads: frozenset[Modality]) -> bool:
    return part.modality in reads and not (isinstance(part, TextPart) and not part.text.strip())
