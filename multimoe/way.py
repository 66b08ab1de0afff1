"""In which way an answer is made: as was asked for, or as those chosen can; and whether fusing texts pays.

Pure rules; their thresholds are the catalog's (`BlendSpec`).
"""

from dataclasses import dataclass

from multimoe.cast import Cast
from multimoe.config import BlendSpec, Combine

FOR_TEXTS = ("vote", "fuse", "auto", "tokens")


@dataclass(frozen=True)
class Way:
    """`why` it is not the one that was asked for, or which branch was taken; "" where there is no more to say."""

    combine: Combine
    why: str = ""


def possible(spec: BlendSpec, cast: Cast) -> Way:
    """The way asked for, or the nearest to it that those chosen can go."""
    way, writers = spec.combine, cast.candidates()
    if way in FOR_TEXTS and cast.leader.output != "text":
        return Way("weighted", f"{way!r} is for texts, and what leads here is {cast.leader.output}")
    if way in FOR_TEXTS and len(writers) < 2:
        return Way("best", "fewer than two text experts were chosen")
    if way == "tokens" and len(cast.team()) < 2:
        return Way("best", "the catalog gives those chosen no tokenizer in common")
    if way == "all" and len(cast.weights) < 2:
        return Way("best", "one expert was chosen")
    if way == "auto" and (quality := cast.quality(writers)) >= spec.enough_quality:
        return Way("best", f"one is predicted to be worth {quality:.2f}, and {spec.enough_quality:g} is enough")
    return Way(way)


def vote_or_fuse(spec: BlendSpec, agreement: float) -> Way:
    """Fusing pays only where texts contradict each other and none is predicted good, which `possible` sees."""
    why = f"the texts agree by {agreement:.2f}, and {spec.enough_agreement:g} is enough"
    return Way("vote" if agreement >= spec.enough_agreement else "fuse", why)
