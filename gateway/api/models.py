"""GET /v1/models: the mixture, its presets and every expert alone, with the extras OpenRouter's clients read."""

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter

from gateway.api.policies import MODEL, model_ids, pinned
from gateway.services import Product, Services
from multimoe.config import ExpertSpec
from multimoe.messages import MODALITIES

router = APIRouter(tags=["models"])

CREATED = 1_767_225_600  # 2026-01-01; the mixture has no birthday, but clients want a number
EMBEDDER = "multimoe-embed"
CHARS_PER_TOKEN = 4  # of English, about
PARAMETERS = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "stream", "x_multimoe")
Json = dict[str, Any]


@router.get("/v1/models")
async def models(services: Product) -> Json:
    """Every name that may stand in a request's `model`."""
    roster = await services.cluster.roster()
    ids = [*model_ids(services.catalog, roster), EMBEDDER]
    return {"object": "list", "data": [_model(id, services, roster) for id in ids]}


@router.get("/v1/models/{id:path}")
async def model(id: str, services: Product) -> Json:
    """One of them; 404 with the nearest right name."""
    roster = await services.cluster.roster()
    if id != EMBEDDER:
        pinned(id, services.catalog, roster)
    return _model(id, services, roster)


def _model(id: str, services: Services, roster: tuple[ExpertSpec, ...]) -> Json:
    name = id.removeprefix(f"{MODEL}/")
    experts = [spec for spec in roster if spec.name == name] if "/" in id else list(roster)
    cost = max((spec.cost for spec in experts), default=0.0) if "/" in id else 0.0
    embeds = id == EMBEDDER
    return {
        "id": id,
        "object": "model",
        "created": CREATED,
        "owned_by": MODEL,
        "name": id,
        "description": _description(id, services, experts),
        "architecture": {
            "input_modalities": ["text"] if embeds else _inputs(experts),
            "output_modalities": ["embeddings"] if embeds else ["text"],
        },
        "pricing": {"prompt": "0", "completion": "0", "request": f"{cost:g}"},
        "context_length": services.catalog.limits.text_chars // CHARS_PER_TOKEN,
        "supported_parameters": ["encoding_format"] if embeds else list(PARAMETERS),
    }


def _inputs(experts: Iterable[ExpertSpec]) -> list[str]:
    read = {modality for spec in experts for modality in spec.inputs}
    return [modality for modality in MODALITIES if modality in read]


def _description(id: str, services: Services, experts: list[ExpertSpec]) -> str:
    if id == EMBEDDER:
        return "The gate's own text encoder."
    if "/" in id:
        return experts[0].card.description
    preset = services.catalog.presets.get(id.partition(":")[2])
    return (preset.description if preset else "") or "Chooses and blends the experts that suit the question."
