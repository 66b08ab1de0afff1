"""T1: the API held against its own description by schemathesis: every operation, every check, with a key and without.

The whole gateway runs here behind real sockets, with its own store; the attacker is a process of its own. As a control
the same attack is made on a gateway with three mistakes planted in it, and has to find each.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from api_world import CATALOG, World, said, served
from pydantic import BaseModel

from drills.row import Row, Scale
from gateway.access import guard

SEED = 20261130
PATIENCE_SECONDS: dict[Scale, float] = {"quick": 60.0, "long": 5.0}  # an answer may take; tests run on busy machines
CASES: dict[Scale, int] = {
    "quick": 3,
    "long": 140,
}  # of a phase, for each operation; the phase that covers the schema adds its own
EVERYTHING = "examples,coverage,fuzzing,stateful"
PLANTED = ("/planted/crash", "/planted/lax", "/planted/other")
MANY = {"ratings_per_minute": 10**6}
# What no schema can say is refused by value, not by shape: no question in the messages, no such class, no sound in a
# file. These operations may answer 400 to what fits their schema, and media may be of no use.
BY_VALUE = (
    "POST /v1/chat/completions",
    "POST /v1/route",
    "POST /v1/embeddings",
    "POST /v1/experts",
    "PUT /v1/experts/{name}",
    "PUT /v1/experts/{name}/scale",
    "POST /v1/feedback",
)
USUAL = '"2xx", 401, 403, 404, 409, 413, 415, 422, 429, "5xx"'  # no 5xx passes: another check refuses those


@dataclass(frozen=True)
class Attack:
    """`failures` as schemathesis names them, with the operation."""

    cases: int
    operations: int
    failures: tuple[str, ...]
    said: str = field(repr=False, default="")


@dataclass(frozen=True)
class Target:
    url: str
    key: str
    seeds: dict[str, dict[str, str]]  # parameters of things that are there, by operation


@contextmanager
def target(home: Path, planted: bool = False) -> Iterator[Target]:
    """A gateway with keys, an answer, a rating, a job and a gate version in it."""
    sound = [spec for spec in CATALOG["experts"] if spec["name"] not in ("sloth", "broken")]  # made slow, made to fail
    world = World(home, limits=MANY, experts=sound)
    if planted:
        plant(world)
    _, key = world.log.create_key("attacker", ["chat", "rate", "admin"])
    patience, guard.WRONG_PER_MINUTE = guard.WRONG_PER_MINUTE, 10**9  # else wrong keys only try the brake
    try:
        with served(world) as url:
            root = url.removesuffix("/v1")
            yield Target(root, key, _seeds(world, root, key))
    finally:
        guard.WRONG_PER_MINUTE = patience
        world.log.close()


def _seeds(world: World, root: str, key: str) -> dict[str, dict[str, str]]:
    headers = {"authorization": f"Bearer {key}"}
    reply = httpx.post(f"{root}/v1/chat/completions", json=said("hello"), headers=headers, timeout=60)
    completion = reply.raise_for_status().json()["id"]
    rating = {"completion_id": completion, "score": 1}
    httpx.post(f"{root}/v1/feedback", json=rating, headers=headers, timeout=60).raise_for_status()
    version, job = str(world.write_version()), world.log.start_job("retrain").id
    world.log.finish_job(job, "done", {"version": 1})
    return {
        "GET /v1/models/{id}": {"id": "multimoe/parrot"},
        "GET /v1/experts/{name}": {"name": "parrot"},
        "PUT /v1/experts/{name}/scale": {"name": "parrot"},
        "GET /v1/feedback": {"completion_id": completion},
        "GET /v1/routing/{completion_id}": {"completion_id": completion},
        "GET /v1/gate/versions/{version}": {"version": version},
        "GET /v1/gate/jobs/{id}": {"id": job},
        "GET /v1/gate/jobs/{id}/events": {"id": job},
    }


def plant(world: World) -> None:
    """A crash, a number that is not checked, and an answer that is not as described."""

    class Shape(BaseModel):
        sides: int

    @world.app.get("/planted/crash")
    async def crash(sides: int) -> Shape:
        return Shape(sides=12 // (sides if abs(sides) < 1000 else 0))

    @world.app.get(
        "/planted/lax",
        openapi_extra={
            "parameters": [{"name": "sides", "in": "query", "required": True, "schema": {"type": "integer"}}]
        },
    )
    async def lax() -> Shape:
        return Shape(sides=3)

    @world.app.get("/planted/other", response_model=Shape)
    async def other() -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse({"sides": "many"})


def attack(target: Target, scale: Scale, key: str | None, seeded: bool, phases: str = EVERYTHING) -> Attack:
    """All of the description at `target`, each failure with one operation. Without `key` as nobody."""
    with tempfile.TemporaryDirectory() as folder:
        config, report = Path(folder) / "schemathesis.toml", Path(folder) / "report.json"
        config.write_text(_config(target.seeds if seeded else {}))
        description = Path(folder) / "openapi.json"
        admin = {"authorization": f"Bearer {target.key}"}
        description.write_bytes(
            httpx.get(f"{target.url}/openapi.json", headers=admin, timeout=60).raise_for_status().content
        )
        words = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run"]
        words += [str(description), "--url", target.url, "--seed", str(SEED), "--phases", phases]
        words += [
            "--max-examples",
            str(CASES[scale]),
            "--max-response-time",
            str(PATIENCE_SECONDS[scale]),
            "--checks",
            "all",
        ]
        words += ["--continue-on-failure", "--no-shrink", "--suppress-health-check", "all", "--warnings", "off"]
        words += ["--report", "json", "--report-json-path", str(report), "--request-timeout", "90"]
        words += ["--header", f"Authorization: Bearer {key}"] if key else []
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=900)
        if not report.exists():
            raise RuntimeError(done.stdout + done.stderr)
        return _read(json.loads(report.read_text()), done.stdout)


def _config(seeds: dict[str, dict[str, str]]) -> str:
    lines = ["[phases.stateful.inference]", "algorithms = []"]  # the links are given; guessed ones lead astray
    lines += ["[checks.positive_data_acceptance]", f"expected-statuses = [{USUAL}]"]
    for name in BY_VALUE:
        lines += ["[[operations]]", f'include-name = "{name}"']
        lines += [f"parameters = {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in seeds.get(name, {}).items())} }}"]
        lines += [f"checks.positive_data_acceptance.expected-statuses = [400, {USUAL}]"]
        if name == "POST /v1/chat/completions":  # `timeout_s` may ask for less time than anything takes
            lines += ['checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]']
    for name, values in seeds.items():
        if name not in BY_VALUE:
            told = ", ".join(f"{k} = {json.dumps(v)}" for k, v in values.items())
            lines += ["[[operations]]", f'include-name = "{name}"', f"parameters = {{ {told} }}"]
    return "\n".join(lines) + "\n"


def _read(report: dict[str, Any], told: str) -> Attack:
    failures = [f"{each['title']}: {operation}" for each in report["failures"] for operation in each["operations"]]
    failures += [f"the attack broke: {error}" for error in report["errors"]]
    if not report["complete"]:
        failures.append(f"the attack stopped early: {report['stop_reason']}")
    return Attack(report["test_cases"]["generated"], report["operations"]["tested"], tuple(failures), told)


def keeps_its_contract(scale: Scale) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as home, target(Path(home) / "good") as good:
        for what, key, seeded, phases in (
            ("with a key, on things that are there", good.key, True, "examples,fuzzing"),
            ("with a key, on anything", good.key, False, EVERYTHING),
            ("as nobody", None, False, EVERYTHING),
        ):
            found = attack(good, scale if key else "quick", key, seeded, phases)
            tried = f"{found.cases:,} requests to {found.operations} operations, seed {SEED}"
            yield Row("T1", what, tried, _figure(found), "0 failures", not found.failures and found.cases > 100)
    with tempfile.TemporaryDirectory() as home, target(Path(home) / "bad", planted=True) as bad:
        found = attack(bad, "quick", bad.key, seeded=False, phases="coverage,fuzzing")
        seen = sum(any(path in failure for failure in found.failures) for path in PLANTED)
        yield Row("T1", "planted mistakes are found", f"{found.cases:,} requests", f"{seen} of {len(PLANTED)}", "all",
                  seen == len(PLANTED), control=True)  # fmt: skip


def _figure(found: Attack) -> str:
    return f"{len(found.failures)} failures" + "".join(f"; {failure}" for failure in found.failures[:4])


DRILLS = (keeps_its_contract,)
