"""What the gateway needs of the machines it runs on, as one protocol. `RayCluster` is the real one."""

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

from multimoe.config import ExpertSpec
from multimoe.decision import Policy
from multimoe.expert import Delta
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
    """The version that answers now, since when (seconds since the epoch), and with which encoders."""

    version: int
    encoder_revisions: dict[str, str]


class Cluster(Protocol):
    async def roster(self) -> tuple[ExpertSpec, ...]:
        """The experts the gate routes to now."""

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed: ...

    def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Raises ExpertFailed, ExpertTimeout, or Unavailable when no replica takes it."""

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        """The gate's text encoder, (384,) each, length 1."""

    async def expert_states(self) -> dict[str, ExpertState]: ...

    async def scale(self, expert: str, min_replicas: int, max_replicas: int) -> None:
        """Raises NotFound."""

    async def add(self, spec: ExpertSpec) -> None:
        """Deploy an expert and route to it from its card. Raises Conflict when the name is taken."""

    async def remove(self, expert: str) -> None:
        """Raises NotFound, or Conflict when it is the last one."""

    async def gate_state(self) -> GateState: ...

    async def serve_gate(self, version: int) -> None:
        """Swap the serving gate in place, without dropping a request. Raises CheckpointError, NotFound."""

    async def train(self, job: str) -> None:
        """Start retraining in the background; its progress goes to the store under `job`."""

    async def metrics(self) -> str:
        """What this node counts, in Prometheus' text form. Raises Unavailable."""
