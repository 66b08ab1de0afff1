"""One retraining from its job to the version that serves: fit, judge, take the first step, and write how it ended.

Whoever lost the job meanwhile (another one took its silence for death) takes no step with what it made.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from gateway.change import stages
from gateway.change.gate_versions import kept, told_of
from gateway.cluster import Cluster
from multimoe.checkpoint import Registry
from multimoe.config import Catalog
from multimoe.embedding import Float
from multimoe.errors import Conflict, MultimoeError, Unavailable
from multimoe.feedback import FeedbackLog

logger = logging.getLogger(__name__)

TAKING = 0.95  # of the way: the version is there and is being put into service


def run(settings: Catalog, cluster: Cluster, log: FeedbackLog, job: str) -> None:
    """Every end, good or bad, is written to the job: whoever waits for it learns why."""
    try:
        _end(log, job, "done", result=_train(settings, cluster, log, job))
    except MultimoeError as error:
        _end(log, job, "failed", error=str(error))
    except Exception:
        logger.exception("retraining failed", extra={"job": job})
        _end(log, job, "failed", error="retraining failed; the log of its Ray task has the details")
        raise


def _end(
    log: FeedbackLog,
    job: str,
    status: Literal["done", "failed"],
    result: dict[str, Any] | None = None,
    error: str | None = None,
) -> None:
    try:
        log.finish_job(job, status, result, error)
    except Conflict as lost:
        logger.warning("a retraining ended after it had lost its job: %s", lost, extra={"job": job})


def _train(settings: Catalog, cluster: Cluster, log: FeedbackLog, job: str) -> dict[str, Any]:
    """Fit and judge here; what is to be embedded the serving gate embeds, so that no encoder is loaded twice."""
    from multimoe.gate import Gate
    from multimoe.golden import golden_of
    from multimoe.retrain import retrain

    registry = Registry(settings.gates)
    with asyncio.Runner() as loop:

        def embed_texts(texts: Sequence[str]) -> Float:
            return np.asarray(loop.run(cluster.embed_texts(list(texts))), np.float32)

        judged = registry.standing()
        manifest = retrain(
            log,
            registry,
            Gate.from_cards(loop.run(cluster.roster()), embed_texts, settings.gate),
            now=datetime.now(UTC),
            seed=0,
            progress=lambda share, message: log.update_job(job, 0.9 * share, message),
            golden=golden_of(settings, lambda request: loop.run(cluster.embed(request))),
        )
        standing = registry.standing()

        def still() -> None:
            log.update_job(job, TAKING, f"putting gate {manifest.version} into service")

        try:
            if step := stages.after_training(manifest, judged, standing, settings.gate.rollout, datetime.now(UTC)):
                loop.run(stages.take(cluster, registry, log, step, standing, still))
        except (Conflict, Unavailable) as error:  # the version is there all the same
            return kept(registry, manifest.version, error)
    return told_of(registry, manifest.version)
