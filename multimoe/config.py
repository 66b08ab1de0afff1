"""The catalog: one YAML file, one frozen tree, the single source of experts, gate, encoders, store and limits.

Unknown keys are refused with the nearest right one. Loaded once and passed down; nothing else reads the environment
for settings.
"""

import difflib
import os
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from multimoe.errors import BadConfig
from multimoe.messages import Modality
from multimoe.outputs import OutputKind


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


Model = TypeVar("Model", bound=Settings)


class Card(Settings):
    """What an expert is good at, in words. The gate knows a new expert by its card alone.

    `text` are example requests; `image` and `audio` describe, in words, pictures and sounds it is good for.
    """

    description: str = Field(min_length=1)
    text: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()


class Batch(Settings):
    """At most `size` requests at once, waiting at most `wait_ms` milliseconds for the batch to fill."""

    size: int = Field(default=8, ge=1)
    wait_ms: float = Field(default=5.0, ge=0)


class Autoscaling(Settings):
    """Ray Serve's own names and meanings; delays in seconds."""

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    initial_replicas: int | None = Field(default=None, ge=0)
    target_ongoing_requests: float = Field(default=2.0, gt=0)
    upscale_delay_s: float = Field(default=5.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class ActorOptions(Settings):
    """Ray's own names. CPUs and GPUs may be fractions; `memory` in bytes."""

    num_cpus: float = Field(default=0.1, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    memory: int | None = Field(default=None, ge=0)
    resources: dict[str, float] = {}


class Deployment(Settings):
    """How one expert (or the gate) is scaled and placed: Ray Serve's own names and meanings.

    `num_replicas` fixes the count; without it `autoscaling_config` rules. `min_replicas: 0` starts it when first asked.
    """

    num_replicas: int | None = Field(default=None, ge=0)
    autoscaling_config: Autoscaling = Autoscaling()
    max_ongoing_requests: int = Field(default=8, ge=1)
    max_queued_requests: int = Field(default=64, ge=-1)
    ray_actor_options: ActorOptions = ActorOptions()


class ExpertSpec(Settings):
    """One expert. `cost` is US$ a request and `latency_ms` its usual answer time, both as the gate should count them.

    `options` goes to the backend as it is; `weights` maps the backend's own names to weights URIs.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    backend: str = Field(pattern=r"^[\w.]+:\w+$")
    inputs: frozenset[Modality] = Field(min_length=1)
    output: OutputKind
    card: Card
    weights: dict[str, str] = {}
    options: dict[str, Any] = {}
    cost: float = Field(default=0.0, ge=0)
    latency_ms: float = Field(default=100.0, ge=0)
    timeout_s: float = Field(default=60.0, gt=0)
    batch: Batch = Batch()
    serve: Deployment = Deployment()


class EncoderSpec(Settings):
    """The frozen encoder of one modality. `revision` changes whenever its vectors do."""

    backend: str = Field(pattern=r"^[\w.]+:\w+$")
    revision: str
    weights: dict[str, str] = {}


class GateSpec(Settings):
    """How experts are chosen.

    `top_k` experts answer. `temperature` is that of the softmax over utilities, in units of utility. A share `explore`
    of requests is drawn by sampling without replacement instead of taken greedily. `preference` runs from 0 (cheapest)
    to 1 (best).
    """

    top_k: int = Field(default=2, ge=1, le=16)
    strategy: str = "softmax"
    temperature: float = Field(default=0.12, gt=0)
    explore: float = Field(default=0.1, ge=0, le=1)
    preference: float = Field(default=1.0, ge=0, le=1)
    encoders: dict[Modality, EncoderSpec]
    serve: Deployment = Deployment(max_ongoing_requests=64)


class Preset(Settings):
    """What `multimoe:NAME` changes against the defaults."""

    top_k: int | None = Field(default=None, ge=1, le=16)
    preference: float | None = Field(default=None, ge=0, le=1)
    explore: bool | None = None
    description: str = ""


class Limits(Settings):
    """Checked before work is done. Sizes in bytes, durations in seconds."""

    body_bytes: int = Field(default=25 * 2**20, gt=0)
    json_depth: int = Field(default=64, gt=0)
    messages: int = Field(default=128, gt=0)
    media_parts: int = Field(default=8, gt=0)
    text_chars: int = Field(default=100_000, gt=0)
    image_bytes: int = Field(default=10 * 2**20, gt=0)
    image_side: int = Field(default=8192, gt=0)
    image_pixels: int = Field(default=16_000_000, gt=0)
    audio_bytes: int = Field(default=25 * 2**20, gt=0)
    audio_seconds: float = Field(default=600.0, gt=0)
    max_tokens: int = Field(default=1024, gt=0)
    request_seconds: float = Field(default=120.0, gt=0)


class Server(Settings):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)

    @property
    def url(self) -> str:
        """Where it is reached from this machine, whichever addresses it listens on."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104  # compared, not bound
        return f"http://{host}:{self.port}"


class StoreSpec(Settings):
    """`url` is an SQLAlchemy URL; `{home}` stands for the catalog's home. `keep_text` stores questions and answers."""

    url: str = "sqlite:///{home}/multimoe.db"
    keep_text: bool = True


class Catalog(Settings):
    """Everything one installation is. Paths may begin with ~; `home` holds store and gate versions."""

    home: Path = Path(".multimoe")
    weights: Path = Path("~/.cache/multimoe/weights")
    server: Server = Server()
    limits: Limits = Limits()
    store: StoreSpec = StoreSpec()
    gate: GateSpec
    presets: dict[str, Preset] = {}
    experts: tuple[ExpertSpec, ...] = Field(min_length=1)

    @field_validator("home", "weights")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Catalog":
        names = [expert.name for expert in self.experts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"experts must have different names; more than once: {', '.join(twice)}")
        return self

    @property
    def store_url(self) -> str:
        return self.store.url.replace("{home}", str(self.home))

    @property
    def gates(self) -> Path:
        return self.home / "gates"

    def expert(self, name: str) -> ExpertSpec:
        """Raises BadConfig with the nearest name."""
        for expert in self.experts:
            if expert.name == name:
                return expert
        raise BadConfig(f"no expert {name!r} in the catalog{_nearest(name, [e.name for e in self.experts])}")

    def weight_uris(self) -> list[str]:
        """Every weights URI of the catalog, once, in the order they appear."""
        owners: list[EncoderSpec | ExpertSpec] = [*self.gate.encoders.values(), *self.experts]
        return list(dict.fromkeys(uri for owner in owners for uri in owner.weights.values()))


def load(path: Path) -> Catalog:
    """Read a catalog. Raises BadConfig with one line per mistake: where it is, what is wrong, what was meant.

    MULTIMOE_HOME and MULTIMOE_WEIGHTS stand above the file for the two paths that differ by machine.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"cannot read the catalog {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise BadConfig(f"{path} holds {type(tree).__name__}, not a mapping of settings")
    for key, variable in (("home", "MULTIMOE_HOME"), ("weights", "MULTIMOE_WEIGHTS")):
        if os.environ.get(variable):
            tree[key] = os.environ[variable]
    return parse(tree, str(path))


def parse(tree: dict[str, Any], source: str = "the catalog") -> Catalog:
    return validate(Catalog, tree, source)


def validate(model: type[Model], tree: Any, source: str) -> Model:
    """`model` from plain data. Raises BadConfig, a line per mistake."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        inner = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
        # a mistake inside a list also makes the list "too short": only the inner one helps
        lines = [_explain(model, problem) for problem in problems if problem["loc"] not in inner]
        raise BadConfig(
            f"{source} has {len(lines)} mistake(s):\n" + "\n".join(f"  {line}" for line in lines)
        ) from error


def _explain(model: type[Settings], problem: Any) -> str:
    where = ".".join(str(step) for step in problem["loc"]) or "(top)"
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        return f"{where}: unknown key {key!r}{_nearest(key, _keys_at(model, problem['loc'][:-1]))}"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r:.80})"


def _keys_at(model: type[BaseModel], steps: tuple[int | str, ...]) -> list[str]:
    """The keys allowed where `steps` lead, found in the JSON Schema (which resolves containers for us)."""
    schema = model.model_json_schema()
    node: dict[str, Any] = schema
    for step in steps:
        node = _resolved(node, schema)
        child = node.get("properties", {}).get(str(step)) or node.get("items") or node.get("additionalProperties")
        node = child if isinstance(child, dict) else {}
    return list(_resolved(node, schema).get("properties", {}))


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for option in [node, *node.get("anyOf", []), *node.get("allOf", [])]:
        if "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
            return found
    return node


def _nearest(wrong: str, right: list[str]) -> str:
    close = difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else (f"; allowed: {', '.join(sorted(right))}" if right else "")
