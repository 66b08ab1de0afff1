"""The Serve deployments, one application each: the gate, every expert, the REST gateway and the page.

Builders take plain settings, so that the declarative Serve configuration can name them as `import_path`. Nothing heavy
is imported here: a replica imports its own expert, and only that, when it starts.
"""

import os
import pkgutil
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

from multimoe.config import Catalog, ExpertSpec
from multimoe.decision import Policy
from multimoe.expert import Delta, Expert
from multimoe.messages import ChatRequest
from multimoe.reply import Routed
from multimoe.weights import Weights

GATE_APP, GATEWAY_APP, PAGE_APP = "gate", "gateway", "page"
GATE, EXPERT, GATEWAY, PAGE = "Gate", "Expert", "Gateway", "Page"
MANY_REQUESTS = 512  # a gateway replica only waits; an open page holds a request for as long as its tab


class ExpertArgs(BaseModel):
    spec: dict[str, Any]
    weights: str


class CatalogArgs(BaseModel):
    catalog: dict[str, Any]


def expert_app_name(expert: str) -> str:
    return f"expert-{expert}"


@serve.deployment(name=EXPERT)
class ExpertReplica:
    """One replica of one expert, whatever its backend."""

    def __init__(self, spec: dict[str, Any], weights: str) -> None:
        self.expert = load_expert(ExpertSpec.model_validate(spec), Path(weights))

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        async for delta in self.expert.answer(request):
            yield delta


@serve.deployment(name=GATE)
class GateReplica:
    """Embeds and decides, one request at a time in a worker thread; `user_config` names version and roster."""

    def __init__(self, catalog: dict[str, Any]) -> None:
        from gateway.gate_service import GateService

        settings = Catalog.model_validate(catalog)
        self.service = GateService(settings.gate, settings.gates, Weights(settings.weights).find)
        self.thread = ThreadPoolExecutor(1, "gate")
        self.revision = ""

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Raises nothing on a version that cannot be loaded: the one before it goes on serving."""
        from gateway.gate_service import logger
        from multimoe.errors import MultimoeError

        try:
            experts = [ExpertSpec.model_validate(spec) for spec in user_config["experts"]]
            self.service.configure(user_config["version"], experts)
        except MultimoeError as error:
            logger.error("gate version refused", extra={"version": user_config["version"], "error": str(error)})
        self.revision = user_config["revision"]

    async def decide(self, request: ChatRequest, policy: Policy) -> tuple[Routed, str]:
        """The decision, and the revision of the roster it was made from."""
        revision = self.revision  # of before: a caller that knows only a later one looks the roster up again
        return await self._in_thread(self.service.decide, request, policy), revision

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        vectors = await self._in_thread(self.service.encoders.embed_texts, texts)
        return [[float(x) for x in vector] for vector in vectors]

    async def roster(self) -> tuple[tuple[ExpertSpec, ...], str]:
        return self.service.roster, self.revision

    async def state(self) -> dict[str, Any]:
        gate = self.service.serving
        return {"version": gate.version, "encoder_revisions": dict(self.service.encoders.revisions)}

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *args)


def load_expert(spec: ExpertSpec, weights: Path) -> Expert:
    """The expert's class, imported by its name in the catalog, with its weights loaded."""
    backend = pkgutil.resolve_name(spec.backend)
    expert: Expert = backend(spec, Weights(weights).find)
    return expert


def expert_app(args: ExpertArgs) -> Application:
    return _bind(ExpertReplica, args.spec, args.weights)


def gate_app(args: CatalogArgs) -> Application:
    return _bind(GateReplica, args.catalog)


def gateway_app(args: CatalogArgs) -> Application:
    def build() -> FastAPI:
        from gateway.api import Services, build_api
        from gateway.ray_cluster import RayCluster
        from multimoe.checkpoint import Registry
        from multimoe.feedback import FeedbackLog
        from multimoe.mixture import Mixture

        catalog = Catalog.model_validate(args.catalog)
        cluster = RayCluster(catalog)
        services = Services(
            catalog=catalog,
            cluster=cluster,
            log=FeedbackLog.open(catalog.store_url),
            registry=Registry(catalog.gates),
            mixture=Mixture(cluster, cluster),
        )
        return build_api(services, echo_request_id=False)  # Serve adds it to every response itself

    @serve.deployment(name=GATEWAY, max_ongoing_requests=MANY_REQUESTS, ray_actor_options={"num_cpus": 0.1})
    @serve.ingress(build)
    class Gateway:
        pass

    return _bind(Gateway)


def page_app(args: CatalogArgs) -> Application:
    def build() -> FastAPI:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from gateway.page import mount_page

        return mount_page(FastAPI(), Catalog.model_validate(args.catalog).server.url, path="/")

    # one replica: Gradio keeps a session's state in the process that began it
    @serve.deployment(name=PAGE, max_ongoing_requests=MANY_REQUESTS, ray_actor_options={"num_cpus": 0.1})
    @serve.ingress(build)
    class Page:
        pass

    return _bind(Page)


def _bind(deployment: Any, *args: Any) -> Application:
    bound: Application = deployment.bind(*args)  # Serve's decorators hide from the type checker what they return
    return bound
