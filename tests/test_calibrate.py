"""What a preference means, in words and in numbers, and what each setting of it would have bought on one's own log."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_world import CATALOG, World, said, served
from past import EXPERTS, Past, liking
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.cli.past import roster
from gateway.cli.session import Session
from multimoe.config import parse
from multimoe.decision import Policy
from multimoe.errors import BadConfig
from multimoe.report.tradeoff import Target, Tradeoff, at_preference

CHAT = "/v1/chat/completions"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "home", presets={"thrifty": {"preference": "cheap"}, "best": {"preference": 0.9}})
    yield made
    made.log.close()


@pytest.mark.parametrize(
    ("sent", "meant"), [("cheap", 0.0), ("balanced", 0.5), ("best", 1.0), (0.3, 0.3), (None, None)]
)
async def test_a_request_says_its_preference_in_a_word_or_a_number(
    client: httpx.AsyncClient, world: World, sent: Any, meant: float | None
) -> None:
    reply = await client.post(CHAT, json=said("hi", x_multimoe={"preference": sent}))
    assert reply.status_code == 200
    assert world.gate.policies[0].preference == meant
    logged = world.log.interactions(1)[0].decision
    assert logged is not None
    assert logged.policy.preference == meant


@pytest.mark.parametrize("sent", ["cheep", "NaN", "", 1.01, -0.1, [], {"cheap": 1}])
async def test_another_preference_is_refused_and_the_words_are_named(client: httpx.AsyncClient, sent: Any) -> None:
    reply = await client.post(CHAT, json=said("hi", x_multimoe={"preference": sent}))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "x_multimoe.preference")
    if sent == "cheep":
        assert "cheap, balanced, best" in error["message"]


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("multimoe:cheap", 0.0),
        ("multimoe:balanced", 0.5),
        ("multimoe:thrifty", 0.0),  # the catalog's own, in a word
        ("multimoe:best", 0.9),  # the catalog says otherwise
        ("multimoe", None),
    ],
)
async def test_every_catalog_has_presets_by_the_same_words(
    client: httpx.AsyncClient, world: World, model: str, meant: float | None
) -> None:
    assert (await client.post(CHAT, json=said("hi", model=model))).status_code == 200
    assert world.gate.policies[0].preference == meant
    assert model in [one["id"] for one in (await client.get("/v1/models")).json()["data"]]


async def test_a_request_s_own_preference_stands_above_its_preset_s(client: httpx.AsyncClient, world: World) -> None:
    await client.post(CHAT, json=said("hi", model="multimoe:cheap", x_multimoe={"preference": "best"}))
    assert world.gate.policies[0].preference == 1.0


def test_the_catalog_takes_the_same_words() -> None:
    gate = {**CATALOG["gate"], "preference": "balanced"}
    assert parse({**CATALOG, "gate": gate}).gate.preference == 0.5
    with pytest.raises(BadConfig, match=r"gate\.preference: a preference is one of cheap, balanced, best"):
        parse({**CATALOG, "gate": {**gate, "preference": "cheep"}})


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """200 requests before the first gate version, 120 after it."""
    made = Past(tmp_path_factory.mktemp("past"))
    made.live(200)
    made.promote(made.learn())
    made.live(120)
    yield made
    made.log.close()


@pytest.fixture(scope="module")
def short_past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """60 requests, decided by the cards alone."""
    made = Past(tmp_path_factory.mktemp("short"), explore=0.3)
    made.live(60)
    yield made
    made.log.close()


@pytest.fixture(scope="module")
def tradeoff(past: Past) -> Tradeoff:
    return Tradeoff(past.history())


def test_a_setting_costs_what_the_gate_set_so_would_have_spent(past: Past, tradeoff: Tradeoff) -> None:
    """Against the plain way: every request decided twenty times over, and the bills added up."""
    spent = []
    gate = at_preference(tradeoff.gate, 0.4)
    spec = {one.name: one for one in EXPERTS}
    for number, request in enumerate(tradeoff.requests[:80]):
        for again in range(20):
            chosen = gate.decide(request.embedding, Policy(), 20 * number + again).chosen
            took = max(tradeoff.latencies[c.expert] for c in chosen)
            asked = any(c.expert == "big" for c in chosen)
            spent.append(
                (sum(spec[c.expert].cost for c in chosen), took, sum(c.weight * c.quality for c in chosen), asked)
            )
    tradeoff = Tradeoff(past.history())
    tradeoff.rows = tradeoff.rows[:80]
    said = tradeoff.at(0.4)
    figures = np.array([said.cost, said.latency_ms, said.quality, said.shares["big"]])
    error = np.std(spent, axis=0) / len(spent) ** 0.5
    assert (np.abs(figures - np.mean(spent, axis=0)) < 4 * error).all()


def test_less_preference_for_quality_buys_a_lower_price(tradeoff: Tradeoff) -> None:
    cheap, best = tradeoff.sweep((0.0, 1.0))
    assert cheap.cost < 0.8 * best.cost
    assert cheap.shares["big"] < best.shares["big"]
    assert cheap.latency_ms < best.latency_ms
    assert cheap.quality < best.quality


def test_what_ratings_say_of_a_setting_is_near_its_true_value(tradeoff: Tradeoff) -> None:
    """Within four standard errors, half the interval being about two."""
    for setting in tradeoff.sweep((0.9, 1.0)):
        gate = at_preference(tradeoff.gate, setting.preference)
        truth = np.mean(
            [
                liking(request.interaction.question, gate.decide(request.embedding, Policy(), number))
                for number, request in enumerate(tradeoff.requests)
            ]
        )
        for estimate in (setting.value, setting.doubly_robust):
            assert estimate is not None
            assert abs(estimate.value - truth) < estimate.high - estimate.low < 0.6


def test_a_target_is_met_and_hardly_underspent(short_past: Past) -> None:
    tradeoff = Tradeoff(short_past.history())
    settings = tradeoff.sweep((0.0, 0.5, 1.0))
    limit = (settings[1].cost + settings[2].cost) / 2
    found = tradeoff.meet(Target(figure="cost", limit=limit), settings)
    assert found is not None
    assert 0.97 * limit < found.cost <= limit
    assert 0.5 <= found.preference < 1.0
    assert tradeoff.meet(Target(figure="cost", limit=1.0), settings) == max(settings, key=lambda s: s.quality)
    assert tradeoff.meet(Target(figure="share", limit=0.0, expert="big"), settings) is None


def test_requests_that_said_a_preference_keep_it(tmp_path: Path) -> None:
    past = Past(tmp_path)
    past.live(30, policy=Policy(preference=0.0))
    cheap, best = Tradeoff(past.history()).sweep((0.0, 1.0))
    past.log.close()
    assert cheap == best.model_copy(update={"preference": 0.0})


def run(past: Past, *words: str) -> Result:
    return CliRunner().invoke(app, ["gate", "calibrate", *words, "--catalog", str(past.catalog)])


def test_the_command_prints_what_a_setting_buys_and_the_line_to_set(short_past: Past) -> None:
    done = run(short_past, "--target-cost", "0.0015")
    assert done.exit_code == 0
    assert [row.split()[0] for row in done.stdout.splitlines()[1:12]] == [f"{step / 10:g}" for step in range(11)]
    assert "best (now)" in done.stdout
    line = done.stdout.splitlines()[-1]
    facts = json.loads(run(short_past, "--target-cost", "0.0015", "--json").stdout)
    assert line == f"  preference: {facts['found']['preference']:g}"
    assert facts["found"]["cost"] <= 0.0015
    assert (facts["gate_version"], facts["requests"], facts["now"]) == (0, 60, 1.0)


def test_a_share_of_calls_can_be_the_target(short_past: Past) -> None:
    facts = json.loads(run(short_past, "--target-share", "coder=0.4", "--json").stdout)
    assert facts["target"] == {"figure": "share", "limit": 0.4, "expert": "coder"}
    assert facts["found"]["shares"]["coder"] <= 0.4


def test_a_target_out_of_reach_fails_and_says_the_least(short_past: Past) -> None:
    done = run(short_past, "--target-latency-ms", "1")
    assert done.exit_code == 1
    assert "No preference gives at most 1 ms a request: at 0 it is still" in done.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--target-share", "nobody=0.5"], "there are: small, big, coder, eye"),
        (["--target-share", "much"], "a share from 0 to 1"),
        (["--target-share", "1.5"], "a share from 0 to 1"),
        (["--target-cost", "1", "--target-latency-ms", "1"], "one target at a time"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(short_past: Past, words: list[str], why: str) -> None:
    done = run(short_past, *words)
    assert done.exit_code == 1
    assert why in done.stderr


async def test_experts_that_were_added_or_removed_while_it_runs_count(tmp_path: Path) -> None:
    world = World(tmp_path)
    added = world.catalog.experts[0].model_copy(update={"name": "newcomer", "options": {}})
    await world.cluster.add(added)
    await world.cluster.remove("sloth")
    with served(world) as url:
        asked = Session(given_url=url.removesuffix("/v1"))
        found = await asyncio.to_thread(roster, asked, world.catalog)
    world.log.close()
    assert [spec.name for spec in found] == ["parrot", "broken", "eye", "ear", "newcomer"]
    assert found[-1] == added
    assert roster(asked, world.catalog) == world.catalog.experts  # nothing answers there any more


def test_without_a_log_it_says_what_to_do(tmp_path: Path) -> None:
    past = Past(tmp_path)
    done = run(past, "--target-cost", "0.01")
    past.log.close()
    assert done.exit_code == 1
    assert "ask some questions first" in done.stderr
