"""Several experts' outputs become one answer, by kind: distributions are mixed, the rest is said in words.

It only transforms what experts said. Who is asked, in which order and what happens on failure is `mixture`'s.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multimoe.messages import ChatRequest
from multimoe.outputs import Events, Label, Labels, Objects, Output, Text, Transcript, Words

SURE = 0.5  # a likeliest label below this is said as a guess, with its rivals
WORTH_SAYING = 0.05  # probability under which a label is noise to a reader
SPOKEN_LABELS = 3
SPOKEN_NOTES = 16


@dataclass(frozen=True)
class Weighted:
    """One expert's output and its weight, >= 0, in any scale."""

    weight: float
    output: Output


def blend(parts: Sequence[Weighted]) -> Output:
    """One output from one or more, led by the kind with the most weight (the first of equals).

    Labels of that kind's space are mixed; of every other kind the weightiest speaks. Raises ValueError on no parts.
    """
    if not parts:
        raise ValueError("nothing to blend: no part has an output")
    shares: dict[tuple[str, str], float] = defaultdict(float)
    for part in parts:
        shares[_family(part.output)] += part.weight
    leading = max(shares, key=lambda family: shares[family])
    family = [part for part in parts if _family(part.output) == leading]
    labels = [(part.weight, part.output) for part in family if isinstance(part.output, Labels)]
    return mix_labels(labels) if labels else max(family, key=lambda part: part.weight).output


def mix_labels(parts: Sequence[tuple[float, Labels]]) -> Labels:
    """Mixture of distributions: p(label) = sum of w_i p_i(label) over the union of labels, weights normalised to 1.

    A label is the same where its id is (its name where it has none). A label an expert does not list counts as 0 there,
    so the result sums to at most 1. All parts must share one space (ValueError).
    """
    spaces = {labels.space for _, labels in parts}
    if len(spaces) != 1:
        raise ValueError(f"only labels of one space can be mixed, got {sorted(spaces)}")
    total = sum(weight for weight, _ in parts)
    scale = [weight / total if total > 0 else 1 / len(parts) for weight, _ in parts]
    mixed: dict[str, Label] = {}
    for share, (_, labels) in zip(scale, parts, strict=True):
        for label in labels.labels:
            key = label.id or label.name
            before = mixed[key].probability if key in mixed else 0.0
            mixed[key] = label.model_copy(update={"probability": min(1.0, before + share * label.probability)})
    ordered = sorted(mixed.values(), key=lambda label: -label.probability)
    return Labels(space=spaces.pop(), labels=tuple(ordered))


def is_empty(output: Output) -> bool:
    """True where the expert looked and found nothing to report."""
    match output:
        case Text(text=text):
            return not text.strip()
        case Labels(labels=found):
            return not found
        case Words(boxes=boxes) | Objects(boxes=boxes):
            return not boxes
        case Transcript():
            return not output.text
        case Events(events=events):
            return not events


def say(output: Output) -> str:
    """The output in words for a person, one to a few lines."""
    return _SAY[output.kind](output)


def say_all(parts: Sequence[Weighted]) -> str:
    """The blended output, then what the other kinds found, a line a kind; empty ones only where all are empty."""
    lead = blend(parts)
    rest = [part for part in parts if _family(part.output) != _family(lead)]
    families = dict.fromkeys(_family(part.output) for part in sorted(rest, key=lambda part: -part.weight))
    said = [lead, *(blend([part for part in rest if _family(part.output) == family]) for family in families)]
    found = [output for output in said if not is_empty(output)]
    return "\n".join(say(output) for output in found or said[:1])


def hand_over(request: ChatRequest, evidence: Sequence[tuple[str, Output]]) -> ChatRequest:
    """The request as a text expert can answer it: pictures and sounds replaced by what was seen and heard in them.

    `evidence` are (modality, output) pairs. Weak evidence is marked as uncertain, so that the answer can say so.
    """
    lines = [f"{_SOURCE[modality]}: {_note(output)}" for modality, output in evidence if not is_empty(output)]
    if not lines:
        lines = ["Nothing could be made out in the attachment."]
    question = request.text or "What is this?"
    return request.asking("\n".join([*lines, f"Using these facts, answer in one short sentence: {question}"]))


_SOURCE = {"image": "The picture", "audio": "The recording", "text": "The text"}


def _note(output: Output) -> str:
    match output:
        case Labels(labels=labels) if labels[0].probability < SURE:
            return "probably shows one of: " + ", ".join(label.name for label in labels[:SPOKEN_LABELS])
        case Labels(labels=labels):
            return f"shows a {labels[0].name}"
        case Words(boxes=boxes):
            return "has the words: " + " / ".join(box.text for box in boxes)
        case Objects(boxes=boxes):
            return f"shows {_counted(boxes[0].text, len(boxes))}"
        case Transcript():
            return f'says: "{output.text}"'
        case _:
            return say(output)


def _family(output: Output) -> tuple[str, str]:
    """Outputs of one family can be blended: same kind, and for labels and events the same space."""
    return output.kind, getattr(output, "space", "")


def _say_labels(output: Labels) -> str:
    shown = [label for label in output.labels if label.probability >= WORTH_SAYING][:SPOKEN_LABELS] or list(
        output.labels[:1]
    )
    if not shown:
        return "No label fits."
    first, *others = (f"{label.name} ({label.probability:.0%})" for label in shown)
    lead = f"{first[0].upper()}{first[1:]}" if shown[0].probability >= SURE else f"I'm not sure: perhaps {first}"
    return lead + (f"; or {', '.join(others)}." if others else ".")


def _say_words(output: Words) -> str:
    return "\n".join(box.text for box in output.boxes) or "No words found in the picture."


def _say_objects(output: Objects) -> str:
    counts: dict[str, int] = defaultdict(int)
    for box in output.boxes:
        counts[box.text] += 1
    return ", ".join(_counted(name, n) for name, n in counts.items()).capitalize() + "." if counts else "Nothing found."


def _say_transcript(output: Transcript) -> str:
    return output.text or "No speech heard."


def _say_events(output: Events) -> str:
    if not output.events:
        return "Neither speech nor music: some other sound." if output.space == "sound" else f"No {output.space} heard."
    if output.space == "notes":
        names = [event.label for event in sorted(output.events, key=lambda event: event.start)]
        more = f" … ({len(names)} in all)" if len(names) > SPOKEN_NOTES else ""
        return "Notes: " + " ".join(names[:SPOKEN_NOTES]) + more
    seconds: dict[str, float] = defaultdict(float)
    for event in output.events:
        seconds[event.label] += event.end - event.start
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} ({length:.1f} s)" for name, length in ordered).capitalize() + "."


def _counted(name: str, count: int) -> str:
    return f"{count} {name}{'s' if count > 1 else ''}"


_SAY: dict[str, Callable[[Any], str]] = {
    "text": lambda output: output.text,
    "labels": _say_labels,
    "words": _say_words,
    "objects": _say_objects,
    "transcript": _say_transcript,
    "events": _say_events,
}
