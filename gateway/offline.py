"""The gate's versions while no product runs: the same verbs as the client's, on the same store and folders.

What is trained, promoted or rolled back here serves from the next start on.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from multimoe.config import Catalog
from multimoe.errors import CheckpointError

Json = dict[str, Any]


class OfflineGates:
    """Versions as JSON, as the API gives them: the manifest, with the aliases that point at it."""

    def __init__(self, catalog: Catalog) -> None:
        from multimoe.checkpoint import Registry

        self.catalog = catalog
        self.registry = Registry(catalog.gates)

    def versions(self) -> list[Json]:
        """Newest first; a damaged one says so as its `reason`."""
        return [self._told(version) for version in reversed(self.registry.versions())]

    def gate(self) -> Json:
        return self._told(self.registry.champion())

    def promote(self, version: int) -> Json:
        """Raises NotFound, CheckpointError."""
        self.registry.promote(version, datetime.now(UTC))
        return self.gate()

    def rollback(self) -> Json:
        """Raises Conflict where there is no earlier champion."""
        self.registry.rollback(datetime.now(UTC))
        return self.gate()

    def retrain(self, progress: Callable[[float, str], None]) -> Json:
        """One whole retraining in this process; its manifest. Raises TooLittleData."""
        from multimoe.encoder import Encoders
        from multimoe.feedback import FeedbackLog
        from multimoe.gate import Gate
        from multimoe.retrain import retrain
        from multimoe.weights import Weights

        settings = self.catalog
        progress(0.0, "reading the cards")
        text = {m: encoder for m, encoder in settings.gate.encoders.items() if m == "text"}  # cards are only words
        encoders = Encoders.load(settings.gate.model_copy(update={"encoders": text}), Weights(settings.weights).find)
        cards = Gate.from_cards(settings.experts, encoders.embed_texts, settings.gate)
        log = FeedbackLog.open(settings.store_url)
        try:
            manifest = retrain(log, self.registry, cards, now=datetime.now(UTC), seed=0, progress=progress)
        finally:
            log.close()
        return dict(manifest.model_dump(mode="json"))

    def _told(self, version: int) -> Json:
        aliases = ["champion"] if version == self.registry.champion() else []
        try:
            return self.registry.manifest(version).model_dump(mode="json") | {"aliases": aliases}
        except CheckpointError as error:
            return {"version": version, "aliases": aliases, "promoted": False, "reason": error.message}
