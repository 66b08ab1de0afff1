"""What a gate would have done on logged requests, without a loop over them. It knows no rewards and judges nothing.

Requests are replayed in groups that the same experts may answer under the same policy, so that a log of any length
costs a few matrix products for each ordered choice there is.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from multimoe.decision import Decision, Policy
from multimoe.examples import Example
from multimoe.gate import Gate
from multimoe.routing import Plans

Float = NDArray[np.float64]
Int = NDArray[np.intp]

AT_ONCE = 4096  # requests in one array
NOBODY = -1  # behind shorter choices
NO_GUESS = 0.5  # of the reward of an answer by experts that are gone


@dataclass(frozen=True, eq=False)
class Replayed:
    """A gate of e experts on n logged requests.

    `quality` (n, e) is what it predicts. `chances` (n,) are its probabilities of the logged choice, 0 where an expert
    of it is gone. `parts` (n, e) are the experts' expected weights in its own answer, `first` (n, e) the probabilities
    that they are drawn first, `called` (n, e) that they are asked, `eligible` (n, e) who might be. Of the log are
    `chosen` (n, e), the weights of the choice, and `offered` (n, e), the probabilities with which its first was drawn.
    """

    quality: Float
    chances: Float
    parts: Float
    first: Float
    called: Float
    eligible: NDArray[np.bool_]
    chosen: Float
    offered: Float

    def expected(self, quality: Float) -> Float:
        """The mean over all of the gate's choices of the weighted mean of `quality` (n, e), (n,)."""
        expected: Float = (self.parts * quality).sum(axis=1)
        return expected

    def predicted(self) -> Float:
        """The quality predicted of the logged choice, (n,); of experts that are gone nothing is known."""
        weight = self.chosen.sum(axis=1)
        guess = np.full(len(weight), NO_GUESS)
        predicted: Float = np.divide((self.chosen * self.quality).sum(axis=1), weight, out=guess, where=weight > 0)
        return predicted

    def mean_part(self) -> Float:
        """Each expert's part in the answers to requests that it may answer, (e,); 0 where there are none."""
        requests = self.eligible.sum(axis=0)
        part: Float = np.divide(self.parts.sum(axis=0), requests, out=np.zeros(len(requests)), where=requests > 0)
        return part


def replay(rows: Sequence[Example], gate: Gate) -> Replayed:
    """The gate on logged requests that it can decide, exploring as the catalog says whatever a request asked for."""
    index = {expert.name: i for i, expert in enumerate(gate.experts)}
    decisions = [example.decision for example in rows if example.decision]
    shape = (len(rows), len(index))
    found = Replayed(
        quality=np.empty(shape),
        chances=np.empty(len(rows)),
        parts=np.zeros(shape),
        first=np.zeros(shape),
        called=np.zeros(shape),
        eligible=np.zeros(shape, dtype=np.bool_),
        chosen=_table([[(c.expert, c.weight) for c in decision.chosen] for decision in decisions], index),
        offered=_table([[(c.expert, c.probability) for c in decision.considered] for decision in decisions], index),
    )
    for names, policy, at in _groups(decisions, index):
        embeddings, here = [rows[i].embedding for i in at], [decisions[i] for i in at]
        columns = np.ix_(at, [index[name] for name in names])
        plans, found.quality[at] = gate.replans(embeddings, names, policy, _load(here, names))
        found.chances[at] = _chances(plans, here, names)
        found.parts[columns], found.first[columns], found.called[columns] = _means(plans, len(names))
        found.eligible[columns] = True
    return found


def slowest(rows: Sequence[Example], gate: Gate, latencies: Mapping[str, float]) -> Float:
    """The mean over the gate's choices of the time that the slowest expert asked takes, (n,), in the unit given."""
    index = {expert.name: i for i, expert in enumerate(gate.experts)}
    decisions = [example.decision for example in rows if example.decision]
    times = np.zeros(len(rows))
    for names, policy, at in _groups(decisions, index):
        here = [decisions[i] for i in at]
        took = np.array([*(latencies[name] for name in names), 0.0])  # nobody, the last, takes no time
        plans, _ = gate.replans([rows[i].embedding for i in at], names, policy, _load(here, names))
        for order, chances in plans.choices():
            times[at] += chances * took[order].max(axis=1)
    return times


def joined(blocks: Sequence[Replayed]) -> Replayed:
    """Of all rows, one after the other."""
    return Replayed(*(np.concatenate([getattr(block, field.name) for block in blocks]) for field in fields(Replayed)))


def _groups(
    decisions: Sequence[Decision], index: Mapping[str, int]
) -> Iterator[tuple[tuple[str, ...], Policy, list[int]]]:
    """Row numbers of requests that the same experts may answer under the same policy."""
    groups: dict[tuple[tuple[str, ...], Policy], list[int]] = defaultdict(list)
    for i, decision in enumerate(decisions):
        names = sorted({c.expert for c in decision.considered} & index.keys(), key=index.__getitem__)
        asked = decision.policy
        policy = Policy(
            top_k=asked.top_k, strategy=asked.strategy, temperature=asked.temperature, preference=asked.preference
        )
        groups[tuple(names), policy].append(i)
    for (experts, policy), at in groups.items():
        for begin in range(0, len(at), AT_ONCE):
            yield experts, policy, at[begin : begin + AT_ONCE]


def _chances(plans: Plans, decisions: Sequence[Decision], names: Sequence[str]) -> Float:
    """Of the logged ordered choices; 0 for one that is longer than any of the plans' or has an expert that is gone."""
    index = {name: i for i, name in enumerate(names)}
    k = plans.exploration.lengths.shape[1]
    order = np.full((len(decisions), k), NOBODY)
    possible = np.zeros(len(decisions), dtype=np.bool_)
    for i, decision in enumerate(decisions):
        chosen = [index[choice.expert] for choice in decision.chosen if choice.expert in index]
        if len(chosen) == len(decision.chosen) <= k:
            order[i, : len(chosen)] = chosen
            possible[i] = True
    order[~possible, 0] = 0  # anything that can be drawn
    return plans.probability(order) * possible


def _means(plans: Plans, n: int) -> tuple[Float, Float, Float]:
    """Of each of n experts: expected weight in the answer, probabilities of being first and of being asked.

    All three (requests, n).
    """
    every = np.arange(len(plans.shares))
    parts, first, called = np.zeros((3, len(every), n))
    for order, chances in plans.choices():
        first[every, order[:, 0]] += chances
        for column, weight in zip(order.T, plans.weights(order).T, strict=True):
            parts[every, column] += chances * weight
            called[every, column] += chances * (column != NOBODY)
    return parts, first, called


def _load(decisions: Sequence[Decision], names: Sequence[str]) -> Float | None:
    if not any(decision.load for decision in decisions):
        return None
    return np.array([[decision.load.get(name, 0.0) for name in names] for decision in decisions])


def _table(rows: Sequence[Sequence[tuple[str, float]]], index: Mapping[str, int]) -> Float:
    """(n, e) from each row's figures by expert; those of experts that are gone are left out."""
    table = np.zeros((len(rows), len(index)))
    for i, row in enumerate(rows):
        for expert, figure in row:
            if expert in index:
                table[i, index[expert]] = figure
    return table
