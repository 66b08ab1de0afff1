"""The API's door at everyday scale: what `drills.surface` tries at length, and who may use each route there is."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from api_world import World
from drills.row import Row, Scale
from drills.surface import bad_bodies, bad_lines, served_paths, tenants_apart, who_gets_in
from fastapi import FastAPI
from page_world import serve

from gateway.access.guard import OPEN, needed_for
from gateway.page import mount_page
from gateway.page.door import SERVED

RIGHTS = {  # every route there is; one that is not here is one that nobody has thought about
    OPEN: "GET /health, GET /ready",
    "chat": "GET /, GET /docs, GET /docs/x, GET /favicon.ico, GET /openapi.json, GET /version, GET /v1/limits, "
    "GET /v1/models, GET /v1/models/x, GET /v1/experts, GET /v1/experts/x, GET /v1/routing/x, POST /v1/route, "
    "POST /v1/chat/completions, POST /v1/embeddings, POST /v1/audio/transcriptions",
    "rate": "GET /v1/feedback, POST /v1/feedback, DELETE /v1/feedback",
    "admin": "GET /metrics, GET /v1/routing, GET /v1/feedback/stats, GET /v1/feedback/export, POST /v1/experts, "
    "PUT /v1/experts/x, DELETE /v1/experts/x, PUT /v1/experts/x/scale, GET /v1/gate, GET /v1/gate/versions, "
    "GET /v1/gate/versions/1, POST /v1/gate/train, GET /v1/gate/jobs, GET /v1/gate/jobs/x, "
    "GET /v1/gate/jobs/x/events, PUT /v1/gate/aliases/champion, PUT /v1/gate/aliases/canary, "
    "PUT /v1/gate/aliases/shadow, DELETE /v1/gate/aliases/challenger, POST /v1/gate/rollback",
}


@pytest.mark.parametrize("drill", [bad_bodies, bad_lines, who_gets_in, tenants_apart], ids=lambda drill: drill.__name__)
def test_nothing_gets_past_the_door_and_nothing_breaks(drill: Callable[[Scale], Iterator[Row]]) -> None:
    rows = list(drill("quick"))
    assert rows
    assert [row for row in rows if not row.met] == []


def test_each_route_takes_the_right_that_was_meant_and_no_route_was_forgotten(tmp_path: Path) -> None:
    world = World(tmp_path)
    found = {f"{method} {path}": needed_for(method, path) for method, path in served_paths(world.app.routes)}
    heads = {route for route in found if route.startswith("HEAD ")}
    world.log.close()
    meant = {route: right for right, routes in RIGHTS.items() for route in routes.split(", ")}
    assert {route: right for route, right in found.items() if route not in heads} == meant
    assert all(found[route] == found[route.replace("HEAD", "GET")] for route in heads)


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # Gradio's own
def test_of_the_page_nothing_is_served_without_a_key_and_with_one_only_what_it_is_made_of(tmp_path: Path) -> None:
    world = World(tmp_path)
    _, key = world.log.create_key("ann", ["chat"])
    api = serve(world.app)
    app = mount_page(FastAPI(), api.url)
    page = serve(app)
    inside = {path for _, path in served_paths(app.routes) if path.startswith("/ui/")}
    try:
        assert len(inside) > 50
        with httpx.Client(base_url=page.url, timeout=60) as client:
            shut = {path: client.get(path).status_code for path in sorted(inside)}
            assert {path for path, status in shut.items() if status != 401} <= {"/ui/door"}
            assert client.post("/ui/door", data={"key": key}).status_code == 303
            others = sorted(path for path in inside if not SERVED.fullmatch(path.removeprefix("/ui")))
            assert others
            assert {client.get(path).status_code for path in others} == {404}
    finally:
        page.stop()
        api.stop()
        world.log.close()
