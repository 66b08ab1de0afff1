"""When an output makes sense, and when two say the same. It looks at nothing but outputs and what was asked."""

import math
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from multimoe.messages import ChatRequest
from multimoe.outputs import Box, Event, Events, Labels, Objects, Output, Segment, Text, Transcript, Words

SUM_SLACK = 1e-4  # of a distribution in float32
PIXEL_SLACK = 1.0
SECOND_SLACK = 0.1
SAME_TEXT = 0.8  # share of characters in common: the last bit of a sum may turn a generated word


def improbable(output: Output) -> Iterator[str]:
    """What is wrong with the probabilities and scores of `output`."""
    numbers = list(_scores(output))
    for number in numbers:
        if not (math.isfinite(number) and 0 <= number <= 1):
            yield f"{number!r} is no probability: give finite numbers from 0 to 1"
            return
    if isinstance(output, Labels):
        if not numbers:
            yield "there are no labels: give at least the likeliest"
        if numbers != sorted(numbers, reverse=True):
            yield f"labels are not sorted ({numbers[:3]} …): list the likeliest first"
        if sum(numbers) > 1 + SUM_SLACK:
            yield f"the probabilities of the labels sum to {sum(numbers):.4g}: a distribution sums to at most 1"


def misplaced(output: Output, request: ChatRequest) -> Iterator[str]:
    """Boxes outside the picture, and times outside the recording. Several recordings are played one after another."""
    if isinstance(output, Words | Objects) and request.images:
        for box in output.boxes:
            height, width, _ = request.images[min(box.picture, len(request.images)) - 1].pixels.shape
            if box.picture > len(request.images) or not _inside(box, width, height):
                yield _outside(box, width, height)
    if isinstance(output, Transcript | Events) and request.audios:
        seconds = sum(audio.seconds for audio in request.audios)
        spans = output.segments if isinstance(output, Transcript) else output.events
        yield from _mistimed(spans, seconds)
        if isinstance(output, Events) and abs(output.duration - seconds) > SECOND_SLACK:
            yield f"the duration is {output.duration:.2f} s, and {seconds:.2f} s were sent: give seconds of sound"


def alike(one: Output, other: Output, tolerance: float) -> bool:
    """The same output but for rounding: scores by `tolerance`, boxes by a pixel, times by 0.1 s, text by a word."""
    if isinstance(one, Text) and isinstance(other, Text):
        return likeness(one, other) >= SAME_TEXT
    if isinstance(one, Labels) and isinstance(other, Labels):
        return one.space == other.space and _same_labels(one, other, tolerance)
    ours, theirs = _marks(one, tolerance), _marks(other, tolerance)
    return (
        one.kind == other.kind
        and [words for words, _ in ours] == [words for words, _ in theirs]
        and all(_close(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    )


def likeness(one: Text, other: Text) -> float:
    """From 0 to 1: the share of characters in common, in order."""
    return SequenceMatcher(None, one.text, other.text, autojunk=False).ratio()


def _scores(output: Output) -> Iterator[float]:
    match output:
        case Labels(labels=labels):
            yield from (label.probability for label in labels)
        case Words(boxes=boxes) | Objects(boxes=boxes):
            yield from (box.score for box in boxes)
        case Events(events=events):
            yield from (event.score for event in events)


def _inside(box: Box, width: int, height: int) -> bool:
    across = -PIXEL_SLACK <= box.x0 <= box.x1 <= width + PIXEL_SLACK
    return across and -PIXEL_SLACK <= box.y0 <= box.y1 <= height + PIXEL_SLACK


def _outside(box: Box, width: int, height: int) -> str:
    corners = f"({box.x0:.0f}, {box.y0:.0f}) to ({box.x1:.0f}, {box.y1:.0f})"
    return f"a box from {corners} does not lie in a picture of {width} x {height}: give pixels of the picture as sent"


def _mistimed(spans: Iterable[Segment | Event], seconds: float) -> Iterator[str]:
    for span in spans:
        if not -SECOND_SLACK <= span.start <= span.end <= seconds + SECOND_SLACK:
            when = f"{span.start:.2f} to {span.end:.2f} s"
            yield f"something from {when} does not lie in a recording of {seconds:.2f} s: count from its beginning"


def _same_labels(one: Labels, other: Labels, tolerance: float) -> bool:
    """A label that one lists and the other does not may have been cut off, just below the last one listed."""
    ours, theirs = ({label.id or label.name: label.probability for label in of.labels} for of in (one, other))
    least = max(min(ours.values(), default=0.0), min(theirs.values(), default=0.0))
    return all(abs(ours.get(key, least) - theirs.get(key, least)) <= tolerance for key in {*ours, *theirs})


def _marks(output: Output, tolerance: float) -> list[tuple[str, tuple[float, ...]]]:
    """What is said where or when, in numbers that may differ by 1."""
    match output:
        case Words(boxes=boxes) | Objects(boxes=boxes):
            corners = [tuple(at / PIXEL_SLACK for at in (b.x0, b.y0, b.x1, b.y1)) for b in boxes]
            return [(b.text, (*at, b.score / tolerance)) for b, at in zip(boxes, corners, strict=True)]
        case Transcript(segments=segments):
            return [(s.text, (s.start / SECOND_SLACK, s.end / SECOND_SLACK)) for s in segments]
        case Events(events=events):
            return [(e.label, (e.start / SECOND_SLACK, e.end / SECOND_SLACK, e.score / tolerance)) for e in events]
    return []


def _close(one: Iterable[float], other: Iterable[float]) -> bool:
    return all(abs(a - b) <= 1 for a, b in zip(one, other, strict=True))
