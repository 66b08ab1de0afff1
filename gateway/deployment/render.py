"""The catalog as the declarative configuration Ray Serve deploys: one application an expert, plus gate, API and page.

Pure functions from settings to plain data: what they return can be written to a file that `serve deploy` takes.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from gateway.deployment.serving import (
    EXPERT,
    GATE,
    GATE_APP,
    GATEWAY,
    GATEWAY_APP,
    MANY_REQUESTS,
    PAGE_APP,
    expert_app_name,
)
from gateway.deployment.store_address import without_password
from gateway.problems import RETRY_SECONDS
from multimoe.config import Catalog, Deployment, ExpertSpec
from multimoe.journal import Trial

Config = dict[str, Any]
VLLM = "experts.vllm_chat:VLLM"


GATE_SECONDS = 10.0  # that a decision may take
HEALTH_SECONDS = 2.0  # between two checks: so long nobody misses a replica that died
HAND_ON_SECONDS = 0.05  # between two looks whether a replica has room for who waits: Ray's 0.5 idles away a third of it
FOR_A_REQUEST = 1.5  # of the longest request: so long a replica that is replaced may go on with what it answers


def serve_config(
    catalog: Catalog, gate_version: int, experts: Sequence[ExpertSpec], trial: Trial | None = None
) -> Config:
    """Gate, API, page and `experts`, as `ServeDeploySchema` takes it. A password of the store is not in it."""
    settings = {"catalog": without_password(catalog).model_dump(mode="json")}
    gate = {
        "name": GATE,
        **_scaling(catalog.gate.serve, GATE_SECONDS),
        "user_config": gate_user_config(gate_version, experts, trial),
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": catalog.server.host, "port": catalog.server.port},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": [
            _app(GATE_APP, "gateway.deployment.serving:gate_app", settings, None, [gate]),
            _app(GATEWAY_APP, "gateway.deployment.serving:gateway_app", settings, "/", [_gateway(catalog)]),
            _app(PAGE_APP, "gateway.deployment.serving:page_app", settings, "/ui", []),
            *(expert_application(spec, str(catalog.weights)) for spec in experts),
        ],
    }


def expert_application(spec: ExpertSpec, weights: str) -> Config:
    """How it is scaled stays out of `args`, which restart replicas when they change."""
    args = {"spec": spec.model_dump(mode="json", exclude={"serve"}), "weights": weights}
    deployment = {
        "name": EXPERT,
        **_scaling(spec.serve, spec.timeout_s),
        **(_workers(spec) if spec.backend == VLLM else {}),
    }
    return _app(expert_app_name(spec.name), "gateway.deployment.serving:expert_app", args, None, [deployment])


def _workers(spec: ExpertSpec) -> Config:
    """vLLM's workers are processes of their own: a replica leaves its GPUs to them, and all have room side by side."""
    actor, engine = spec.serve.ray_actor_options, spec.options.get("engine_kwargs", {})
    worker = {"GPU": actor.num_gpus} if actor.num_gpus else {"CPU": 1.0}
    own = {"CPU": actor.num_cpus, "memory": float(actor.memory or 0), **actor.resources}
    first = {name: amount for name in {**own, **worker} if (amount := own.get(name, 0.0) + worker.get(name, 0.0))}
    count = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
    return {
        "ray_actor_options": actor.model_copy(update={"num_gpus": 0.0}).model_dump(exclude_none=True),
        "placement_group_bundles": [first, *[worker] * (count - 1)],
    }


def gate_user_config(version: int, experts: Sequence[ExpertSpec], trial: Trial | None) -> Config:
    """What a running gate takes over in place. `revision` changes whenever anything of it does."""
    config = {
        "version": version,
        "trial": trial and trial.model_dump(mode="json"),
        "experts": [spec.model_dump(mode="json") for spec in experts],
    }
    revision = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    return {**config, "revision": revision}


def _gateway(catalog: Catalog) -> Config:
    return {
        "name": GATEWAY,
        "num_replicas": catalog.server.replicas,
        "max_ongoing_requests": MANY_REQUESTS,
        "max_queued_requests": MANY_REQUESTS,  # in each proxy, when a gateway cannot even say no
        "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_SECONDS},
        "ray_actor_options": {"num_cpus": 0.1},
        **_replaced(catalog.limits.request_seconds),
    }


def _replaced(seconds: float) -> Config:
    """How a replica goes and another comes, where an answer takes up to `seconds`."""
    return {
        "max_surge_percent": 100,  # an upgrade starts the new replica before it stops the old one
        "graceful_shutdown_timeout_s": seconds * FOR_A_REQUEST,
        "health_check_period_s": HEALTH_SECONDS,
    }


def _scaling(serve: Deployment, seconds: float) -> Config:
    actor = serve.ray_actor_options.model_dump(exclude_none=True)
    scaled: Config = {
        "max_ongoing_requests": serve.max_ongoing_requests,
        "max_queued_requests": serve.max_queued_requests,
        "request_router_config": {"max_backoff_s": HAND_ON_SECONDS},
        "ray_actor_options": actor,
        **_replaced(seconds),
    }
    if serve.num_replicas is not None:
        return {**scaled, "num_replicas": serve.num_replicas}
    return {**scaled, "autoscaling_config": serve.autoscaling_config.model_dump(exclude_none=True)}


def _app(name: str, path: str, args: Config, prefix: str | None, deployments: list[Config]) -> Config:
    return {"name": name, "import_path": path, "args": args, "route_prefix": prefix, "deployments": deployments}
