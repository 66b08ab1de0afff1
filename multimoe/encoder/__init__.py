"""The frozen encoders: one per modality, each giving a part of a request two vectors, `features` and `concept`.

`features` are the encoder's own, for the gate to learn from. `concept` needs no learning: it is where a picture or a
sound lies in the text encoder's space, so that it can be compared with an expert's card in words. It is ConSE (Norouzi
et al. 2013, "Zero-shot learning by convex combination of semantic embeddings"): the mean of the text embeddings of the
likeliest descriptions, weighted by their probabilities. What is likely, a classifier or a detector says; nothing here
has seen a rating or a card.
"""

from multimoe.encoder.audio import AudioEncoder
from multimoe.encoder.encoders import Encoder, Encoders
from multimoe.encoder.image import ImageEncoder
from multimoe.encoder.text import TextEncoder

__all__ = ["AudioEncoder", "Encoder", "Encoders", "ImageEncoder", "TextEncoder"]
