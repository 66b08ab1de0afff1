"""Who gets in, who does not, and whose answers are whose."""

import asyncio
import itertools
import json
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from api_world import World, said
from starlette.routing import Route
from typer.testing import CliRunner

from gateway.access import guard
from gateway.access.guard import (
    FRESH_SECONDS,
    OPEN,
    WRONG_PER_MINUTE,
    KeyRing,
    is_loopback,
    needed_for,
    refuse_open_house,
)
from gateway.access.signing import Signer
from gateway.deployment.launch import _refuse_other_address
from multimoe.config import Server
from multimoe.errors import BadConfig, BadInput, NotFound, Unavailable
from multimoe.feedback import FeedbackLog, Scope

CHAT = "/v1/chat/completions"
OPEN_PATHS = {"/health", "/ready"}


def bearer(world: World, *scopes: Scope, tenant: str | None = None) -> dict[str, str]:
    _, sent = world.log.create_key("somebody", scopes, tenant)
    return {"authorization": f"Bearer {sent}"}


def paths(world: World) -> list[tuple[str, str]]:
    """Method and path of everything the API answers, parameters filled in."""
    nested = [getattr(route, "original_router", route) for route in world.app.routes]
    routes = [route for one in nested for route in getattr(one, "routes", [one])]
    found = [(method, route.path) for route in routes if isinstance(route, Route) for method in route.methods or ()]
    fill = {"{id:path}": "x", "{name:path}": "x", "{version}": "1", "{id}": "x", "{name}": "x", "{completion_id}": "x"}
    for hole, value in fill.items():
        found = [(method, path.replace(hole, value)) for method, path in found]
    assert len(found) > 30
    assert not any("{" in path for _, path in found)
    return found


async def test_without_keys_everybody_on_this_machine_may_do_everything(client):
    assert (await client.post(CHAT, json=said("hello"))).status_code == 200
    assert (await client.get("/v1/feedback/stats")).status_code == 200


@pytest.mark.parametrize(
    ("host", "served"),
    [("127.0.0.1:8000", True), ("localhost", True), ("[::1]:8000", True), ("evil.example:8000", False), ("", False)]
    + [(host, False) for host in ("127.0.0.1.evil.example", "[::1", "127.0.0.1@evil.example")],
)
async def test_without_keys_a_name_that_was_made_to_lead_here_does_not(client, host, served):
    headers = {"host": host, "origin": f"http://{host}"}
    assert (await client.post(CHAT, json=said("hello"), headers=headers)).is_success == served
    assert (await client.get("/v1/models", headers=headers)).is_success == served
    assert (await client.get("/health", headers=headers)).is_success


async def test_with_a_key_any_name_will_do(client, world):
    headers = {"host": "gateway.example"} | bearer(world, "chat")
    assert (await client.get("/v1/models", headers=headers)).is_success


async def test_with_a_key_in_the_store_every_route_asks_for_one(client, world):
    world.log.create_key("ann", ["chat"])
    for method, path in paths(world):
        reply = await client.request(method, path)
        assert (reply.status_code in (401, 429)) == (path not in OPEN_PATHS), (method, path)


@pytest.mark.parametrize(
    "path", ["/v1//models", "/V1/models", "/v1/models/../gate", "/nowhere", "/v1/gate/", "/metrics"]
)
async def test_a_path_that_no_rule_names_takes_an_admin(client, world, path):
    reply = await client.get(path, headers=bearer(world, "chat", "rate"))
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "scope_missing"


async def test_a_scope_opens_what_is_its_own_and_nothing_else(client, world):
    keys: dict[Scope, dict[str, str]] = {scope: bearer(world, scope) for scope in ("chat", "rate", "admin")}
    for method, path in paths(world):
        wanted = needed_for(method, path)
        for scope, headers in keys.items():
            if scope == "admin" and method not in ("GET", "HEAD"):
                continue  # it would be done
            reply = await client.request(method, path, headers=headers)
            refused = reply.status_code in (401, 403)
            assert refused == (wanted not in (OPEN, scope) and scope != "admin"), (method, path, scope)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer x{key}",
        "Bearer mm-' OR 1=1 --",
        "Bearer mm--",
        "Bearer " + "m" * 100_000,
        "Bearer mm-é-ü",
    ],
)
async def test_what_is_not_exactly_a_key_is_none(client, world, authorization):
    _, key = world.log.create_key("ann", ["chat"])
    sent = authorization.format(key=key).encode("latin-1")
    reply = await client.get("/v1/models", headers=[(b"authorization", sent)])
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert key not in reply.text


async def test_two_keys_at_once_are_none_and_a_key_in_the_address_is_none(client, world):
    _, key = world.log.create_key("ann", ["chat"])
    header = (b"authorization", f"Bearer {key}".encode())
    assert (await client.get("/v1/models", headers=[header, header])).status_code == 401
    assert (await client.get("/v1/models", params={"api_key": key})).status_code == 401
    assert (await client.get("/v1/models", headers=[(b"authorization", b"bEaReR " + key.encode())])).status_code == 200


async def test_an_expired_key_and_a_revoked_one_open_nothing(tmp_path):
    moment = datetime.now(UTC)
    with FeedbackLog.open(f"sqlite:///{tmp_path}/log.db", now=lambda: moment - timedelta(hours=2)) as log:
        late, _ = log.create_key("late", ["chat"], expires=moment - timedelta(hours=1))
        gone, _ = log.create_key("gone", ["chat"])
        good, sent = log.create_key("good", ["chat"], expires=moment + timedelta(hours=1))
        log.revoke_key(gone.id)
        holding = {key.id: key.holds(moment) for key in log.all_keys()}
        assert holding == {late.id: False, gone.id: False, good.id: True}
        assert await KeyRing(log, required=False).holder(sent) == good


async def test_a_revoked_key_is_refused_within_seconds(world):
    key, sent = world.log.create_key("ann", ["chat"])
    clock = [0.0]
    ring = KeyRing(world.log, required=False, clock=lambda: clock[0])
    assert await ring.holder(sent)
    world.log.revoke_key(key.id)
    clock[0] += FRESH_SECONDS + 0.1
    assert await ring.holder(sent) is None


async def test_taking_the_last_key_back_lets_nobody_in(client, world):
    key, _ = world.log.create_key("ann", ["chat"])
    world.log.revoke_key(key.id)
    assert (await client.get("/v1/models")).status_code == 401


async def test_while_the_store_is_gone_known_keys_hold_and_unknown_ones_do_not(world, monkeypatch):
    key, sent = world.log.create_key("ann", ["chat"])
    clock = [0.0]
    ring = KeyRing(world.log, required=False, clock=lambda: clock[0])
    assert await ring.holder(sent) == key

    def gone() -> Any:
        raise Unavailable("the store is gone")

    monkeypatch.setattr(world.log, "all_keys", gone)
    clock[0] += 100
    assert await ring.holder(sent) == key
    with pytest.raises(Unavailable):
        await KeyRing(world.log, required=False).needed()


def silent_until(end: threading.Event, read: Callable[[], Any]) -> Callable[[], Any]:
    """As `read`, of a store that says nothing before `end`."""

    def slow() -> Any:
        end.wait(10)
        return read()

    return slow


async def test_after_a_pause_nobody_is_let_in_by_what_was_known_before_it(world, monkeypatch):
    key, sent = world.log.create_key("ann", ["chat"])
    clock, silent = [0.0], threading.Event()
    monkeypatch.setattr(guard, "FIRST_LOOK_SECONDS", 0.3)
    monkeypatch.setattr(guard, "LOOK_SECONDS", 0.05)
    ring = KeyRing(world.log, required=False, clock=lambda: clock[0])
    assert await ring.holder(sent) == key
    monkeypatch.setattr(world.log, "all_keys", silent_until(silent, world.log.all_keys))
    world.log.revoke_key(key.id)
    clock[0] += 3 * 3600
    with pytest.raises(Unavailable, match="in time"):
        await ring.holder(sent)
    silent.set()
    assert ring._looking is not None
    await ring._looking
    assert await ring.holder(sent) is None


async def test_a_store_that_falls_silent_while_requests_come_keeps_no_known_key_out(world, monkeypatch):
    key, sent = world.log.create_key("ann", ["chat"])
    clock, silent = [0.0], threading.Event()
    monkeypatch.setattr(guard, "LOOK_SECONDS", 0.05)
    ring = KeyRing(world.log, required=False, clock=lambda: clock[0])
    assert await ring.holder(sent) == key
    monkeypatch.setattr(world.log, "all_keys", silent_until(silent, world.log.all_keys))
    for _ in range(10):
        clock[0] += FRESH_SECONDS + 1
        assert await ring.holder(sent) == key
    silent.set()


async def test_while_requests_come_none_waits_for_a_look_at_the_keys(world, monkeypatch):
    key, sent = world.log.create_key("ann", ["chat"])
    clock, silent = [0.0], threading.Event()
    monkeypatch.setattr(guard, "LOOK_SECONDS", 9.0)  # longer than a test waits
    ring = KeyRing(world.log, required=False, clock=lambda: clock[0])
    assert await ring.holder(sent) == key
    monkeypatch.setattr(world.log, "all_keys", silent_until(silent, world.log.all_keys))
    async with asyncio.timeout(2):
        for _ in range(4):
            clock[0] += FRESH_SECONDS - 0.5
            assert await ring.holder(sent) == key
            clock[0] += 9.0  # in which the look has not ended
            assert await ring.holder(sent) == key
    assert ring._looking is not None
    silent.set()
    await ring._looking


async def test_wrong_keys_are_slowed_down_and_right_ones_are_not(client, world):
    good = bearer(world, "chat")
    wrong = [await client.get("/v1/models", headers={"authorization": "Bearer mm-a-b"}) for _ in range(80)]
    slowed = [reply for reply in wrong if reply.status_code == 429]
    assert 80 - WRONG_PER_MINUTE - 5 < len(slowed) < 80
    assert int(slowed[-1].headers["retry-after"]) >= 1
    assert (await client.get("/v1/models", headers=good)).status_code == 200


async def test_tenants_see_and_rate_their_own_answers_only(client, world):
    ann, bob, admin = (bearer(world, *scopes) for scopes in (("chat", "rate"), ("chat", "rate"), ("admin",)))
    id = (await client.post(CHAT, json=said("hello"), headers=ann)).json()["id"]
    rating = {"completion_id": id, "score": 1}
    for method, path, sent in (
        ("GET", f"/v1/routing/{id}", {}),
        ("GET", "/v1/feedback", {"params": {"completion_id": id}}),
        ("DELETE", "/v1/feedback", {"params": {"completion_id": id}}),
        ("POST", "/v1/feedback", {"json": rating}),
    ):
        refused = await client.request(method, path, headers=bob, **sent)
        assert refused.status_code == 404, (method, path)
        assert refused.json()["error"]["code"] == "completion_not_found"
        assert (await client.request(method, path, headers=ann, **sent)).is_success, (method, path)
        assert (await client.request(method, path, headers=admin, **sent)).is_success, (method, path)


async def test_nobody_compares_with_an_answer_of_another_tenant(client, world):
    ann, bob, admin = (bearer(world, *scopes) for scopes in (("chat", "rate"), ("chat", "rate"), ("admin",)))
    mine, also, hers = [
        (await client.post(CHAT, json=said("hello"), headers=who)).json()["id"] for who in (bob, bob, ann)
    ]
    base = {"completion_id": mine, "target": "comparison"}
    for chosen in ({"preferred": mine, "rejected": [hers]}, {"preferred": hers, "rejected": [mine]}):
        refused = await client.post("/v1/feedback", json=base | chosen, headers=bob)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "completion_not_found")
        assert (await client.post("/v1/feedback", json=base | chosen, headers=admin)).is_success
    own = {"preferred": mine, "rejected": [also]}
    assert (await client.post("/v1/feedback", json=base | own, headers=bob)).status_code == 201
    parties = {"preferred": "multimoe/parrot", "rejected": [also]}
    assert (await client.post("/v1/feedback", json=base | parties, headers=bob)).is_success


async def test_keys_of_one_tenant_share_their_answers(client, world):
    asker, rater = (bearer(world, scope, tenant="shop") for scope in ("chat", "rate"))
    id = (await client.post(CHAT, json=said("hello"), headers=asker)).json()["id"]
    reply = await client.post("/v1/feedback", json={"completion_id": id, "score": 1, "user": "eve"}, headers=rater)
    assert reply.status_code == 201
    assert world.log.interaction(id).tenant == "shop"
    assert [rating.user for rating in world.log.ratings(id)] == ["shop/eve"]


def test_a_forged_id_is_nobody_s(world):
    signer = Signer(b"secret")
    id = signer.new_id("ann")
    signer.check(id, "ann")
    swapped = id[:-1] + ("A" if id[-1] != "A" else "B")
    for forged, tenant in ((id, "bob"), (id, None), (swapped, "ann"), ("chatcmpl-", "ann"), ("", "ann"), ("é", "ann")):
        with pytest.raises(NotFound):
            signer.check(forged, tenant)
    with pytest.raises(NotFound):
        Signer(b"other").check(id, "ann")


def test_gateways_of_one_home_sign_alike_and_keep_their_secret_to_themselves(tmp_path):
    first, second = Signer.of(tmp_path), Signer.of(tmp_path)
    second.check(first.new_id("ann"), "ann")
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_the_store_has_no_secret(tmp_path):
    path = tmp_path / "log.db"
    with FeedbackLog.open(f"sqlite:///{path}") as log:
        key, sent = log.create_key("ann", ["chat"])
    assert sent.split("-", 2)[2].encode() not in path.read_bytes()
    (digest,) = sqlite3.connect(path).execute("select digest from keys").fetchone()
    assert digest == key.digest


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway.example"])
def test_a_gateway_others_can_reach_does_not_start_without_a_key(world, host):
    with pytest.raises(BadConfig, match="multimoe keys create"):
        refuse_open_house(Server(host=host), world.log)
    refuse_open_house(Server(host="127.0.0.1"), world.log)
    key, _ = world.log.create_key("ann", ["admin"])
    refuse_open_house(Server(host=host), world.log)
    world.log.revoke_key(key.id)
    with pytest.raises(BadConfig):
        refuse_open_house(Server(host=host), world.log)
    with pytest.raises(BadConfig, match="required"):
        refuse_open_house(Server(keys="required"), world.log)


def test_where_serve_listens_already_nobody_goes_by_another_address():
    serve = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0", port=8000))
    _refuse_other_address(Server(host="0.0.0.0"), serve)
    for wrong in (Server(), Server(host="0.0.0.0", port=8001)):
        with pytest.raises(BadConfig, match=r"listens on 0\.0\.0\.0:8000"):
            _refuse_other_address(wrong, serve)


def test_loopback_is_told_from_the_rest():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "localhost.example", "128.0.0.1", "")))


@pytest.mark.parametrize("arguments", [("", ["chat"], None), ("a", [], None), ("a", ["chat"], -1)])
def test_a_key_without_name_scope_or_future_is_refused(world, arguments):
    name, scopes, hours = arguments
    expires = hours and datetime.now(UTC) + timedelta(hours=hours)
    with pytest.raises(BadInput):
        world.log.create_key(name, scopes, expires=expires)


def test_the_command_line_makes_lists_and_revokes(tmp_path, monkeypatch):
    from gateway.cli import app

    monkeypatch.setenv("MULTIMOE_HOME", str(tmp_path))
    root = Path(__file__).parents[1]

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["keys", *words, "--catalog", str(root / "deploy/local.yaml")])
        assert done.exit_code == 0, done.output
        return done.stdout

    made = run("create", "ann", "--scope", "admin", "--days", "30").strip()
    assert made.count("-") >= 2
    (listed,) = json.loads(run("list", "--json"))
    assert (listed["name"], listed["scopes"], listed["revoked"]) == ("ann", ["admin"], None)
    assert made.split("-", 2)[2] not in json.dumps(listed)
    run("revoke", listed["id"])
    assert "revoked" in run("list")


def test_no_two_keys_are_alike(world):
    sent = [world.log.create_key("ann", ["chat"])[1] for _ in range(20)]
    assert not any(a == b for a, b in itertools.combinations(sent, 2))
