"""What the gateway needs of the machines it runs on, as one protocol. `RayCluster` is the real one."""

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

from multimoe.config import ExpertSpec
from multimoe.decision import Policy
from multimoe.embedding import Embedding
from multimoe.errors import Conflict
from multimoe.expert import Delta, NextToken
from multimoe.journal import Trial
from multimoe.messages import ChatRequest
from multimoe.mixture import Routed
from multimoe.outputs import Frozen


class ExpertState(Frozen):
    """`state` is ready (a replica is up), asleep (scaled to zero, wakes when asked), starting, or down."""

    state: Literal["ready", "asleep", "starting", "down"]
    replicas: int = 0
    min_replicas: int = 0
    max_replicas: int = 0
    nodes: tuple[str, ...] = ()
    message: str = ""


class GateState(Frozen):
    """The version that answers now and the one on trial beside it, and with which encoders.

    `trial_error` says why the one on trial is not asked any more; empty while it is.
    """

    version: int
    trial: Trial | None = None
    trial_error: str = ""
    encoder_revisions: dict[str, str]


def refuse_other_kind(before: ExpertSpec, after: ExpertSpec) -> None:
    """Raises Conflict where one cannot take the other's place: while it does, both answer the same questions."""
    if (before.inputs, before.output) != (after.inputs, after.output):
        raise Conflict(
            f"{before.name!r} reads {', '.join(sorted(before.inputs))} and gives {before.output}, and an upgrade "
            "must do the same; add it under a name of its own",
            "output",
        )


class Cluster(Protocol):
    async def roster(self) -> tuple[ExpertSpec, ...]:
        """The experts the gate routes to now."""

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed: ...

    def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Raises ExpertFailed, ExpertTimeout, or Unavailable when no replica takes it."""

    async def next_tokens(self, expert: str, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        """What a `TokenExpert` would write next. Raises as `ask` does."""

    async def embed(self, request: ChatRequest) -> Embedding:
        """As the gate's encoders see it."""

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        """The gate's text encoder, (384,) each, length 1."""

    async def expert_states(self) -> dict[str, ExpertState]: ...

    async def scale(self, expert: str, min_replicas: int, max_replicas: int) -> None:
        """Raises NotFound."""

    async def add(self, spec: ExpertSpec) -> None:
        """Deploy an expert and route to it from its card. Raises Conflict when the name is taken."""

    async def replace(self, spec: ExpertSpec) -> None:
        """Put a new edition in the place of the expert of that name, without dropping a request.

        Raises NotFound, Conflict where it gives another kind of output, and Unavailable where the new edition does not
        come up: then the one before goes on.
        """

    async def remove(self, expert: str) -> None:
        """Raises NotFound, or Conflict when it is the last one."""

    async def gate_state(self) -> GateState: ...

    async def serve_gate(self, version: int, trial: Trial | None = None) -> None:
        """Swap the serving gate, and who is on trial, in place, without dropping a request.

        Raises CheckpointError, NotFound.
        """

    async def train(self, job: str) -> None:
        """Start retraining in the background; its progress goes to the store under `job`."""

    async def metrics(self) -> str:
        """What this node counts, in Prometheus' text form. Raises Unavailable."""
