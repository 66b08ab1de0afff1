"""What an expert put out, in words for a person."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from multimoe.outputs import Events, Labels, Objects, Output, Text, Transcript, Words

SURE = 0.5  # a likeliest label below this is said as a guess, with its rivals
WORTH_SAYING = 0.05  # probability under which a label is noise to a reader
SPOKEN_LABELS = 3
SPOKEN_NOTES = 16


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
    """The output in words for a person, one to a few lines; several pictures are numbered."""
    pictures = pictures_in(output)
    if pictures < 2:
        return _SAY[output.kind](output)
    apart = [of_picture(output, number) for number in range(1, pictures + 1)]
    return "\n".join(f"Picture {number}: {_SAY[one.kind](one)}" for number, one in enumerate(apart, 1))


def sureness(output: Output) -> float | None:
    """How sure an output is of what it leads with, in [0, 1]: labels by the likeliest, words and objects by the mean

    score of what was found, speech and sounds by its mean over time. 0 where nothing was found, None where it does not
    say.
    """
    if is_empty(output):
        return 0.0
    match output:
        case Labels(labels=labels):
            return max(label.probability for label in labels)
        case Words(boxes=boxes):
            return _mean([(len(box.text), box.score) for box in boxes])
        case Objects(boxes=boxes):
            return _mean([(1, box.score) for box in boxes])
        case Transcript(segments=segments):
            known = [(len(s.text), s.confidence) for s in segments if s.confidence is not None]
            return _mean(known) if known else None
        case Events(events=events):
            return _mean([(event.end - event.start, event.score) for event in events])
        case _:
            return None


def pictures_in(output: Output) -> int:
    """How many pictures the output tells apart; 1 where it speaks of all at once."""
    match output:
        case Labels(each=each):
            return max(1, len(each))
        case Words(boxes=boxes) | Objects(boxes=boxes):
            return max((box.picture for box in boxes), default=1)
        case _:
            return 1


def of_picture(output: Output, number: int) -> Output:
    """What it says of one picture, from 1; all it says where it does not tell pictures apart."""
    match output:
        case Labels(each=each) if each:
            return each[number - 1]
        case Words(boxes=boxes) | Objects(boxes=boxes):
            return output.model_copy(update={"boxes": tuple(box for box in boxes if box.picture == number)})
        case _:
            return output


def listed(names: Sequence[str], word: str) -> str:
    """ "a, b or c"."""
    return ", ".join(names[:-1]) + (f" {word} " if len(names) > 1 else "") + names[-1]


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    """Of values by their weights; each alike where no weight is positive."""
    total = sum(weight for weight, _ in weighted)
    return sum((weight if total > 0 else 1) * value for weight, value in weighted) / (total or len(weighted))


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
    return ", ".join(counted(name, n) for name, n in counts.items()).capitalize() + "." if counts else "Nothing found."


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


def counted(name: str, count: int) -> str:
    return f"{count} {name}{'s' if count > 1 else ''}"


_SAY: dict[str, Callable[[Any], str]] = {
    "text": lambda output: output.text,
    "labels": _say_labels,
    "words": _say_words,
    "objects": _say_objects,
    "transcript": _say_transcript,
    "events": _say_events,
}
