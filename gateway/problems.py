"""Errors as OpenAI clients understand them: a status, headers and {"error": {message, type, param, code}}.

One table from our error classes to statuses; everything else that can go wrong in a web framework (no such route, a
body of the wrong shape, a crash) is turned into the same shape here, so that no other one ever reaches a client.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match

from multimoe import errors

RETRY_SECONDS = 2
# first match wins, so a class stands above its parents
STATUSES: tuple[tuple[type[errors.MultimoeError], int], ...] = (
    (errors.UnknownModel, 404),
    (errors.UnsupportedMedia, 415),
    (errors.TooLarge, 413),
    (errors.BadMedia, 422),
    (errors.BadInput, 400),
    (errors.BadConfig, 400),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.CheckpointError, 409),
    (errors.TooLittleData, 409),
    (errors.LoopDetected, 508),
    (errors.ExpertTimeout, 504),
    (errors.ExpertFailed, 502),
    (errors.Unavailable, 503),
    (errors.WeightsError, 503),
)
# Although the class alone would say otherwise: what OpenAI answers.
BY_CODE = {"url_not_allowed": 400, "context_length_exceeded": 400, "rate_limit_exceeded": 429}
TYPES = {403: "permission_error", 409: "conflict_error", 429: "rate_limit_error"}
PARTS = {"text", "image_url", "input_audio", "audio_url", "refusal"}  # tags that stand in a validation path


@dataclass(frozen=True)
class Problem:
    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JSONResponse(self.body, self.status, {**self.headers, "x-multimoe-path": "error"})


def problem(error: Exception, request_id: str) -> Problem:
    """What a client is told of any exception. Anything not raised on purpose is a 500 that gives nothing away."""
    if isinstance(error, HTTPException) and isinstance(error.__cause__, errors.MultimoeError):
        return problem(error.__cause__, request_id)  # FastAPI wraps what is raised while a body is read
    if isinstance(error, errors.MultimoeError):
        return _ours(error, request_id)
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail), "http_error", headers=error.headers or {})
    return _crash(request_id)


def _ours(error: errors.MultimoeError, request_id: str) -> Problem:
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    status = BY_CODE.get(error.code, status)
    if status == 500:
        return _crash(request_id)
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(RETRY_SECONDS)
    if status in (409, 508):
        headers["x-should-retry"] = "false"  # the SDKs would retry a conflict or a loop, which ends it no sooner
    return Problem(status, error.message, error.code, error.param, headers)


def _crash(request_id: str) -> Problem:
    return Problem(500, f"something broke here; the server's log has it under request {request_id}", "internal_error")


def _invalid(mistakes: Sequence[Any]) -> Problem:
    """The first mistake of a body, query or path, with its place as `messages[0].content[1].type`."""
    first = mistakes[0]
    param = path_of(first["loc"])
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}", "invalid_json")
    if not param and first["type"] == "value_error":
        return Problem(400, str(first["msg"]).removeprefix("Value error, "), "invalid_value")
    if not param:
        return Problem(400, "the body must be a JSON object, sent as content-type: application/json", "invalid_json")
    if first["type"] == "missing":
        return Problem(400, f"{param} is missing; {_more(mistakes)}", "missing_required_parameter", param)
    if first["type"] == "union_tag_invalid":
        kinds = ", ".join(sorted(PARTS - {"refusal"}))
        return Problem(400, f"{param}: no such kind of part; send {kinds}", "invalid_value", f"{param}.type")
    if first["type"] == "value_error":  # a sentence of our own, which says what it got
        return Problem(400, f"{param}: {str(first['msg']).removeprefix('Value error, ')}", "invalid_value", param)
    return Problem(400, f"{param}: {first['msg']} (got {reprlib.repr(first['input'])})", "invalid_value", param)


def _more(mistakes: Sequence[Any]) -> str:
    missing = [path_of(m["loc"]) or "body" for m in mistakes if m["type"] == "missing"]
    return f"send {', '.join(missing[:8])}"


def path_of(steps: Sequence[int | str]) -> str:
    """("body", "messages", 0, "content", 1, "text", "text") -> "messages[0].content[1].text"."""
    path = ""
    previous: int | str = ""
    for depth, step in enumerate(steps[1:]):
        tag = isinstance(previous, int) and step in PARTS and depth > 0
        if isinstance(step, int):
            path += f"[{step}]"
        elif not tag and "[" not in step and "-" not in step:
            path += f".{step}" if path else step
        previous = step
    return path


async def refuse(request: Request, error: Exception) -> Response:
    """FastAPI's exception handler for everything it catches."""
    found = problem(error, request.scope.get("request_id", ""))
    if isinstance(error, HTTPException) and found.code == "http_error":
        found = _of_the_framework(request, found)
    return found.response()


def _of_the_framework(request: Request, found: Problem) -> Problem:
    where = f"{request.method} {request.scope['path'][:200]}"  # request.url would believe the Host header
    if found.status == 404:
        return Problem(404, f"there is nothing at {where}; /docs lists what there is", "unknown_url")
    if found.status == 405:
        allowed = ", ".join(methods_at(request)) or Headers(dict(found.headers)).get("allow", "another method")
        message = f"{where} is not possible; allowed: {allowed}"
        return Problem(405, message, "method_not_allowed", headers={"allow": allowed})
    if found.status == 400:
        return Problem(400, "the body cannot be read; send it whole and well-formed", "invalid_body")
    return found


def methods_at(request: Request) -> list[str]:
    """All that the address answers to; the framework tells only those of the first route that has the path.

    Of paths that fit, the longer pattern says more: what stands under `/v1/experts/NAME/scale` is no expert.
    """
    scope = {**request.scope, "path_params": {}}
    fitting = [route for route in _flat(request.app.routes) if route.matches(scope)[0] is not Match.NONE]
    paths = [getattr(route, "path", "").replace(":path}", "}") for route in fitting]
    closest = max(paths, key=len, default="")
    here = [route for route, path in zip(fitting, paths, strict=True) if path == closest]
    found = {method for route in here for method in getattr(route, "methods", None) or ()}
    return sorted(found)


def _flat(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """FastAPI keeps the routes of a router that was included behind it."""
    return [one for route in routes for one in getattr(getattr(route, "original_router", None), "routes", [route])]
