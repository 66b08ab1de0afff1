"""One retraining as a Ray task: off the request path, with its progress in the store, the result served at once."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import ray

from gateway.ray_cluster import RayCluster
from multimoe.checkpoint import Registry
from multimoe.config import Catalog
from multimoe.embedding import Float
from multimoe.errors import MultimoeError
from multimoe.feedback import FeedbackLog

logger = logging.getLogger(__name__)


@ray.remote(num_cpus=0.1, max_retries=0)
def run_training(catalog: dict[str, Any], job: str) -> None:
    """Every end, good or bad, is written to the job: whoever waits for it learns why."""
    settings = Catalog.model_validate(catalog)
    log = FeedbackLog.open(settings.store_url)
    try:
        log.finish_job(job, "done", result=_train(settings, log, job))
    except MultimoeError as error:
        log.finish_job(job, "failed", error=str(error))
    except Exception:
        logger.exception("retraining failed", extra={"job": job})
        log.finish_job(job, "failed", error="retraining failed; the log of its Ray task has the details")
        raise
    finally:
        log.close()


def _train(settings: Catalog, log: FeedbackLog, job: str) -> dict[str, Any]:
    """Fit and judge here; the cards are embedded by the serving gate, so that no encoder is loaded twice."""
    from multimoe.gate import Gate
    from multimoe.retrain import retrain

    cluster, registry = RayCluster(settings), Registry(settings.gates)
    with asyncio.Runner() as loop:

        def embed_texts(texts: Sequence[str]) -> Float:
            return np.asarray(loop.run(cluster.embed_texts(list(texts))), np.float32)

        manifest = retrain(
            log,
            registry,
            Gate.from_cards(loop.run(cluster.roster()), embed_texts, settings.gate),
            now=datetime.now(UTC),
            seed=0,
            progress=lambda share, message: log.update_job(job, 0.9 * share, message),
        )
        if manifest.promoted:
            log.update_job(job, 0.95, f"putting gate {manifest.version} into service")
            try:
                loop.run(cluster.serve_gate(manifest.version))
            except MultimoeError:
                registry.rollback(datetime.now(UTC))  # what does not serve is no champion
                raise
    return dict(manifest.model_dump(mode="json"))
