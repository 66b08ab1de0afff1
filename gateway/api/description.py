"""What the API says of itself (OpenAPI): which key each operation takes, and every status that it can answer with.

FastAPI knows the shapes of bodies and answers. What stands in front of the endpoints (the guard, limits, the one way to
say errors) it does not know, so that is written into its description here, from the guard's own rules.
"""

import re
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from gateway.access.guard import OPEN, needed_for

Json = dict[str, Any]

SCHEME = "key"
METHODS = ("get", "post", "put", "patch", "delete")
ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
RETRY = {"retry-after": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
MEANING = {
    400: "Something in the request is wrong; `param` says where.",
    401: "A key is needed, or the one sent is unknown, expired or revoked.",
    403: "This key's scopes do not cover this; or a web page of another site asks, or a name made to lead here.",
    404: "There is no such thing, or it is another tenant's.",
    409: "Not in this state, or somebody else was faster; the same again would fail again.",
    413: "Too large: the body, a picture's pixels, a recording's seconds.",
    415: "Of a kind that is not taken.",
    422: "Of the right kind, but of no use: cut off, damaged, empty.",
    429: "Too many of these.",
    500: "Something broke here; the log has it under the request's id.",
    502: "The expert failed.",
    503: "Not now: overloaded, starting, or the store is away.",
    504: "Past the deadline.",
    508: "The request goes round in circles between gateways.",
}
ASKING = (404, 413, 415, 422, 502, 504, 508)
# by path; every match counts
STATUSES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r".*", (500,)),
    (r"/(?!health$).*", (503,)),
    (r"/v1/(chat/completions|route|audio/transcriptions)", ASKING),
    (r"/v1/embeddings", (404,)),
    (r"/v1/(feedback|routing)(/.+)?", (404, 422)),
    (r"/v1/(experts|gate)(/.+)?", (404, 409)),
    (r"/v1/models/.+", (404,)),
)
EXAMPLES: dict[str, Json] = {  # what /docs offers to send
    "/v1/chat/completions": {"model": "multimoe", "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    "/v1/route": {"model": "multimoe", "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    "/v1/embeddings": {"model": "multimoe-embed", "input": ["Why is the sky blue?"]},
    "/v1/experts": {
        "name": "echo",
        "backend": "experts.echo:Echo",
        "inputs": ["text"],
        "output": "text",
        "card": {"description": "Says back what was asked."},
    },
}
RATED = {"completion_id": "$response.body#/completion_id"}
NAMED = {"name": "$response.body#/name"}
LINKS = (  # where an answer leads
    ("post /v1/chat/completions", "200", {"completion_id": "$response.body#/id"}, "get /v1/routing/{completion_id}"),
    ("post /v1/feedback", "201", RATED, "get /v1/feedback"),
    ("post /v1/feedback", "201", RATED, "delete /v1/feedback"),
    ("post /v1/experts", "201", NAMED, "get /v1/experts/{name}"),
    ("post /v1/experts", "201", NAMED, "put /v1/experts/{name}/scale"),
    ("post /v1/experts", "201", NAMED, "delete /v1/experts/{name}"),
    ("post /v1/gate/train", "202", {"id": "$response.body#/job_id"}, "get /v1/gate/jobs/{id}"),
)


def describe(app: FastAPI) -> Callable[[], Json]:
    """FastAPI's own description with what the layers in front of it add; made once."""
    made = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            _complete_all(made())  # FastAPI keeps the tree it made, and this changes that one
        return made()

    return openapi


def statuses(method: str, path: str, has_input: bool, has_body: bool) -> set[int]:
    """All refusals and failures that an operation can answer with."""
    found = {status for pattern, those in STATUSES if re.fullmatch(pattern, path) for status in those}
    if needed_for(method.upper(), path) != OPEN:
        found |= {401, 403, 429}
    if method != "get":
        found |= {403}
    if has_input:
        found |= {400}
    if has_body:
        found |= {413, 415}
    return found


def _complete_all(tree: Json) -> None:
    for path, operations in tree["paths"].items():
        for method in operations.keys() & set(METHODS):
            _complete(operations[method], method, path)
    for origin, status, parameters, to in LINKS:
        operation, there = _operation(tree, origin), _operation(tree, to)["operationId"]
        links = operation["responses"][status].setdefault("links", {})
        links[there] = {"operationId": there, "parameters": parameters}
    tree["components"]["securitySchemes"] = {
        SCHEME: {"type": "http", "scheme": "bearer", "description": "`multimoe keys create NAME` makes one."}
    }


def _operation(tree: Json, named: str) -> Json:
    method, path = named.split()
    operation: Json = tree["paths"][path][method]
    return operation


def _complete(operation: Json, method: str, path: str) -> None:
    wanted = needed_for(method.upper(), re.sub(r"\{\w+\}", "x", path))
    operation["security"] = [] if wanted == OPEN else [{SCHEME: [wanted]}]
    body = "requestBody" in operation
    if body and path in EXAMPLES:
        operation["requestBody"]["content"]["application/json"]["example"] = EXAMPLES[path]
    answers = operation["responses"]
    for status in statuses(method, re.sub(r"\{\w+\}", "x", path), body or bool(operation.get("parameters")), body):
        headers = {"headers": RETRY} if status in (429, 503) else {}
        told = {"description": MEANING[status], "content": ERROR, **headers}
        answers[str(status)] = {**told, **answers.get(str(status), {})}
    for wide in ("4XX", "5XX"):
        answers.pop(wide, None)
    operation["responses"] = dict(sorted(answers.items()))
