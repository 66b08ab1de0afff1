"""What a request asks of the gate and what the gate answers: the policy and the decision, as they are logged."""

from pydantic import Field

from multimoe.messages import Modality
from multimoe.outputs import Frozen, Probability


class Policy(Frozen):
    """What one request asks of the gate; `None` leaves the catalog's default.

    `experts` keeps only these, `exclude` drops these. `explore` False takes the best without sampling. `preference`
    runs from 0 (cheapest) to 1 (best). `max_cost` in US$ and `max_latency_ms` drop experts above them. `gate` asks for
    one gate version.
    """

    top_k: int | None = Field(default=None, ge=1, le=16)
    strategy: str | None = None
    temperature: float | None = Field(default=None, gt=0)
    explore: bool | None = None
    preference: float | None = Field(default=None, ge=0, le=1)
    experts: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_cost: float | None = Field(default=None, ge=0)
    max_latency_ms: float | None = Field(default=None, ge=0)
    gate: int | None = None
    seed: int | None = None


class Considered(Frozen):
    """An eligible expert as the gate saw it: `probability` of being drawn first, `quality` predicted."""

    expert: str
    probability: Probability
    quality: Probability


class Choice(Considered):
    """A chosen expert; the weights of all choices sum to 1."""

    weight: Probability


class Decision(Frozen):
    """One routing decision, whole: what was chosen, how likely that was, and what else there was.

    `chosen` is in order of choice. `propensity` is the exact probability with which this ordered choice is drawn for
    this request under this policy. `considered` lists every eligible expert, likeliest first; `ineligible` says why the
    others were not.
    """

    chosen: tuple[Choice, ...]
    considered: tuple[Considered, ...]
    ineligible: dict[str, str] = {}
    propensity: Probability
    explored: bool
    strategy: str
    seed: int
    gate_version: int
    encoder_revisions: dict[Modality, str] = {}
    modalities: tuple[Modality, ...]
    policy: Policy = Policy()
    reasons: tuple[str, ...] = ()
    timing_ms: dict[str, float] = {}
