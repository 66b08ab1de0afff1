"""What the log holds, as frozen types: an interaction with its outcomes, a rating, a job, and sums over them.

They check themselves and know nothing of the database.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from multimoe.decision import Decision
from multimoe.errors import BadInput, TooLarge
from multimoe.outputs import Frozen, Usage

COMMENT_CHARS = 10_000
NAME_CHARS = 128  # of every part of a rating's key: PostgreSQL indexes at most 2,700 bytes
REJECTED = 16

Target = Literal["answer", "expert", "comparison"]
Scope = Literal["chat", "rate", "admin"]


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _utc_now() -> datetime:
    return datetime.now(UTC)


Moment = Annotated[AwareDatetime, AfterValidator(_utc)]


class Outcome(Frozen):
    """What one expert did for an answer. `text` is what it said itself, kept only where texts are kept."""

    expert: str
    role: Literal["answer", "evidence", "aside", "skipped"]
    weight: float
    status: Literal["ok", "error", "timeout", "skipped"]
    latency_ms: float = 0.0
    cost: float = 0.0
    text: str | None = None


class Interaction(Frozen):
    """One question and its answer. `id` is the handle for ratings; `model` is what was asked for.

    `tenant` is whose key it was asked with, None where no key was needed. `decision` is None where the expert was named
    by the asker; `embedding` is `Embedding.to_bytes()`. `question` and `answer` are None where texts are not kept.
    """

    id: str
    created: Moment
    model: str
    user: str | None = None
    tenant: str | None = None
    decision: Decision | None = None
    embedding: bytes | None = None
    question: str | None = None
    answer: str | None = None
    outcomes: tuple[Outcome, ...] = ()
    status: Literal["ok", "degraded", "error", "cancelled"] = "ok"
    usage: Usage = Usage()
    timing_ms: dict[str, float] = {}
    request_id: str | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        """Those who took part, in order, each once."""
        return tuple(dict.fromkeys(o.expert for o in self.outcomes if o.status != "skipped"))


class Rating(Frozen):
    """What somebody made of an answer. `score` runs from 0 (bad) to 1 (good); a thumb is 1 or 0.

    The key is completion, target, expert, name and user: rating again replaces. A comparison names, as `preferred` and
    `rejected`, experts that took part or ids of other answers. Raises BadInput.
    """

    completion_id: str
    target: Target = "answer"
    expert: str | None = None
    name: str = "user_rating"
    score: float | None = None
    label: str | None = None
    comment: str | None = None
    source: Literal["user", "eval", "operator"] = "user"
    user: str | None = None
    preferred: str | None = None
    rejected: tuple[str, ...] = ()
    created: Moment = Field(default_factory=_utc_now)

    @model_validator(mode="after")
    def _says_something(self) -> "Rating":
        _check_sizes(self)
        _check_target(self)
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise BadInput(f"score is {self.score!r}; it runs from 0 (bad) to 1 (good)", "score")
        if self.target != "comparison" and self.score is None and self.label is None:
            raise BadInput("a rating needs a score from 0 (bad) to 1 (good), a label, or both", "score")
        return self

    @property
    def liked(self) -> bool | None:
        """Which side of the middle the score is on; None in the middle or without a score."""
        return None if self.score is None or self.score == 0.5 else self.score > 0.5


def _check_sizes(rating: Rating) -> None:
    if len(rating.comment or "") > COMMENT_CHARS:
        raise TooLarge(f"comment has {len(rating.comment or '')} characters; at most {COMMENT_CHARS:,}", "comment")
    if len(rating.rejected) > REJECTED:
        raise TooLarge(f"rejected names {len(rating.rejected)} answers; at most {REJECTED}", "rejected")
    for field in ("completion_id", "expert", "name", "label", "user", "preferred"):
        value = getattr(rating, field)
        if value is not None and not 0 < len(value) <= NAME_CHARS:
            raise BadInput(f"{field} has {len(value)} characters; it needs 1 to {NAME_CHARS}", field)


def _check_target(rating: Rating) -> None:
    if rating.target == "expert" and rating.expert is None:
        raise BadInput('a rating with target "expert" needs `expert`, the name of the expert it is about', "expert")
    if rating.target != "expert" and rating.expert is not None:
        raise BadInput(f'`expert` needs target "expert"; the target is {rating.target!r}', "target")
    if rating.target == "comparison":
        if rating.preferred is None or not rating.rejected:
            raise BadInput("a comparison needs `preferred` and at least one `rejected`", "preferred")
        if rating.preferred in rating.rejected:
            raise BadInput(f"{rating.preferred!r} is both preferred and rejected; name it once", "rejected")
    elif rating.preferred is not None or rating.rejected:
        raise BadInput(f'`preferred` and `rejected` need target "comparison", not {rating.target!r}', "target")


class Rated(Frozen):
    """An interaction with all its ratings, oldest first: one example to learn from."""

    interaction: Interaction
    ratings: tuple[Rating, ...]


class Job(Frozen):
    """Something long, such as a retraining. `progress` runs from 0 to 1; `updated` is its last sign of life."""

    id: str
    kind: str
    status: Literal["running", "done", "failed"]
    progress: float
    message: str
    result: dict[str, Any] | None
    error: str | None
    created: Moment
    updated: Moment


Count = Annotated[int, Field(ge=1, lt=2**53)]
Money = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Quota(Frozen):
    """How much one key may ask for. What is None is as the catalog says for every key; "unlimited" is unlimited
    whatever it says. Cost in US$; a day is one of UTC.
    """

    requests_per_minute: Count | Literal["unlimited"] | None = None
    concurrent_requests: Count | Literal["unlimited"] | None = None
    tokens_per_day: Count | Literal["unlimited"] | None = None
    cost_per_day: Money | Literal["unlimited"] | None = None


class Key(Frozen):
    """An API key as the store keeps it: everything but the secret, of which only a digest is left.

    Keys of one `tenant` see and rate each other's answers, and nobody else's. Scope "chat" asks, "rate" rates what its
    tenant asked, "admin" may do everything. `quota` is this key's alone.
    """

    id: str
    name: str
    tenant: str
    scopes: frozenset[Scope]
    digest: str
    created: Moment
    expires: Moment | None = None
    revoked: Moment | None = None
    quota: Quota = Quota()

    def holds(self, now: datetime) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class ExpertStats(Frozen):
    """`asked` leaves out the skipped; `ratings` and `mean_score` are of ratings about this expert alone."""

    asked: int = 0
    answered: int = 0
    failed: int = 0
    mean_weight: float | None = None
    mean_latency_ms: float | None = None
    ratings: int = 0
    mean_score: float | None = None


class Stats(Frozen):
    """`positive` is the share of scores above 0.5; None before the first."""

    interactions: int
    ratings: int
    positive: float | None
    experts: dict[str, ExpertStats]
