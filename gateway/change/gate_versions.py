"""Gate versions as JSON, as API and command line show them: manifest, aliases and stage."""

from typing import Any

from multimoe.checkpoint import Registry
from multimoe.errors import CheckpointError, MultimoeError, NotFound
from multimoe.journal import Place, Standing

Json = dict[str, Any]
UNKNOWN = Place(stage="refused")  # of a version that came or went while the others were read


def told(registry: Registry) -> list[Json]:
    """Every version, newest first; a damaged one says so as its `reason`."""
    standing, places = registry.standing(), registry.places()
    return [
        _manifest(registry, version) | {"aliases": standing.aliases(version), **_stage(places.get(version, UNKNOWN))}
        for version in reversed(registry.versions())
    ]


def told_of(registry: Registry, version: int) -> Json:
    """One version, which may have gone from the disk meanwhile."""
    place = registry.places().get(version, UNKNOWN)
    return _manifest(registry, version) | {"aliases": registry.standing().aliases(version), **_stage(place)}


def kept(registry: Registry, version: int, error: MultimoeError) -> Json:
    """One version that was made, and why it could not go on."""
    made = told_of(registry, version)
    return made | {"reason": f"{made['reason']}; {error.message}"}


def trial_of(standing: Standing) -> Json | None:
    """The version on trial: which, its stage, its share and since when."""
    trial = standing.trial
    return {"stage": trial.stage, **trial.model_dump(mode="json")} if trial else None


def _manifest(registry: Registry, version: int) -> Json:
    try:
        manifest = registry.manifest(version).model_dump(mode="json")
    except (CheckpointError, NotFound) as error:
        manifest = {"version": version, "promoted": False, "reason": error.message}
    return {"object": "gate.version", **manifest}


def _stage(place: Place) -> Json:
    told = place.model_dump(mode="json")
    return {"stage": told["stage"], "stage_since": told["since"], "stage_reason": told["reason"]}
