"""What every endpoint works with, and how a request's body is read. No endpoint and no rule lives here."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, cast

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from gateway.access.drain import Drain
from gateway.access.guard import Caller
from gateway.access.meter import Meter
from gateway.access.pace import Pace
from gateway.access.quota import Spent
from gateway.access.signing import Signer
from gateway.cluster import Cluster
from gateway.reading.decoding import Decoders
from gateway.reading.fetch import Fetcher
from gateway.reading.wire import read_json
from gateway.records.bulkhead import Bulkhead
from gateway.records.recorder import Recorder
from gateway.records.share import Share
from multimoe.checkpoint import Registry
from multimoe.config import Catalog
from multimoe.embedding import Embedding
from multimoe.feedback import FeedbackLog
from multimoe.feedback.counters import Counters
from multimoe.mixture import Mixture

STORE_SECONDS = 1.5  # that a locked store is waited for
TEACHING = 0.1  # of a gate's time may go to embedding what named experts are asked, so that their ratings teach


@dataclass(frozen=True)
class Services:
    """The product behind the endpoints. `log` blocks, so it is called by `in_store`; so does `registry`."""

    catalog: Catalog
    cluster: Cluster
    log: FeedbackLog
    registry: Registry
    mixture: Mixture
    decoder: Decoders
    fetcher: Fetcher = field(default_factory=Fetcher)
    pace: Pace = field(default_factory=Pace)
    signer: Signer = field(default_factory=Signer)
    drain: Drain = field(default_factory=Drain)
    in_store: Bulkhead = field(default_factory=Bulkhead)
    teaching: Share[Embedding] = field(default_factory=lambda: Share(TEACHING))

    @cached_property
    def recorder(self) -> Recorder:
        return Recorder(self.log)

    @cached_property
    def meter(self) -> Meter:
        return Meter(Counters(self.catalog.store_url))


def open_store(catalog: Catalog) -> FeedbackLog:
    """As a gateway needs it: it tells callers of a lock soon, and starts though the store is away."""
    return FeedbackLog.open(catalog.store_url, timeout_s=STORE_SECONDS, at_once=False)


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


# what endpoints are given comes from coroutines: a plain function FastAPI sends through a worker thread each time


async def _product(request: Request) -> Services:
    return services_of(request)


async def via_of(request: Request) -> tuple[str, ...]:
    """The gateways the request has come through, this one last."""
    return cast(tuple[str, ...], request.scope["via"])


async def request_id_of(request: Request) -> str:
    return str(request.scope.get("request_id", ""))


async def spent_of(request: Request) -> Spent:
    return cast(Spent, request.scope["spent"])


async def caller_of(request: Request) -> Caller:
    return cast(Caller, request.scope["caller"])


Product = Annotated[Services, Depends(_product)]
Via = Annotated[tuple[str, ...], Depends(via_of)]
RequestId = Annotated[str, Depends(request_id_of)]
Asking = Annotated[Caller, Depends(caller_of)]
Spending = Annotated[Spent, Depends(spent_of)]


class StrictRequest(Request):
    """Reads JSON as `wire.read_json` does, instead of as Python's json does (which takes NaN and overflows)."""

    async def json(self) -> Any:
        return read_json(await self.body(), services_of(self).catalog.limits.json_depth)


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly
