"""The Serve deployments, one application each: the gate, every expert, the REST gateway and the page.

Builders take plain settings, so that the declarative Serve configuration can name them as `import_path`. Nothing heavy
is imported here: a replica imports its own expert, and only that, when it starts.
"""

import asyncio
import math
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

from gateway import logs
from gateway.cluster import GateState
from gateway.deployment.perimeter import listen_with_the_node
from gateway.deployment.store_address import whole
from multimoe.backends import load_expert
from multimoe.config import Catalog, ExpertSpec
from multimoe.decision import Policy
from multimoe.errors import MultimoeError
from multimoe.expert import Delta, NextToken, token_expert
from multimoe.inspection import inspected
from multimoe.journal import Trial
from multimoe.messages import ChatRequest
from multimoe.reply import Routed
from multimoe.weights import Weights

GATE_APP, GATEWAY_APP, PAGE_APP = "gate", "gateway", "page"
GATE, EXPERT, GATEWAY, PAGE = "Gate", "Expert", "Gateway", "Page"
# more than a gateway reads, keeps waiting and has under way, so that it is the one to say no and to say that it lives;
# and an open page holds a request for as long as its tab
MANY_REQUESTS = 1024


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
        listen_with_the_node()
        logs.start(None, logs.secrets_in(os.environ))
        self.expert = load_expert(ExpertSpec.model_validate(spec), Weights(Path(weights)).find)

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta | MultimoeError]:
        """A failure in our own words comes as the last item: one that is raised, Serve would write into Ray's logs."""
        until = None if request.seconds == math.inf else asyncio.get_running_loop().time() + request.seconds
        answer: Any = inspected(self.expert.answer(request), self.expert.spec, request)
        try:
            async with aclosing(answer):  # who hangs up ends the work at once
                while True:
                    # a gateway that died hangs up on nobody: what it no longer waits for ends by itself
                    async with asyncio.timeout_at(until):
                        delta = await anext(answer, None)
                    if delta is None:
                        return
                    yield delta
        except MultimoeError as error:
            yield error

    async def check_health(self) -> None:
        await self.expert.check_health()

    async def next_tokens(self, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        return await token_expert(self.expert).next_tokens(request, written, top)


@serve.deployment(name=GATE)
class GateReplica:
    """Embeds, decides and swaps versions, one after the other in a worker thread; `user_config` names what serves."""

    def __init__(self, catalog: dict[str, Any]) -> None:
        from gateway.deployment.gate_service import GateService

        listen_with_the_node()
        settings = Catalog.model_validate(catalog)
        _log_to(settings, GATE_APP)
        self.service = GateService(settings.gate, settings.gates, Weights(settings.weights).find)
        self.thread = ThreadPoolExecutor(1, "gate")
        self.revision = ""

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Raises nothing on a version that cannot be loaded: the one before it goes on serving."""
        from gateway.deployment.gate_service import logger

        try:
            experts = [ExpertSpec.model_validate(spec) for spec in user_config["experts"]]
            trial = user_config["trial"] and Trial.model_validate(user_config["trial"])
            await self._in_thread(self.service.configure, user_config["version"], experts, trial)
        except MultimoeError as error:
            logger.error("gate version refused", extra={"version": user_config["version"], "error": str(error)})
        self.revision = user_config["revision"]

    async def decide(self, request: ChatRequest, policy: Policy, load: dict[str, float]) -> tuple[Routed, str]:
        """The decision, and the revision of the roster it was made from."""
        revision = self.revision  # of before: a caller that knows only a later one looks the roster up again
        return await self._in_thread(self.service.decide, request, policy, load), revision

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        vectors = await self._in_thread(self.service.encoders.embed_texts, texts)
        return [[float(x) for x in vector] for vector in vectors]

    async def embed(self, requests: list[ChatRequest]) -> list[bytes]:
        """As `Embedding.to_bytes` writes them."""
        return [embedding.to_bytes() for embedding in await self._in_thread(self.service.encoders.embed, requests)]

    async def roster(self) -> tuple[tuple[ExpertSpec, ...], str]:
        return self.service.roster, self.revision

    async def state(self) -> GateState:
        return self.service.state()

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *args)


def expert_app(args: ExpertArgs) -> Application:
    return _bind(ExpertReplica, args.spec, args.weights)


def gate_app(args: CatalogArgs) -> Application:
    return _bind(GateReplica, args.catalog)


def gateway_app(args: CatalogArgs) -> Application:
    def build() -> FastAPI:
        from gateway.access.signing import Signer
        from gateway.api.app import Services, build_api
        from gateway.deployment.ray_cluster import RayCluster
        from gateway.reading.decoding import Decoders
        from gateway.reading.fetch import Fetcher
        from gateway.services import open_store
        from multimoe.checkpoint import Registry
        from multimoe.mixture import Mixture

        listen_with_the_node()
        catalog = whole(Catalog.model_validate(args.catalog))
        _log_to(catalog, GATEWAY_APP)
        log = open_store(catalog)
        cluster = RayCluster(catalog, log=log)
        services = Services(
            catalog=catalog,
            cluster=cluster,
            log=log,
            registry=Registry(catalog.gates),
            mixture=Mixture(cluster, cluster, faults=catalog.faults, notice=cluster.faulted),
            decoder=Decoders(catalog.limits),
            fetcher=Fetcher(catalog.media),
            signer=Signer.of(catalog.home),
        )
        return build_api(services, echo_request_id=False)  # Serve adds it to every response itself

    @serve.deployment(name=GATEWAY, max_ongoing_requests=MANY_REQUESTS, ray_actor_options={"num_cpus": 0.1})
    @serve.ingress(build)
    class Gateway:
        async def under_way(self) -> int:
            """How many requests are being answered here."""
            return int(self._services().drain.under_way)

        async def drain(self) -> int:
            """The same, and takes no new ones from now on."""
            return int(self._services().drain.begin())

        def _services(self) -> Any:
            return self._asgi_app.state.services  # type: ignore[attr-defined]  # Serve's decorator adds it

    return _bind(Gateway)


def page_app(args: CatalogArgs) -> Application:
    def build() -> FastAPI:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from gateway.page import mount_page

        listen_with_the_node()
        catalog = Catalog.model_validate(args.catalog)
        _log_to(catalog, PAGE_APP)
        return mount_page(FastAPI(), catalog.server.url, path="/")

    # one replica: Gradio keeps a session's state in the process that began it
    @serve.deployment(name=PAGE, max_ongoing_requests=MANY_REQUESTS, ray_actor_options={"num_cpus": 0.1})
    @serve.ingress(build)
    class Page:
        pass

    return _bind(Page)


def _log_to(catalog: Catalog, name: str) -> None:
    logs.start(catalog.home / logs.FOLDER / f"{name}.jsonl", logs.secrets_in(os.environ, catalog.store_url))


def _bind(deployment: Any, *args: Any) -> Application:
    bound: Application = deployment.bind(*args)  # Serve's decorators hide from the type checker what they return
    return bound
