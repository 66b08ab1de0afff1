"""What every endpoint works with, and how a request's body is read. No endpoint and no rule lives here."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from gateway.cluster import Cluster
from gateway.wire import read_json
from multimoe.checkpoint import Registry
from multimoe.config import Catalog
from multimoe.feedback import FeedbackLog
from multimoe.mixture import Mixture


@dataclass(frozen=True)
class Services:
    """The product behind the endpoints. `log` and `registry` block, so they are called in worker threads."""

    catalog: Catalog
    cluster: Cluster
    log: FeedbackLog
    registry: Registry
    mixture: Mixture


def services_of(request: Request) -> Services:
    return cast(Services, request.app.state.services)


def request_id_of(request: Request) -> str:
    return str(request.scope.get("request_id", ""))


Product = Annotated[Services, Depends(services_of)]
RequestId = Annotated[str, Depends(request_id_of)]


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
