"""One retraining as a Ray task: off the request path, with its progress in the store, the result served at once."""

from typing import Any

import ray

from gateway.change import retraining
from gateway.deployment.ray_cluster import RayCluster
from multimoe.config import Catalog
from multimoe.feedback import FeedbackLog


@ray.remote(num_cpus=0.1, max_retries=0)
def run_training(catalog: dict[str, Any], job: str) -> None:
    settings = Catalog.model_validate(catalog)
    with FeedbackLog.open(settings.store_url) as log:
        retraining.run(settings, RayCluster(settings, log=log), log, job)
