"""Expert cards as vectors: how well each expert's own words fit a request, before anything is learned. numpy only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from multimoe.config import Card, ExpertSpec
from multimoe.embedding import CONCEPT, Embedding
from multimoe.errors import BadConfig
from multimoe.messages import MODALITIES, Modality

Float = NDArray[np.float64]
Vectors = NDArray[np.float32]
EmbedTexts = Callable[[Sequence[str]], Vectors]  # n texts -> (n, CONCEPT)

SHARPNESS = 50.0  # of the soft maximum over a card's sentences, per unit of cosine
LEAST_SPREAD = 0.04  # cosine; cards closer together than this are not told apart more strongly
BLIND = -0.5  # standardised score for a modality of the request that an expert does not read
TOLD = -0.2  # the same for one that writes: it is told in words what others saw and heard
ASKED = (
    3.0  # how much more the question's words count than the picture or sound they come with: they say what is wanted
)


@dataclass(frozen=True, eq=False)
class Sentences:
    """What all experts' cards say of one modality, expert after expert; each has at least one sentence.

    `vectors` (sentences, CONCEPT), length 1; expert i's are `counts[i]` from `starts[i]`.
    """

    texts: tuple[str, ...]
    vectors: Vectors
    starts: NDArray[np.intp]
    counts: NDArray[np.intp]

    def likeness(self, cosines: Vectors) -> Float:
        """Soft maximum (log-mean-exp) over each expert's sentences of their `cosines` (..., sentences)."""
        sharp = np.exp(SHARPNESS * cosines.astype(np.float64))
        summed = np.add.reduceat(sharp, self.starts, axis=-1)  # (..., experts), 1e22 at most
        soft: Float = np.log(summed / self.counts) / SHARPNESS
        return soft

    def closest(self, expert: int, cosines: Vectors) -> tuple[str, float]:
        begin = int(self.starts[expert])
        best = begin + int(cosines[begin : begin + int(self.counts[expert])].argmax())
        return self.texts[best], float(cosines[best])


@dataclass(frozen=True, eq=False)
class Judged:
    """Some of the experts: `part` (experts,) are their equal shares, 0 of the others; values (experts,) @ `centring`
    (experts, experts) are theirs less their mean, 0 of the others."""

    part: Float
    centring: Float

    @classmethod
    def of(cls, experts: NDArray[np.bool_]) -> "Judged":
        part = experts / max(1, int(np.count_nonzero(experts)))
        return cls(part, np.diag(experts.astype(np.float64)) - np.outer(part, experts))


class Cards:
    """The cards of a roster. `reads[m]` (experts,) says who reads modality m."""

    def __init__(self, experts: Sequence[ExpertSpec], embed_texts: EmbedTexts, known: "Cards | None" = None) -> None:
        """Embeds every sentence `known` does not hold yet. Raises BadConfig without experts or for unusable vectors."""
        if not experts:
            raise BadConfig("a gate needs at least one expert; add one to the catalog")
        self.reads = {m: np.array([m in expert.inputs for expert in experts]) for m in MODALITIES}
        blind = np.array([TOLD if expert.output == "text" else BLIND for expert in experts])
        self._unread = {m: blind * ~reads for m, reads in self.reads.items()}
        self._judged: dict[tuple[Modality, ...], Mapping[Modality, Judged]] = {}
        said = {m: [sentences(expert.card, m) for expert in experts] for m in MODALITIES}
        wanted = dict.fromkeys(text for by_expert in said.values() for texts in by_expert for text in texts)
        self._vectors: dict[str, Vectors] = _embed(list(wanted), embed_texts, known._vectors if known else {})
        self._sentences = {m: _stack(by_expert, self._vectors) for m, by_expert in said.items()}

    def cosines(self, embedding: Embedding) -> Mapping[Modality, Vectors]:
        """Of the request with every sentence that the cards say of each modality it has, (sentences,)."""
        return {m: vector.concept @ self._sentences[m].vectors.T for m, vector in embedding.vectors.items()}

    def scores(self, cosines: Mapping[Modality, Vectors]) -> Float:
        """How well each card fits, (..., experts), by the `cosines` (..., sentences) of requests that all have the same
        modalities: the weighted mean over modalities of standardised likeness.

        Text is compared with every card, whether or not the expert reads text: it says what is wanted, and counts
        `ASKED` times as much as a picture or sound beside it. Standardised over the experts that read something of the
        request, since cosines of one modality lie at another level and spread than those of another.
        """
        total: Float = np.zeros(len(self.reads["text"]))
        weights = 0.0
        judges = self._judges(tuple(cosines))
        for m, found in cosines.items():
            weight = ASKED if m == "text" else 1.0
            likeness = self._sentences[m].likeness(found)
            total = total + weight * _standardised(likeness, judges[m]) + self._unread[m]
            weights += weight
        return total / max(1.0, weights)

    def table(self, embeddings: Sequence[Embedding]) -> Float:
        """`scores` of many requests, (n, experts)."""
        table = np.zeros((len(embeddings), len(self.reads["text"])))
        present = [embedding.modalities for embedding in embeddings]
        for modalities in dict.fromkeys(present):
            rows = [i for i, found in enumerate(present) if found == modalities]
            concepts = {m: np.stack([embeddings[i].vectors[m].concept for i in rows]) for m in modalities}
            table[rows] = self.scores({m: many @ self._sentences[m].vectors.T for m, many in concepts.items()})
        return table

    def _judges(self, modalities: tuple[Modality, ...]) -> Mapping[Modality, "Judged"]:
        """Over whom the likeness of each modality is standardised, in requests that have just these."""
        if modalities not in self._judged:
            relevant = reduce(np.logical_or, (self.reads[m] for m in modalities))
            self._judged[modalities] = {m: Judged.of(relevant if m == "text" else self.reads[m]) for m in modalities}
        return self._judged[modalities]

    def closest(self, expert: int, cosines: Mapping[Modality, Vectors]) -> tuple[str, float]:
        """The sentence of this expert's card that is nearest to the request, and its cosine."""
        compared = [m for m in MODALITIES if m in cosines and (m == "text" or self.reads[m][expert])]
        found = [self._sentences[m].closest(expert, cosines[m]) for m in compared]
        return max(found, key=lambda pair: pair[1])


def sentences(card: Card, modality: Modality) -> tuple[str, ...]:
    """What a card says of one modality; its description where it says nothing else (and always of text)."""
    if modality == "text":
        return (*card.text, card.description)
    return (card.image if modality == "image" else card.audio) or (card.description,)


def _embed(texts: Sequence[str], embed_texts: EmbedTexts, known: Mapping[str, Vectors]) -> dict[str, Vectors]:
    new = [text for text in texts if text not in known]
    fresh = np.asarray(embed_texts(new), dtype=np.float32) if new else np.zeros((0, CONCEPT), np.float32)
    if fresh.shape != (len(new), CONCEPT) or not np.isfinite(fresh).all():
        raise BadConfig(f"card embeddings must be finite and ({len(new)}, {CONCEPT}), got {fresh.shape}")
    unit = fresh / np.maximum(np.linalg.norm(fresh, axis=1, keepdims=True), 1e-9)
    merged = {**known, **dict(zip(new, unit, strict=True))}
    return {text: merged[text] for text in texts}


def _stack(by_expert: Sequence[tuple[str, ...]], vectors: Mapping[str, Vectors]) -> Sentences:
    flat = tuple(text for texts in by_expert for text in texts)
    counts = np.array([len(texts) for texts in by_expert], dtype=np.intp)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.intp)
    return Sentences(flat, np.stack([vectors[text] for text in flat]), starts, counts)


def _standardised(values: Float, judged: Judged) -> Float:
    """(..., experts) with mean 0 and spread 1 over `judged`, 0 elsewhere."""
    centred = values @ judged.centring
    spread = np.sqrt((centred * centred) @ judged.part)[..., None]
    standard: Float = centred / np.maximum(spread, LEAST_SPREAD)
    return standard
