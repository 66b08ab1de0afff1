"""Several experts' outputs become one, by kind."""

from collections.abc import Sequence
from dataclasses import dataclass

from multimoe.blend.labels import mix_labels, name_the_same
from multimoe.blend.say import is_empty, say
from multimoe.blend.transcripts import rover
from multimoe.outputs import Events, Labels, Output, Transcript


@dataclass(frozen=True)
class Weighted:
    """One expert's output and its weight, >= 0, in any scale."""

    weight: float
    output: Output


def blend(parts: Sequence[Weighted]) -> Output:
    """One output from one or more, of the family with the most weight (the first of equals).

    Labels are mixed, transcripts vote word by word; of every other kind the weightiest speaks. Raises ValueError on no
    parts.
    """
    if not parts:
        raise ValueError("nothing to blend: no part has an output")
    return blend_families(parts)[0]


def blend_families(parts: Sequence[Weighted]) -> list[Output]:
    """One output of each family, weightiest family first."""
    return [_blended(family) for family in families(parts)]


def families(parts: Sequence[Weighted]) -> list[list[Weighted]]:
    """The parts that can be blended with each other, weightiest family first (the first of equals)."""
    places: list[list[int]] = []
    for place, part in enumerate(parts):
        kin = [family for family in places if any(_akin(part.output, parts[i].output) for i in family)]
        places = [family for family in places if family not in kin]
        places.append(sorted([*(i for family in kin for i in family), place]))
    places.sort(key=lambda family: (-sum(parts[i].weight for i in family), family[0]))
    return [[parts[i] for i in family] for family in places]


def say_all(parts: Sequence[Weighted]) -> str:
    """The blended output, then what the other families found, a line each; empty ones only where all are empty."""
    said = blend_families(parts)
    found = [output for output in said if not is_empty(output)]
    return "\n".join(say(output) for output in found or said[:1])


def _akin(one: Output, other: Output) -> bool:
    """Whether two outputs can be blended: they are of one kind, and their labels or events are of the same things."""
    match one, other:
        case Labels(), Labels():
            return name_the_same(one, other)
        case Events(), Events():
            return one.space == other.space
        case _:
            return one.kind == other.kind


def _blended(family: Sequence[Weighted]) -> Output:
    labels = [(part.weight, part.output) for part in family if isinstance(part.output, Labels)]
    if labels:
        return mix_labels(labels)
    transcripts = [(part.weight, part.output) for part in family if isinstance(part.output, Transcript)]
    return rover(transcripts) if transcripts else max(family, key=lambda part: part.weight).output
