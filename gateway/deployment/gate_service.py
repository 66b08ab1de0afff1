"""Encoders and gate of one process: embeds, decides, and swaps versions. A plain class; Serve wraps it elsewhere.

While a version is on trial two gates decide each request. Whatever happens to that one, the champion answers.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gateway.cluster import GateState
from multimoe.checkpoint import Registry
from multimoe.config import ExpertSpec, GateSpec
from multimoe.contest import contest, defaulted
from multimoe.decision import Decision, Policy
from multimoe.embedding import Embedding
from multimoe.encoder import Encoders
from multimoe.errors import CheckpointError, NotFound
from multimoe.gate import Gate
from multimoe.journal import Trial
from multimoe.messages import SAMPLE_RATE, AudioPart, ChatRequest, ImagePart, Message, Modality, Part, TextPart
from multimoe.reply import Routed

logger = logging.getLogger(__name__)

OTHER_VERSIONS = 4  # gates kept in memory for requests that ask for a version by number
SAMPLES: Mapping[Modality, Part] = {  # what a version must be able to decide before it serves
    "text": TextPart("Is it one?"),
    "image": ImagePart(np.zeros((32, 32, 3), np.uint8)),
    "audio": AudioPart(np.zeros(SAMPLE_RATE, np.float32)),
}


class Serving(NamedTuple):
    """What decides, swapped as one. `error` says why the version on trial is not asked any more."""

    champion: Gate
    trial: Trial | None = None
    challenger: Gate | None = None
    error: str = ""


class GateService:
    """Answers `decide` for one roster of experts. `configure` may be called again at any time, from any thread:

    a decision is made by what served when it began.
    """

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
        self._serving: Serving | None = None
        self._others: dict[int, Gate] = {}
        self._samples: dict[Modality, Embedding] = {}
        self._lock = threading.Lock()

    @property
    def serving(self) -> Serving:
        if self._serving is None:
            raise CheckpointError("the gate has not been configured yet; wait until /ready answers 200")
        return self._serving

    def configure(self, version: int, experts: Sequence[ExpertSpec], trial: Trial | None = None) -> None:
        """Serve `version` for `experts`, beside it `trial`. A version that cannot be loaded changes only the roster.

        Raises CheckpointError or NotFound when the version is damaged or absent, after the roster has been taken over.
        One on trial that is so raises nothing: `trial_error` says it.
        """
        with self._lock:
            cards = self._cards if tuple(experts) == self.roster else None
            if cards is None:  # reading every card again takes seconds, in which nothing is decided
                cards = Gate.from_cards(experts, self.encoders.embed_texts, self.spec)
            self.roster, self._cards, self._others = tuple(experts), cards, {}
            self._serving = self._rerostered(self._serving) if self._serving else Serving(cards)
            champion = self._load(version)
            self._serving = self._tried(champion, trial) if trial else Serving(champion)

    def decide(self, request: ChatRequest, policy: Policy, load: Mapping[str, float] | None = None) -> Routed:
        """Embed and decide; the decision carries how long each took, in ms. `load` as for `Gate.decide`."""
        started = time.perf_counter()
        embedding = self.encoders.embed([request])[0]
        embedded = time.perf_counter()
        decision = self._decision(embedding, policy, self.seed() if policy.seed is None else policy.seed, load)
        timing = {"embed": (embedded - started) * 1000, "route": (time.perf_counter() - embedded) * 1000}
        return Routed(decision.model_copy(update={"timing_ms": timing}), embedding.to_bytes())

    def state(self) -> GateState:
        now = self.serving
        return GateState(
            version=now.champion.version,
            trial=now.trial,
            trial_error=now.error,
            encoder_revisions={str(m): revision for m, revision in self.encoders.revisions.items()},
        )

    def _decision(self, embedding: Embedding, policy: Policy, seed: int, load: Mapping[str, float] | None) -> Decision:
        """Who asks for a version by number gets that one alone."""
        now = self.serving
        champion, trial, challenger, _ = now
        if policy.gate is not None:
            return self._gate(policy.gate, now).decide(embedding, policy, seed, load=load)
        ours = champion.decide(embedding, policy, seed, load=load)
        if challenger is None or trial is None:
            return ours
        try:
            theirs = challenger.decide(embedding, policy, seed, load=load)
            return contest(ours, theirs, champion, challenger, embedding, trial.share)
        except Exception as error:  # nothing that is only tried out may fail a request
            logger.exception("the version on trial cannot decide", extra={"version": trial.version})
            why = f"{type(error).__name__}: {error}"
            with self._lock:
                if self._serving is now:
                    self._serving = now._replace(challenger=None, error=why)
            return defaulted(ours, trial.version, trial.share, why)

    def _tried(self, champion: Gate, trial: Trial) -> Serving:
        if trial.version == champion.version:
            return Serving(champion, trial, error="it is champion; it cannot be tried against itself")
        try:
            return Serving(champion, trial, self._load(trial.version))
        except (CheckpointError, NotFound) as error:
            logger.error("the version on trial cannot be loaded", extra={"version": trial.version, "error": str(error)})
            return Serving(champion, trial, error=str(error))

    def _rerostered(self, now: Serving) -> Serving:
        embed, challenger = self.encoders.embed_texts, now.challenger
        return now._replace(
            champion=now.champion.with_roster(self.roster, embed),
            challenger=challenger and challenger.with_roster(self.roster, embed),
        )

    def _gate(self, version: int, now: Serving) -> Gate:
        for gate in (now.champion, now.challenger):
            if gate is not None and gate.version == version:
                return gate
        with self._lock:
            if version not in self._others:
                gate = self._load(version)
                while len(self._others) >= OTHER_VERSIONS:
                    self._others.pop(next(iter(self._others)))
                self._others[version] = gate
            return self._others[version]

    def _load(self, version: int) -> Gate:
        if self._cards is None:
            raise NotFound(f"gate version {version} cannot be loaded before the roster is known")
        if version == 0:
            return self._cards
        learned = self.registry.load(version, self.encoders.revisions)
        gate = self._cards.with_learned(learned, version)
        for modality in learned.axes:
            self._try(gate, modality)
        return gate

    def _try(self, gate: Gate, modality: Modality) -> None:
        """Raises CheckpointError for a gate that cannot read what the encoders give: it would fail every request."""
        if modality not in self.encoders.revisions:
            return
        if modality not in self._samples:
            asked = ChatRequest("", (Message("user", (SAMPLES[modality],)),))
            self._samples[modality] = self.encoders.embed([asked])[0]
        try:
            sound = bool(np.isfinite(gate.table([self._samples[modality]])).all())
        except ValueError as error:
            raise CheckpointError(
                f"gate version {gate.version} is refused: it was not made for what the {modality} encoder gives "
                f"({error}); serve another version or train again"
            ) from error
        if not sound:
            raise CheckpointError(
                f"gate version {gate.version} is refused: what it predicts is no number; serve another version"
            )
