"""The gate's versions while no product runs: the same verbs as the client's, on the same store and folders.

What is trained, promoted or rolled back here serves from the next start on.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from multimoe.config import Catalog, ExpertSpec

if TYPE_CHECKING:
    from multimoe.embedding import Embedding
    from multimoe.gate import Gate
    from multimoe.messages import ChatRequest

Json = dict[str, Any]


class OfflineGates:
    """Versions as JSON, as the API gives them: manifest, aliases and stage. Trials are watched once a product runs."""

    def __init__(self, catalog: Catalog) -> None:
        from multimoe.checkpoint import Registry

        self.catalog = catalog
        self.registry = Registry(catalog.gates)

    def versions(self) -> list[Json]:
        """Newest first; a damaged one says so as its `reason`."""
        from gateway.change.gate_versions import told

        return told(self.registry)

    def gate(self) -> Json:
        from gateway.change.gate_versions import told_of, trial_of

        standing = self.registry.standing()
        return told_of(self.registry, standing.champion) | {"challenger": trial_of(standing)}

    def promote(self, version: int) -> Json:
        """Raises NotFound, CheckpointError."""
        from gateway.change.stages import by_hand

        self.registry.take(by_hand("promoted", version, datetime.now(UTC)))
        return self.gate()

    def put_on_trial(self, version: int, share: float) -> Json:
        """As a canary, or in shadow where `share` is 0. Raises NotFound, CheckpointError, Conflict for the champion."""
        from gateway.change.stages import by_hand

        stage: Literal["canary", "shadow"] = "canary" if share else "shadow"
        self.registry.take(by_hand(stage, version, datetime.now(UTC), share))
        return self.gate()

    def withdraw(self) -> Json:
        """Raises Conflict where none is on trial."""
        from gateway.change.stages import withdrawal

        standing = self.registry.standing()
        self.registry.take(withdrawal(standing, datetime.now(UTC)), standing)
        return self.gate()

    def rollback(self) -> Json:
        """Raises Conflict where there is no earlier champion."""
        from gateway.change.stages import rollback

        standing = self.registry.standing()
        self.registry.take(rollback(standing, datetime.now(UTC)), standing)
        return self.gate()

    def retrain(self, progress: Callable[[float, str], None]) -> Json:
        """One whole retraining in this process; the version made. Raises TooLittleData."""
        from gateway.change.gate_versions import kept, told_of
        from gateway.change.stages import after_training
        from multimoe.errors import Conflict
        from multimoe.feedback import FeedbackLog
        from multimoe.golden import golden_of
        from multimoe.retrain import retrain

        settings = self.catalog
        progress(0.0, "reading the cards")
        cards = cards_gate(settings, settings.experts)
        log = FeedbackLog.open(settings.store_url)
        judged = self.registry.standing()
        try:
            manifest = retrain(
                log,
                self.registry,
                cards,
                now=datetime.now(UTC),
                seed=0,
                progress=progress,
                golden=golden_of(settings, _by_encoders(settings)),
            )
        finally:
            log.close()
        standing = self.registry.standing()
        try:
            if step := after_training(manifest, judged, standing, settings.gate.rollout, datetime.now(UTC)):
                self.registry.take(step, standing)
        except Conflict as error:  # the version is there all the same
            return kept(self.registry, manifest.version, error)
        return told_of(self.registry, manifest.version)


def cards_gate(catalog: Catalog, experts: Sequence[ExpertSpec]) -> "Gate":
    """The gate over `experts` before any rating. Cards are only words, so only the text encoder is loaded."""
    from multimoe.encoder import Encoders
    from multimoe.gate import Gate
    from multimoe.weights import Weights

    text = {m: encoder for m, encoder in catalog.gate.encoders.items() if m == "text"}
    encoders = Encoders.load(catalog.gate.model_copy(update={"encoders": text}), Weights(catalog.weights).find)
    return Gate.from_cards(experts, encoders.embed_texts, catalog.gate)


def _by_encoders(catalog: Catalog) -> "Callable[[ChatRequest], Embedding]":
    """Embeds requests of any kind; the encoders are loaded for the first of them."""
    from multimoe.encoder import Encoders
    from multimoe.weights import Weights

    @cache
    def encoders() -> Encoders:
        return Encoders.load(catalog.gate, Weights(catalog.weights).find)

    return lambda request: encoders().embed([request])[0]
