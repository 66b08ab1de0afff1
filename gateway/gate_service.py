"""Encoders and gate of one process: embeds, decides, and swaps versions. A plain class; Serve wraps it elsewhere."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from multimoe.checkpoint import Registry
from multimoe.config import ExpertSpec, GateSpec
from multimoe.decision import Policy
from multimoe.encoder import Encoders
from multimoe.errors import CheckpointError, NotFound
from multimoe.gate import Gate
from multimoe.messages import ChatRequest
from multimoe.reply import Routed

logger = logging.getLogger(__name__)

OTHER_VERSIONS = 4  # gates kept in memory for requests that ask for a version by number


class GateService:
    """Answers `decide` for one roster of experts. `configure` may be called again at any time from another thread."""

    def __init__(
        self,
        spec: GateSpec,
        gates: Path,
        find: Callable[[str], Path],
        seed: Callable[[], int] = lambda: secrets.randbits(32),
    ) -> None:
        self.spec = spec
        self.registry = Registry(gates)
        self.encoders = Encoders.load(spec, find)
        self.seed = seed
        self.roster: tuple[ExpertSpec, ...] = ()
        self._cards: Gate | None = None
        self._serving: Gate | None = None
        self._others: dict[int, Gate] = {}
        self._lock = threading.Lock()

    @property
    def serving(self) -> Gate:
        if self._serving is None:
            raise CheckpointError("the gate has not been configured yet; wait until /ready answers 200")
        return self._serving

    def configure(self, version: int, experts: Sequence[ExpertSpec]) -> None:
        """Serve `version` for `experts`. A version that cannot be loaded leaves the one before in service.

        Raises CheckpointError or NotFound when the version is damaged or absent, after the roster has been taken over.
        """
        with self._lock:
            cards = Gate.from_cards(experts, self.encoders.embed_texts, self.spec)
            before = self._serving
            self.roster, self._cards, self._others = tuple(experts), cards, {}
            self._serving = before.with_roster(experts, self.encoders.embed_texts) if before else cards
            self._serving = self._load(version)

    def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        """Embed and decide; the decision carries how long each took, in ms."""
        started = time.perf_counter()
        embedding = self.encoders.embed([request])[0]
        embedded = time.perf_counter()
        decision = self._gate(policy.gate).decide(embedding, policy, seed=policy.seed or self.seed())
        timing = {"embed": (embedded - started) * 1000, "route": (time.perf_counter() - embedded) * 1000}
        return Routed(decision.model_copy(update={"timing_ms": timing}), embedding.to_bytes())

    def _gate(self, version: int | None) -> Gate:
        if version is None or version == self.serving.version:
            return self.serving
        with self._lock:
            gate = self._others.get(version) or self._load(version)
            while len(self._others) >= OTHER_VERSIONS:
                self._others.pop(next(iter(self._others)))
            self._others[version] = gate
        return gate

    def _load(self, version: int) -> Gate:
        if self._cards is None:
            raise NotFound(f"gate version {version} cannot be loaded before the roster is known")
        if version == 0:
            return self._cards
        return self._cards.with_learned(self.registry.load(version), version)
