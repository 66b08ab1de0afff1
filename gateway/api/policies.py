"""What one request wants of the mixture: from its model name, its `x-multimoe-*` headers and its `x_multimoe` object.

Each says only what it changes; the object stands above the headers, the headers above the preset.
"""

import asyncio
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from gateway.reading.schemas import IN_WORDS, ChatBody, Options
from gateway.services import Services
from multimoe.config import BlendSpec, Catalog, ExpertSpec
from multimoe.decision import Policy
from multimoe.errors import BadInput, NotFound, UnknownModel
from multimoe.strategies.strategy import known

MODEL = "multimoe"
LISTS = ("experts", "exclude")
FIELDS = ("top_k", "strategy", "experts", "exclude", "gate", "explore", "combine", "timeout_s")
BLENDING = ("combine", "ask_next_below")  # what of them says how to blend, not whom to choose
HEADERS = {f"x-multimoe-{name.replace('_', '-')}": name for name in FIELDS}


@dataclass(frozen=True)
class Asked:
    """`expert` is the one the caller named, whom no gate chooses; `gate_alias` is None for a version by number.

    The caller waits `timeout_s` seconds; None leaves it to the limits.
    """

    model: str
    expert: str | None
    policy: Policy
    blend: BlendSpec
    include_outputs: bool
    gate_alias: str | None
    timeout_s: float | None = None


async def asked_for(body: ChatBody, headers: Mapping[str, str], services: Services) -> Asked:
    """Raises UnknownModel, BadInput, and NotFound for a gate version that is not there."""
    roster = await services.cluster.roster()
    expert = pinned(body.model, services.catalog, roster)
    options = _options(body.x_multimoe, headers)
    if options.strategy is not None:
        known(options.strategy)
    wanted = options.model_dump(exclude_unset=True, exclude={"include_outputs", "gate", "timeout_s"})
    for field in LISTS:
        if field in wanted:
            wanted[field] = tuple(_known(name, roster, f"x_multimoe.{field}") for name in wanted[field])
    version, alias = await asyncio.to_thread(_gate, options.gate, services)
    preset = {} if expert else _preset(body.model, services.catalog)
    merged = {**preset, **wanted}
    blending = {field: merged.pop(field, None) for field in BLENDING}
    blend = services.catalog.blend.model_copy(update={f: value for f, value in blending.items() if value is not None})
    policy = Policy.model_validate({**merged, "gate": version})
    return Asked(body.model, expert, policy, blend, options.include_outputs, alias, options.timeout_s)


def model_ids(catalog: Catalog, roster: Sequence[ExpertSpec]) -> list[str]:
    presets = [f"{MODEL}:{name}" for name in catalog.presets]
    return [MODEL, *presets, *(f"{MODEL}/{spec.name}" for spec in roster)]


def pinned(model: str, catalog: Catalog, roster: Sequence[ExpertSpec]) -> str | None:
    """The expert `model` names, None where the gate is to choose. Raises UnknownModel with the nearest right one."""
    known = model_ids(catalog, roster)
    if model not in (*known, f"{MODEL}:latest"):
        raise UnknownModel(f"no model {model[:128]!r}{_hint(model, known)}", "model")
    return model.split("/", 1)[1] if "/" in model else None


def _preset(model: str, catalog: Catalog) -> dict[str, Any]:
    preset = catalog.presets.get(model.partition(":")[2])
    return preset.model_dump(exclude={"description"}, exclude_none=True) if preset else {}


def _options(sent: Options | None, headers: Mapping[str, str]) -> Options:
    named: dict[str, Any] = {field: headers[name] for name, field in HEADERS.items() if name in headers}
    for field in LISTS:
        if field in named:
            named[field] = tuple(name.strip() for name in named[field].split(",") if name.strip())
    if not named:
        return sent or Options()
    try:
        merged = Options.model_validate(named, context=IN_WORDS).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        header = next(name for name, field in HEADERS.items() if field == first["loc"][0])
        raise BadInput(f"{header}: {first['msg']} (got {headers[header][:80]!r})", header) from error
    return Options.model_validate({**merged, **(sent.model_dump(exclude_unset=True) if sent else {})})


def _known(name: str, roster: Sequence[ExpertSpec], param: str) -> str:
    plain = name.removeprefix(f"{MODEL}/")
    names = [spec.name for spec in roster]
    if plain not in names:
        raise BadInput(f"no expert {plain[:64]!r}{_hint(plain, names)}", param, "expert_not_found")
    return plain


def _gate(asked: int | str | None, services: Services) -> tuple[int | None, str | None]:
    """The version asked for, None for the one that serves, and its alias."""
    if asked is None:
        return None, "champion"
    if asked == "champion":
        return _champion(services), "champion"
    if asked == "challenger":
        return _challenger(services), "challenger"
    if isinstance(asked, str) and not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        raise BadInput(
            f"gate {asked[:32]!r}; send a version number, 'champion' or 'challenger'",
            "x_multimoe.gate",
            "gate_not_found",
        )
    version = int(asked)
    services.registry.manifest(version)
    return version, None


def _champion(services: Services) -> int | None:
    """By number while a canary answers some of the requests that name no version."""
    standing = services.registry.standing()
    return standing.champion if standing.trial else None


def _challenger(services: Services) -> int:
    """The version on trial, else the newest that was made after the champion."""
    standing = services.registry.standing()
    if standing.trial:
        return standing.trial.version
    newer = [version for version in services.registry.versions() if version > standing.champion]
    if not newer:
        raise NotFound(
            "no gate version is newer than the champion; train one first", "x_multimoe.gate", "gate_not_found"
        )
    return max(newer)


def _hint(wrong: str, right: Iterable[str]) -> str:
    names = list(right)
    close = difflib.get_close_matches(wrong[:128], names, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"
