"""Backends by name: `module:Class`, or the name under which an installed package offers one.

A package offers experts as entry points of the group `multimoe.experts`, and may bring each one's catalog entry: a YAML
file beside its module, named like it. Nothing of a package is imported before its expert is asked for.
"""

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from multimoe.config import ExpertSpec, nearest, validate
from multimoe.errors import BadConfig
from multimoe.expert import Expert, FindWeights

GROUP = "multimoe.experts"


@dataclass(frozen=True)
class Offer:
    """What an installed package offers: `name` may stand as `backend` in a catalog, and means `backend`."""

    name: str
    backend: str
    package: str
    version: str

    def entry(self) -> ExpertSpec | None:
        """The catalog entry the package brings for it; None where it brings none. Raises BadConfig."""
        return entry_beside(self.backend, self.name)


def load_expert(spec: ExpertSpec, weights: FindWeights) -> Expert:
    """The expert, its weights loaded. Raises BadConfig where its backend cannot be found or refuses its spec."""
    return find_backend(spec.backend)(spec, weights)


def find_backend(name: str) -> type[Expert]:
    """The class, imported. Raises BadConfig, with what may have been meant."""
    path = name if ":" in name else find_offer(name).backend
    module, _, wanted = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), wanted)
    except Exception as error:  # a module that is imported runs, and may raise whatever it likes
        raise BadConfig(f"backend {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Expert)):
        raise BadConfig(f"backend {name!r} is no expert: {wanted} must be a class derived from multimoe.expert.Expert")
    return found


def find_offer(name: str) -> Offer:
    """Raises BadConfig where no installed package offers `name`, or several do."""
    offers = installed()
    found = [offer for offer in offers if offer.name == name]
    if not found:
        names = [offer.name for offer in offers]
        hint = nearest(name, names) or f"; none offers any: name the class itself, as in my_package.{name}:MyExpert"
        raise BadConfig(f"no installed package offers an expert {name!r}{hint}")
    if len(found) > 1:
        packages = " and ".join(offer.package for offer in found)
        raise BadConfig(f"expert {name!r} is offered by {packages}: name the class itself, as in {found[0].backend!r}")
    return found[0]


def installed() -> list[Offer]:
    """Every expert that an installed package offers, by name."""
    points = importlib.metadata.entry_points(group=GROUP)
    offers = [Offer(p.name, p.value, p.dist.name, p.dist.version) for p in points if p.dist is not None]
    return sorted(offers, key=lambda offer: (offer.name, offer.package))


def entry_beside(backend: str, name: str | None = None) -> ExpertSpec | None:
    """The catalog entry in the YAML file beside a backend's module; None where there is none.

    Of several entries the one called `name` counts. Raises BadConfig for one that makes no sense.
    """
    module = backend.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)  # of a package's module it imports the package, not the module
    except (ImportError, ValueError) as error:
        raise BadConfig(f"backend {backend!r} cannot be imported: {error}") from error
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).with_name(f"{module.rpartition('.')[2]}.yaml")
    return read_entry(file, name) if file.is_file() else None


def read_entry(file: Path, name: str | None = None) -> ExpertSpec:
    """A catalog entry from a YAML file of its own; a list, as cut out of a catalog, will do. Raises BadConfig."""
    try:
        tree: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadConfig(f"{file} is not YAML: {error}") from error
    entries = tree if isinstance(tree, list) else [tree]
    named = [entry for entry in entries if isinstance(entry, dict) and entry.get("name") == name]
    if len(entries) != 1 and len(named) != 1:
        raise BadConfig(f"{file} holds {len(entries)} entries; one is expected")
    return validate(ExpertSpec, named[0] if named else entries[0], str(file))
