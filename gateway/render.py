"""The catalog as the declarative configuration Ray Serve deploys: one application an expert, plus gate, API and page.

Pure functions from settings to plain data: what they return can be written to a file that `serve deploy` takes.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from gateway.serving import EXPERT, GATE, GATE_APP, GATEWAY_APP, PAGE_APP, expert_app_name
from multimoe.config import Catalog, Deployment, ExpertSpec

Config = dict[str, Any]


def serve_config(catalog: Catalog, gate_version: int, experts: Sequence[ExpertSpec]) -> Config:
    """Gate, API, page and `experts`, as `ServeDeploySchema` takes it."""
    settings = {"catalog": catalog.model_dump(mode="json")}
    gate = {
        "name": GATE,
        **_scaling(catalog.gate.serve),
        "user_config": gate_user_config(gate_version, experts),
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": catalog.server.host, "port": catalog.server.port},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": [
            _app(GATE_APP, "gateway.serving:gate_app", settings, None, [gate]),
            _app(GATEWAY_APP, "gateway.serving:gateway_app", settings, "/", []),
            _app(PAGE_APP, "gateway.serving:page_app", settings, "/ui", []),
            *(expert_application(spec, str(catalog.weights)) for spec in experts),
        ],
    }


def expert_application(spec: ExpertSpec, weights: str) -> Config:
    """How it is scaled stays out of `args`, which restart replicas when they change."""
    args = {"spec": spec.model_dump(mode="json", exclude={"serve"}), "weights": weights}
    deployment = {"name": EXPERT, **_scaling(spec.serve)}
    return _app(expert_app_name(spec.name), "gateway.serving:expert_app", args, None, [deployment])


def gate_user_config(version: int, experts: Sequence[ExpertSpec]) -> Config:
    """What a running gate takes over in place. `revision` changes whenever anything of it does."""
    config = {"version": version, "experts": [spec.model_dump(mode="json") for spec in experts]}
    revision = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    return {**config, "revision": revision}


def _scaling(serve: Deployment) -> Config:
    actor = serve.ray_actor_options.model_dump(exclude_none=True)
    scaled: Config = {
        "max_ongoing_requests": serve.max_ongoing_requests,
        "max_queued_requests": serve.max_queued_requests,
        "ray_actor_options": actor,
        "max_surge_percent": 100,  # an upgrade starts the new replica before it stops the old one
    }
    if serve.num_replicas is not None:
        return {**scaled, "num_replicas": serve.num_replicas}
    return {**scaled, "autoscaling_config": serve.autoscaling_config.model_dump(exclude_none=True)}


def _app(name: str, path: str, args: Config, prefix: str | None, deployments: list[Config]) -> Config:
    return {"name": name, "import_path": path, "args": args, "route_prefix": prefix, "deployments": deployments}
