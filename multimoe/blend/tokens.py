"""Several experts write one text, token by token: their distributions over the next token are mixed, and one is picked.

It knows no expert. Ids must mean the same to all (`NextToken.vocabulary`); what is said leaves as whole characters.
"""

import codecs
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from multimoe.expert import NextToken, Token
from multimoe.stops import Stops

COLDEST = 1e-6  # temperature; what is divided by less may overflow


def mix_tokens(parts: Sequence[tuple[float, NextToken]]) -> tuple[Token, ...]:
    """The mixture p(token) = sum of w_i p_i(token) over all tokens listed, likeliest first; weights normalised to 1.

    A token an expert does not list counts as 0 there, which is too little by at most w_i times the probability of the
    last one that it lists. Of equals the smaller id is first. Raises ValueError where vocabularies differ.
    """
    if len(vocabularies := {listed.vocabulary for _, listed in parts}) != 1:
        raise ValueError(f"only tokens of one vocabulary can be mixed, got {sorted(vocabularies)}")
    total = sum(weight for weight, _ in parts)
    mass: dict[int, float] = {}
    known: dict[int, Token] = {}
    for weight, listed in parts:
        share = weight / total if total > 0 else 1 / len(parts)
        for token in listed.tokens:
            mass[token.id] = mass.get(token.id, 0.0) + share * math.exp(token.logprob)
            if token.ends or token.id not in known:
                known[token.id] = token
    ordered = sorted((id for id in mass if mass[id] > 0), key=lambda id: (-mass[id], id))
    return tuple(replace(known[id], logprob=math.log(mass[id])) for id in ordered)


def pick(tokens: Sequence[Token], temperature: float, top_p: float, generator: np.random.Generator) -> Token:
    """The likeliest at temperature 0; else drawn, after `temperature`, from the likeliest that together have `top_p`.

    `tokens` are likeliest first and not empty; what is missing to 1 is shared in proportion.
    """
    if temperature <= 0:
        return tokens[0]
    behind = np.array([token.logprob for token in tokens]) - max(token.logprob for token in tokens)  # (n,)
    chance = np.exp(behind / max(temperature, COLDEST))
    chance /= chance.sum()
    kept = int(np.searchsorted(np.cumsum(chance), top_p)) + 1  # nucleus (Holtzman et al. 2020): the one across it too
    chance = chance[:kept] / chance[:kept].sum()
    return tokens[int(generator.choice(len(chance), p=chance))]


class Words:
    """Pieces of bytes become text: whole characters only, and nothing from a stop sequence on."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = Stops(stops)

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def add(self, piece: bytes) -> str:
        """What can be said now; the start of what may become a stop sequence is held back."""
        return self._stops.add(self._characters.decode(piece))

    def rest(self) -> str:
        """What was held back, once nothing more comes; half a character is left out."""
        return self._stops.rest()
