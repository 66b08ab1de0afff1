"""What a request asks of the gate and what the gate answers: the policy and the decision, as they are logged."""

from pydantic import Field

from multimoe.config import Preference
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
    preference: Preference | None = None
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


class Contest(Frozen):
    """What the champion and the challenger, the version on trial, made of one request.

    `share` of requests are the challenger's to answer, 0 in shadow. The two `chances` are those with which each draws
    the logged choice; the two choices what each would have answered with. `gain` is the quality that the challenger
    predicts of its own choice, less what it predicts of the champion's. `error` says why it could not decide.
    """

    champion: int
    challenger: int
    share: Probability
    champion_chance: Probability
    challenger_chance: Probability = 0.0
    champion_choice: tuple[str, ...]
    challenger_choice: tuple[str, ...] = ()
    gain: float = 0.0
    error: str | None = None


class Decision(Frozen):
    """One routing decision, whole: what was chosen, how likely that was, and what else there was.

    `chosen` is in order of choice. `propensity` is the exact probability with which this ordered choice is drawn for
    this request under this policy; where two versions contest, whichever of them answers. `gate_version` is the one
    that did. `considered` lists every eligible expert, likeliest first; `ineligible` says why the others were not, and
    `overflowed` are those of them that were only full. `load` is the share of their room that was in use.
    """

    chosen: tuple[Choice, ...]
    considered: tuple[Considered, ...]
    ineligible: dict[str, str] = {}
    overflowed: tuple[str, ...] = ()
    load: dict[str, float] = {}
    propensity: Probability
    explored: bool
    strategy: str
    seed: int
    gate_version: int
    encoder_revisions: dict[Modality, str] = {}
    modalities: tuple[Modality, ...]
    policy: Policy = Policy()
    reasons: tuple[str, ...] = ()
    contest: Contest | None = None
    timing_ms: dict[str, float] = {}
