"""Distributions over labels become one: a mixture by the gate's weights, over everything any of them names.

Labels are the same thing where their WordNet ids are, or, for sets of labels with other ids or none, where they share a
name. How things contain each other (a tabby is a cat) it does not know.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from multimoe.outputs import Label, Labels

Float = NDArray[np.float64]
Key = tuple[str, str]  # a vocabulary ("wordnet" or a space) and a label's id there, or its name where it has none

ROUNDS = 100  # of the comparison: where spaces share next to nothing it would go on for long, to no use
SETTLED = 1e-6  # probability
SHARED = 0.5  # of its probability that one of two spaces must put on what both name, for them to be mixed

_WORDNET = re.compile(r"n\d{8}")
_ARTICLE = re.compile(r"^(?:an?|the) ")


def mix_labels(parts: Sequence[tuple[float, Labels]]) -> Labels:
    """p(label) = sum of w_i p_i(label), a linear opinion pool (Stone 1961); weights >= 0 in any scale, all 0 are alike.

    Within a space a label that an expert does not list counts as 0 there. Of what is not in its space an expert has no
    opinion: see `pool`. The result sums to at most 1.
    """
    total = sum(weight for weight, _ in parts)
    shares = [weight / total if total > 0 else 1 / len(parts) for weight, _ in parts]
    spaces = sorted({labels.space for _, labels in parts})
    thing = same_things([labels for _, labels in parts])
    column = {key: i for i, key in enumerate(sorted(set(thing.values())))}
    mass, weights = np.zeros((len(spaces), len(column))), np.zeros(len(spaces))
    named = np.zeros(mass.shape, dtype=np.bool_)
    called: dict[int, list[tuple[float, Label]]] = defaultdict(list)
    for share, (_, labels) in zip(shares, parts, strict=True):
        weights[spaces.index(labels.space)] += share
        for label in labels.labels:
            at = spaces.index(labels.space), column[thing[_key(label, labels.space)]]
            mass[at] += share * label.probability
            named[at] = True
            called[at[1]].append((share * label.probability, label))
    found = [_merged(called[i], probability) for i, probability in enumerate(pool(mass, named, weights).tolist())]
    return Labels(
        space="+".join(spaces),
        labels=tuple(sorted(found, key=lambda label: (-label.probability, label.name))),
        each=_mixed_each(parts),
    )


def pool(mass: Float, named: NDArray[np.bool_], weights: Float) -> Float:
    """One distribution (t,) of what s spaces, of `weights` (s,), say of t things; the rest is (s, t).

    A space tells how what it has listed compares (`mass`, weight times probability, and whether `named`), and how much
    it leaves open: that is left to the others, for what it does not name. Where spaces share nothing and leave nothing
    open, the weights alone say how they compare.
    """
    compared = _compared(mass, named)
    elsewhere = compared * ~named
    open_ = np.maximum(weights - mass.sum(axis=1), 0)
    claimed = elsewhere.sum(axis=1) + open_.sum() - open_  # (s,) by the others: on what they name, or leave open too
    left = np.divide(open_, claimed, out=np.zeros_like(weights), where=claimed > 0)
    pooled: Float = compared + left @ elsewhere
    return pooled


def _compared(mass: Float, named: NDArray[np.bool_]) -> Float:
    """The distribution (t,) that loses least of what is said, sum of w_i KL(p_i || q among i's labels).

    Found by the steps of Hunter 2004 ("MM algorithms for generalized Bradley-Terry models"), from the linear pool on,
    which it is where all name the same.
    """
    linear: Float = mass.sum(axis=0)
    total, said = linear.sum(), mass.sum(axis=1)
    if len(mass) == 1 or total == 0:
        return linear
    pooled = linear
    for _ in range(ROUNDS):
        covered = named @ pooled  # (s,) what of the pool lies among each space's labels
        per_thing = np.divide(said, covered, out=np.zeros_like(said), where=covered > 0) @ named  # (t,)
        step = np.divide(linear, per_thing, out=np.zeros_like(linear), where=per_thing > 0)
        step *= total / step.sum()
        moved, pooled = float(np.abs(step - pooled).max()), step
        if moved < SETTLED:
            break
    return pooled


def name_the_same(one: Labels, other: Labels) -> bool:
    """Whether two distributions are over the same kind of thing: one space, WordNet ids in both, or shared names that
    hold at least half of what one of them says.
    """
    if one.space == other.space or (_has_wordnet(one) and _has_wordnet(other)):
        return True
    thing = same_things([one, other])
    ours, theirs = ({thing[_key(label, side.space)] for label in side.labels} for side in (one, other))
    return any(
        sum(label.probability for label in side.labels if thing[_key(label, side.space)] in ours & theirs) >= SHARED
        for side in (one, other)
    )


def same_things(parts: Iterable[Labels]) -> dict[Key, Key]:
    """Each label's key, to the one key of all labels for the same thing.

    A name joins what bears it, unless one vocabulary has two things of that name (a crane flies, or lifts).
    """
    bearers: dict[str, set[Key]] = defaultdict(set)
    group: dict[Key, set[Key]] = {}
    for labels in parts:
        for label in labels.labels:
            key = _key(label, labels.space)
            group[key] = {key}
            for name in _names(label):
                bearers[name].add(key)
    for keys in bearers.values():
        if _told_apart(keys):
            joined = set().union(*(group[key] for key in keys))
            group.update(dict.fromkeys(joined, joined))
    return {key: min(keys) if _told_apart(keys) else key for key, keys in group.items()}


def plain(name: str) -> str:
    """A name as it is compared: "The Tiger_cat" is "tiger cat". Plurals are left alone."""
    spaced = " ".join(re.sub(r"[\s_-]+", " ", name.casefold()).strip(" .").split())
    return _ARTICLE.sub("", spaced)


def _names(label: Label) -> set[str]:
    """All its names; one that lists several, as ImageNet's do ("tabby, tabby cat"), is taken apart."""
    return {plain(name) for listed in (label.name, *label.synonyms) for name in listed.split(",")} - {""}


def _key(label: Label, space: str) -> Key:
    if label.id and _WORDNET.fullmatch(label.id):
        return "wordnet", label.id
    return space, label.id or plain(label.name)


def _told_apart(keys: set[Key]) -> bool:
    """Whether no vocabulary has two of them, which it would tell apart."""
    return len({vocabulary for vocabulary, _ in keys}) == len(keys)


def _has_wordnet(labels: Labels) -> bool:
    return any(label.id and _WORDNET.fullmatch(label.id) for label in labels.labels)


def _merged(called: Sequence[tuple[float, Label]], probability: float) -> Label:
    """Named as the one with a WordNet id does, else as the weightiest; the other names become synonyms."""
    _, best = max(called, key=lambda one: (bool(one[1].id and _WORDNET.fullmatch(one[1].id)), one[0], one[1].name))
    others = {name for _, label in called for name in (label.name, *label.synonyms)} - {best.name}
    return best.model_copy(update={"probability": min(1.0, max(0.0, probability)), "synonyms": tuple(sorted(others))})


def _mixed_each(parts: Sequence[tuple[float, Labels]]) -> tuple[Labels, ...]:
    """Picture by picture, where all tell the same pictures apart."""
    pictures = {len(labels.each) for _, labels in parts}
    if len(pictures) != 1:
        return ()
    return tuple(mix_labels([(weight, labels.each[i]) for weight, labels in parts]) for i in range(pictures.pop()))
