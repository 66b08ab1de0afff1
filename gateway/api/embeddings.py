"""POST /v1/embeddings: the gate's own text encoder, as OpenAI's clients ask for one."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter

from gateway.access.quota import tokens_in
from gateway.api.models import EMBEDDER
from gateway.reading.schemas import EmbeddingBody
from gateway.services import Product, Spending, StrictRoute
from multimoe.config import Limits
from multimoe.embedding import CONCEPT
from multimoe.errors import BadInput, TooLarge, UnknownModel

router = APIRouter(route_class=StrictRoute, tags=["embeddings"])

MOST_TEXTS = 2048  # as OpenAI's


@router.post("/v1/embeddings")
async def embed(body: EmbeddingBody, services: Product, spent: Spending) -> dict[str, Any]:
    """384 floats of length 1 for each text; `encoding_format` base64 gives them as float32, little-endian."""
    if body.model != EMBEDDER:
        raise UnknownModel(f"no embedding model {body.model[:128]!r}; there is {EMBEDDER!r}", "model")
    if body.dimensions not in (None, CONCEPT):
        raise BadInput(f"dimensions is {body.dimensions}; the vectors have {CONCEPT}", "dimensions")
    texts = _texts(body.input, services.catalog.limits)
    vectors = await services.cluster.embed_texts(texts)
    spent.add(tokens_in(*texts), 0.0)
    encode = _base64 if body.encoding_format == "base64" else list
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": encode(v)} for i, v in enumerate(vectors)],
        "model": EMBEDDER,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }


def _texts(sent: str | list[Any], limits: Limits) -> list[str]:
    texts = [sent] if isinstance(sent, str) else sent
    if texts and not all(isinstance(text, str) for text in texts):
        raise BadInput(
            "input holds token ids; send the text itself (in LangChain: check_embedding_ctx_length=False)", "input"
        )
    if not texts or not all(text.strip() for text in texts):
        raise BadInput("input is empty, or one of its texts is; send at least one word in each", "input")
    if len(texts) > MOST_TEXTS:
        raise BadInput(f"input has {len(texts):,} texts; at most {MOST_TEXTS:,} are taken at once", "input")
    if sum(map(len, texts)) > limits.text_chars:
        raise TooLarge(
            f"input has more than {limits.text_chars:,} characters; send it in parts",
            "input",
            "context_length_exceeded",
        )
    return texts


def _base64(vector: list[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
