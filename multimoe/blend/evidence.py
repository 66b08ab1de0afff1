"""What perception experts found becomes facts in words, for a text expert that cannot see or hear; and what to doubt.

Evidence is weak where it is likelier wrong than right. A small writer may pass over that, so `caveat` says it apart.
"""

from collections.abc import Sequence
from typing import NamedTuple

from multimoe.blend.kinds import Weighted, blend_families
from multimoe.blend.say import SPOKEN_LABELS, SURE, WORTH_SAYING, counted, is_empty, listed, of_picture, say, sureness
from multimoe.messages import ChatRequest, Modality
from multimoe.outputs import Labels, Objects, Output, Transcript, Words

CERTAIN = 0.8  # a likeliest label below this is handed over as probable only
READS_TEXT: frozenset[Modality] = frozenset(("text",))

_SOURCE: dict[Modality, str] = {"image": "the picture", "audio": "the recording"}


class Evidence(NamedTuple):
    """What one expert found in the request's parts of one modality; `weight` >= 0 as in `Weighted`."""

    modality: Modality
    output: Output
    weight: float = 1.0


class Finding(NamedTuple):
    """What was found in one attachment, kinds that can be blended as one, weightiest first; empty ones left out."""

    source: str
    outputs: tuple[Output, ...]

    @property
    def sure(self) -> bool:
        """Whether one kind at least is likelier right than wrong; what does not say counts as right."""
        return any((found := sureness(output)) is None or found >= SURE for output in self.outputs)


def hand_over(
    request: ChatRequest, evidence: Sequence[Evidence], reads: frozenset[Modality] = READS_TEXT
) -> ChatRequest:
    """The request as a text expert can answer it: pictures and sounds replaced by what was seen and heard in them.

    Each fact says in words how sure it is, and several pictures are numbered. What the writer `reads` itself stays.
    """
    lines = [
        f"{finding.source.capitalize()} {_note(output)}."
        for finding in findings(request, evidence, reads)
        for output in finding.outputs
    ]
    if not lines:
        lines = ["Nothing could be made out in the attachment."]
    question = request.text or "What is this?"
    doubt = " and say that you are not sure" if caveat(request, evidence, reads) else ""
    facts = "\n".join([*lines, f"Using these facts, answer in one short sentence{doubt}: {question}"])
    return request.asking(facts, keep=reads)


def caveat(request: ChatRequest, evidence: Sequence[Evidence], reads: frozenset[Modality] = READS_TEXT) -> str:
    """One short sentence on the attachments of which nothing is known for sure; "" where there are none.

    Attachments that the writer `reads` itself are not spoken of.
    """
    doubtful = [finding for finding in findings(request, evidence, reads) if not finding.sure]
    if len(doubtful) > 1:
        return f"I am not sure of {listed([finding.source for finding in doubtful], 'and')}."
    return _doubt(doubtful[0]) if doubtful else ""


def findings(request: ChatRequest, evidence: Sequence[Evidence], reads: frozenset[Modality]) -> list[Finding]:
    """What was found in each picture, and in the recordings together; not in what the writer reads itself."""
    pictures = 0 if "image" in reads else len(request.images)
    seen = [item for item in evidence if item.modality == "image"]
    found = [
        Finding(
            f"picture {number}" if pictures > 1 else _SOURCE["image"],
            _blended([item._replace(output=of_picture(item.output, number)) for item in seen]),
        )
        for number in range(1, pictures + 1)
    ]
    if request.audios and "audio" not in reads:
        source = "the recordings" if len(request.audios) > 1 else _SOURCE["audio"]
        found.append(Finding(source, _blended([item for item in evidence if item.modality == "audio"])))
    return found


def _blended(evidence: Sequence[Evidence]) -> tuple[Output, ...]:
    parts = [Weighted(item.weight, item.output) for item in evidence if not is_empty(item.output)]
    return tuple(blend_families(parts))


def _note(output: Output) -> str:
    """As a fact for a writer; words, since a small one repeats numbers without their sense."""
    found = sureness(output)
    guess = found is not None and found < SURE
    match output:
        case Labels() if guess:
            return f"is unclear and may show {_either(output, shares=False)}"
        case Labels(labels=labels):
            return f"{'' if labels[0].probability >= CERTAIN else 'probably '}shows {_a(labels[0].name)}"
        case Words(boxes=boxes):
            return f"has {'unclear ' if guess else ''}words: {' / '.join(box.text for box in boxes)}"
        case Objects(boxes=boxes):
            return f"{'perhaps ' if guess else ''}shows {counted(boxes[0].text, len(boxes))}"
        case Transcript():
            return f'{"is hard to hear and may say" if guess else "says"}: "{output.text}"'
        case _:
            return f"{'perhaps has' if guess else 'has'} {_lower(say(output)).rstrip('.')}"


def _doubt(finding: Finding) -> str:
    if not finding.outputs:
        return f"I could make nothing out in {finding.source}."
    source, output = finding.source.capitalize(), finding.outputs[0]
    verb = "are" if source.endswith("s") else "is"
    match output:
        case Labels():
            return f"{source} {verb} unclear to me: perhaps {_either(output)}."
        case Transcript():
            return f"{source} {verb} hard to hear, so I may have misheard."
        case Words():
            return f"{source} {verb} hard to read, so I may have misread."
        case _:
            return f"{source} {verb} unclear to me."


def _either(output: Labels, shares: bool = True) -> str:
    """The likeliest labels, with their probabilities where `shares` says so."""
    shown = [label for label in output.labels if label.probability >= WORTH_SAYING][:SPOKEN_LABELS] or output.labels[:1]
    return listed([_a(label.name) + (f" ({label.probability:.0%})" if shares else "") for label in shown], "or")


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


def _lower(sentence: str) -> str:
    return f"{sentence[:1].lower()}{sentence[1:]}"
