"""The catalog: one YAML file, one frozen tree, the single source of experts, gate, encoders, store and limits.

Unknown keys are refused with the nearest right one. Loaded once and passed down; nothing else reads the environment
for settings.
"""

import difflib
import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from multimoe.errors import BadConfig
from multimoe.messages import Modality
from multimoe.outputs import OutputKind

PREFERENCES: Mapping[str, float] = {"cheap": 0.0, "balanced": 0.5, "best": 1.0}


def _in_numbers(preference: Any) -> Any:
    if not isinstance(preference, str) or not preference.isalpha():
        return preference
    if preference not in PREFERENCES:
        words = ", ".join(PREFERENCES)
        raise ValueError(f"a preference is one of {words}, or a number from 0 (cheapest) to 1 (best)")
    return PREFERENCES[preference]


# How much quality counts against cost and latency: 0 is the cheapest that will do, 1 the best whatever it takes.
_Number = Annotated[float, Field(ge=0, le=1)]
Preference = Annotated[
    _Number,
    BeforeValidator(_in_numbers, json_schema_input_type=_Number | Literal["cheap", "balanced", "best"]),
]

# How one request's experts are chosen; what each does and where it was published stands in `strategies.strategy`.
Strategy = Literal["softmax", "noisy", "thompson", "switch", "gshard", "hierarchical", "loss-free", "gumbel"]

# How what the chosen experts say becomes one answer; `BlendSpec` says what each does.
Combine = Literal["weighted", "best", "vote", "fuse", "auto", "tokens", "all"]


CLASS = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"  # `module:Class`


class Settings(BaseModel):
    """Frozen, without unknown keys, and `true` is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, sent: Any, info: ValidationInfo) -> Any:
        if sent is False and "off" in get_args(cls.model_fields[str(info.field_name)].annotation):
            return "off"  # as YAML reads it
        flags = [flag for flag in (sent.values() if isinstance(sent, dict) else [sent]) if isinstance(flag, bool)]
        if flags and not _may_be_flag(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"a flag ({str(flags[0]).lower()}) is no value for this")
        return sent


def _may_be_flag(annotation: Any) -> bool:
    """Whether a flag fits, or somebody else looks: settings inside settings look at their own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return annotation in (bool, Any) or any(_may_be_flag(part) for part in get_args(annotation))


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
    """One expert. `backend` is `module:Class`, or the name of one that an installed package offers.

    `cost` is US$ a request and `latency_ms` its usual answer time, both as the gate should count them.

    `options` goes to the backend as it is; `weights` maps the backend's own names to weights URIs. Hierarchical gating
    chooses among experts of one `group`. `capacity` is how many requests at a time one replica is to have; without it,
    as many as it works on at once. Experts of one `tokenizer`, a name of the catalog's own, can write token by token.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    backend: str = Field(pattern=rf"^({CLASS}|[a-z0-9][a-z0-9_-]*)$")
    inputs: frozenset[Modality] = Field(min_length=1)
    output: OutputKind
    card: Card
    weights: dict[str, str] = {}
    options: dict[str, Any] = {}
    cost: float = Field(default=0.0, ge=0)
    latency_ms: float = Field(default=100.0, ge=0)
    timeout_s: float = Field(default=60.0, gt=0)
    group: str = ""
    tokenizer: str = ""
    capacity: int | None = Field(default=None, ge=1)
    batch: Batch = Batch()
    serve: Deployment = Deployment()

    @field_validator("inputs", mode="before")
    @classmethod
    def _each_once(cls, sent: Any) -> Any:
        if isinstance(sent, list | tuple) and len({str(kind) for kind in sent}) < len(sent):
            raise ValueError("every kind of input is named once")
        return sent


class EncoderSpec(Settings):
    """The frozen encoder of one modality. `revision` changes whenever its vectors do."""

    backend: str = Field(pattern=rf"^{CLASS}$")
    revision: str
    weights: dict[str, str] = {}


class RolloutSpec(Settings):
    """How a new gate version that is proven better comes to serve; zeros skip a stage, all zeros promote it at once.

    In shadow it decides beside the champion on `shadow_requests` requests and answers none; it is dropped when its
    choices cost more than `most_cost` times the champion's. As a canary it answers a share of requests until ratings
    show that it is better, or worse by less than `margin`, at most until `canary_ratings` of both are in. A stage lasts
    `days` at most. For its first `watch_ratings` the new champion is compared with what the one before it earned.
    """

    shadow_requests: int = Field(default=50, ge=0, le=1000)
    most_cost: float = Field(default=2.0, ge=1)
    canary_share: float = Field(default=0.1, ge=0, le=0.5)
    canary_ratings: int = Field(default=500, ge=1, le=10_000)
    margin: float = Field(default=0.02, ge=0, lt=1)
    watch_ratings: int = Field(default=200, ge=0, le=10_000)
    days: float = Field(default=7.0, gt=0)


class PromotionSpec(Settings):
    """What a new gate version must show to be promoted, beside being better on average by at least `least_gain`.

    `golden` is a file of requests and the experts that must be able to answer them, relative to the catalog. An expert
    is starved when its share of requests falls below `starved` times what it was while its quality is known no better
    than to ±`known_within`. The calibration error may rise by `calibration`, any expert's share of the load move by
    `load_drift` (1 is any), and a request cost `most_cost` times what it did.
    """

    least_gain: float = Field(default=0.005, ge=0, le=1)
    golden: Path | None = None
    starved: float = Field(default=0.1, ge=0, le=1)
    known_within: float = Field(default=0.15, gt=0, le=0.5)
    calibration: float = Field(default=0.05, ge=0, le=1)
    load_drift: float = Field(default=1.0, ge=0, le=1)
    most_cost: float = Field(default=2.0, ge=1)


class LearningSpec(Settings):
    """How the gate learns. With the objective `quality` it learns what each expert is worth, and chooses by that.

    With `ips` or `doubly-robust` it also raises the log's own estimate of the policy, held back by `decay`, with
    `importance_loss`, `load_loss` (under the noisy strategy's noise) and `balance_loss` (Switch's) against uneven use,
    and `z_loss` against large logits.
    """

    objective: Literal["quality", "ips", "doubly-robust"] = "quality"
    decay: float = Field(default=0.1, ge=0)
    importance_loss: float = Field(default=0.0, ge=0)
    load_loss: float = Field(default=0.0, ge=0)
    balance_loss: float = Field(default=0.0, ge=0)
    z_loss: float = Field(default=0.0, ge=0)


class GateSpec(Settings):
    """How experts are chosen.

    `top_k` experts answer. `temperature` is that of the softmax over utilities, in units of utility; `noise`, in the
    same, is the standard deviation that the noisy strategy adds. A share `explore` of requests is drawn by sampling
    without replacement instead of taken by the strategy. `preference` runs from 0 (cheapest) to 1 (best), or is a word
    of `PREFERENCES`. An expert that has `capacity_factor` times as many requests as its capacity is full, and what
    would go there goes to the next best. `balance_rate` is the step of loss-free balancing's bias at each retraining.
    """

    top_k: int = Field(default=2, ge=1, le=16)
    strategy: Strategy = "softmax"
    temperature: float = Field(default=0.12, gt=0)
    noise: float = Field(default=0.1, gt=0)
    explore: float = Field(default=0.1, ge=0, le=1)
    preference: Preference = 1.0
    capacity_factor: float = Field(default=2.0, gt=0)
    balance_rate: float = Field(default=0.001, ge=0, le=1)
    promotion: PromotionSpec = PromotionSpec()
    learning: LearningSpec = LearningSpec()
    rollout: RolloutSpec = RolloutSpec()
    encoders: dict[Modality, EncoderSpec]
    serve: Deployment = Deployment(max_ongoing_requests=64)


class BlendSpec(Settings):
    """How what the chosen experts say becomes one answer.

    Of texts, `combine` gives: with "weighted" and "best" the weightiest one, streamed as it comes; with "vote" the one
    that the others, by their weights, agree with most; with "fuse" a new one, which the text expert `fuser` (left out,
    the weightiest) writes from all; with "tokens" one that experts of one `tokenizer` write together, each next token
    from the mixture of their distributions; with "all" everybody's, under their names. With "auto" the best is given
    where its predicted quality is at least `enough_quality`; else the voted one where the texts agree by at least
    `enough_agreement` (expected cosine similarity to the others); only else are they fused. Of anything but texts,
    "best" gives the weightiest, "all" everybody's and every other the weighted mixture.

    Among classifiers of one `group`, which the catalog thereby says can stand in for each other, the next is asked only
    while the likeliest label so far has a probability below `ask_next_below`; left out, all chosen are asked. Of each
    next token an expert gives the `top_tokens` likeliest.
    """

    combine: Combine = "weighted"
    enough_quality: float = Field(default=0.75, ge=0, le=1)
    enough_agreement: float = Field(default=0.8, ge=0, le=1)
    fuser: str = ""
    ask_next_below: float | None = Field(default=None, ge=0, le=1)
    top_tokens: int = Field(default=64, ge=1, le=1024)


class Preset(Settings):
    """What `multimoe:NAME` changes against the defaults."""

    top_k: int | None = Field(default=None, ge=1, le=16)
    strategy: Strategy | None = None
    preference: Preference | None = None
    explore: bool | None = None
    combine: Combine | None = None
    ask_next_below: float | None = Field(default=None, ge=0, le=1)
    description: str = ""


PRESETS: Mapping[str, Preset] = {  # in every catalog, which may say something else by the same name
    "cheap": Preset(preference=PREFERENCES["cheap"], description="The cheapest and quickest that will do."),
    "balanced": Preset(preference=PREFERENCES["balanced"], description="Quality against cost and time, evenly."),
    "best": Preset(preference=PREFERENCES["best"], description="The best, whatever it costs."),
}


class Limits(Settings):
    """Checked before work is done. Sizes in bytes, durations in seconds.

    Opening one file may take `decode_seconds` of a processor's time and `decode_memory` bytes.
    `ratings_per_minute` is for one user; from one address may come ten times as many. A request may have come through
    `hops` other gateways. `requests_per_minute`, `concurrent_requests`, `tokens_per_day` and `cost_per_day` (US$; a day
    is one of UTC) are for each key that has none of its own; left out, there is no such limit.

    With `admission` "adaptive" a gateway has so many requests under way that an answer takes no more than `stretch`
    times what it takes where nothing else is going on; others wait for their turn, for about `wait_seconds`, and for
    a tenth of that while the queue does not empty; who would wait longer is refused at once. With "off" everybody is
    let in. A body has to be there within `body_seconds`.
    """

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
    decode_seconds: float = Field(default=10.0, gt=0)
    decode_memory: int = Field(default=320 * 2**20, gt=0)
    max_tokens: int = Field(default=1024, gt=0)
    request_seconds: float = Field(default=120.0, gt=0)
    ratings_per_minute: int = Field(default=120, gt=0)
    hops: int = Field(default=4, ge=0)
    requests_per_minute: int | None = Field(default=None, gt=0)
    concurrent_requests: int | None = Field(default=None, gt=0)
    tokens_per_day: int | None = Field(default=None, gt=0)
    cost_per_day: float | None = Field(default=None, gt=0)
    admission: Literal["adaptive", "off"] = "adaptive"
    stretch: float = Field(default=4.0, gt=1)
    wait_seconds: float = Field(default=2.0, gt=0)
    body_seconds: float = Field(default=30.0, gt=0)


# A host by name; its last label begins with a letter, so no way to write an IP address is one.
HOST = r"([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?"


class MediaSpec(Settings):
    """Which addresses in requests are fetched: none without `domains`, so that media come as `data:` URLs alone.

    "example.org" is that host, "*.example.org" every host below it, "*" any host by name. A host must be on the public
    internet with every one of its addresses, or on one of `networks` ("10.1.2.0/24"), which are for an image server of
    one's own: whoever may ask can reach what listens there on `ports`. At most `redirects` are followed, only to what
    could have been asked for at once. All files of a request have `fetch_seconds` together.
    """

    domains: tuple[Annotated[str, Field(pattern=rf"^(\*|(\*\.)?{HOST})$", max_length=253)], ...] = ()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    https_only: bool = True
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (443, 80)
    redirects: int = Field(default=3, ge=0, le=10)
    fetch_seconds: float = Field(default=10.0, gt=0, le=60)


class FaultSpec(Settings):
    """What is done about experts that fail, by each gateway for itself.

    One that fails `eject_after` times in a row, or on a share `eject_share` of its last questions, is passed over for
    `eject_seconds`, then tried with a copy of a question, one at a time, whose answer nobody waits for, and passed over
    for longer each time that fails; at most a share `most_ejected` of all experts at once, and only while others can
    answer. Who failed in a row comes back after one trial that went well, the other after `eject_after` of them. Who
    takes longer to its first word than `slow_factor` times what is usual for it, and than `slow_seconds`, fails as
    well, and the next best is asked beside it, for at most a share `hedges` of all questions. A question to a replica
    that went away is put to another one, for at most a share `retries` of all questions.
    """

    eject_after: int = Field(default=5, ge=1)
    eject_share: float = Field(default=0.25, gt=0, le=1)
    eject_seconds: float = Field(default=5.0, gt=0)
    most_ejected: float = Field(default=1 / 3, ge=0, le=1)
    slow_factor: float = Field(default=10.0, ge=1)
    slow_seconds: float = Field(default=5.0, gt=0)
    retries: float = Field(default=0.1, ge=0, le=1)
    hedges: float = Field(default=0.05, ge=0, le=1)


class Server(Settings):
    """Where the API and the page listen. `keys` "auto" asks for an API key once there is one, or once anybody but this
    machine can reach `host`; "required" always does. `replicas` of the gateway share the requests. What is being
    answered when the product is told to stop has `grace_seconds` to end.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    keys: Literal["auto", "required"] = "auto"
    replicas: int = Field(default=1, ge=1)
    grace_seconds: float = Field(default=30.0, ge=0)

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
    media: MediaSpec = MediaSpec()
    store: StoreSpec = StoreSpec()
    gate: GateSpec
    blend: BlendSpec = BlendSpec()
    faults: FaultSpec = FaultSpec()
    presets: dict[str, Preset] = {}
    experts: tuple[ExpertSpec, ...] = Field(min_length=1)

    @field_validator("home", "weights")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("presets")
    @classmethod
    def _with_the_usual_ones(cls, presets: dict[str, Preset]) -> dict[str, Preset]:
        return {**presets, **{name: preset for name, preset in PRESETS.items() if name not in presets}}

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Catalog":
        names = [expert.name for expert in self.experts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"experts must have different names; more than once: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _the_fuser_writes(self) -> "Catalog":
        writers = [expert.name for expert in self.experts if expert.output == "text"]
        if self.blend.fuser and self.blend.fuser not in writers:
            raise ValueError(f"blend.fuser {self.blend.fuser!r} is no text expert; there are: {', '.join(writers)}")
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
        raise BadConfig(f"no expert {name!r} in the catalog{nearest(name, [e.name for e in self.experts])}")

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
    return parse(_beside(path, tree), str(path))


def _beside(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the file of golden requests as a path from here rather than from the catalog."""
    match tree:
        case {"gate": {"promotion": {"golden": str() as golden}}}:
            tree["gate"]["promotion"]["golden"] = str(path.parent.absolute() / Path(golden).expanduser())
    return tree


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
        return f"{where}: unknown key {key!r}{nearest(key, _keys_at(model, problem['loc'][:-1]))}"
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


def nearest(wrong: str, right: list[str]) -> str:
    """The end of a sentence about a `wrong` name: the one that was meant, or all that are `right`; "" for none."""
    close = difflib.get_close_matches(wrong, right, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else (f"; allowed: {', '.join(sorted(right))}" if right else "")
