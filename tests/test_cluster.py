"""The product on a real Ray cluster of two nodes: experts placed, scaled, added and removed while it answers."""

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from gateway.client import Client
from gateway.demo.product import free_port
from multimoe.config import Catalog, ExpertSpec
from multimoe.errors import Conflict
from multimoe.expert import FindWeights

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.weights,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, on import and when its processes end
]

PATIENCE = 60.0  # seconds


def echo(name: str, node: str, low: int = 1) -> ExpertSpec:
    """An echo expert that only fits on the node that has the resource `node`."""
    return ExpertSpec.model_validate(
        {
            "name": name,
            "backend": "experts.echo:Echo",
            "inputs": ["text"],
            "output": "text",
            "tokenizer": "bytes",
            "card": {"description": f"Echoes on the {node} node."},
            "serve": {
                "autoscaling_config": {"min_replicas": low, "max_replicas": 3, "upscale_delay_s": 0.5},
                "ray_actor_options": {"resources": {node: 0.1}},
            },
        }
    )


@dataclass
class Load:
    """A steady trickle of questions; every reply's status and gate version is kept."""

    url: str
    statuses: Counter[int | str] = field(default_factory=Counter)
    versions: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        body = {"model": "multimoe", "messages": [{"role": "user", "content": "one two three"}]}
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self._over.is_set():
                try:
                    reply = client.post("/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    self.statuses[type(error).__name__] += 1
                    continue
                self.statuses[reply.status_code] += 1
                if reply.is_success:
                    said = reply.json()
                    self.versions.add(said["x_multimoe"]["gate"]["version"])
                    if said["choices"][0]["message"]["content"] != "one two three":
                        self.wrong.append(said["choices"][0]["message"]["content"])
                time.sleep(0.02)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self.run) for _ in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def product(
    catalog: Catalog, weights: FindWeights, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Catalog]]:
    """Two nodes on this machine, `left` and `right`, with an echo expert on each."""
    from gateway.deployment.launch import ENVIRONMENT, running

    home = tmp_path_factory.mktemp("home")
    experts = tuple(echo(side, side) for side in ("left", "right"))
    tree = catalog.model_copy(update={"home": home, "experts": experts}).model_dump(mode="json")
    tree["gate"]["rollout"] = {"shadow_requests": 5, "canary_share": 0.5}
    small = Catalog.model_validate(tree | {"server": {"host": "127.0.0.1", "port": free_port()}})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster  # reads the environment

        left = {"num_cpus": 2, "resources": {"left": 1}, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=left)
        try:
            cluster.add_node(num_cpus=2, resources={"right": 1})
            with running(small, lambda _: None, ray_address=cluster.address) as url:
                yield url, small
        finally:
            cluster.shutdown()


@pytest.fixture
def client(product: tuple[str, Catalog]) -> Iterator[Client]:
    with Client(product[0]) as client:
        yield client


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.2)


def test_experts_run_on_both_nodes(client: Client) -> None:
    until(lambda: all(client.expert(name)["state"] == "ready" for name in ("left", "right")), "both ready")
    left, right = (client.expert(name)["nodes"] for name in ("left", "right"))
    assert len(left) == len(right) == 1
    assert left != right


def test_nothing_listens_where_another_machine_could_reach_it(product: tuple[str, Catalog]) -> None:
    listening = Counter[str]()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            listening.update(one.laddr.ip for one in process.net_connections("inet") if one.status == "LISTEN")
    assert sum(listening.values()) > 20
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening


def test_a_named_expert_answers_wherever_it_runs(product: tuple[str, Catalog]) -> None:
    body = {"model": "multimoe/right", "messages": [{"role": "user", "content": "over there"}]}
    reply = httpx.post(f"{product[0]}/v1/chat/completions", json=body, timeout=60)
    assert reply.json()["choices"][0]["message"]["content"] == "over there"


def test_what_experts_did_is_counted(product: tuple[str, Catalog]) -> None:
    def counted() -> bool:
        text = httpx.get(f"{product[0]}/metrics", timeout=30).text
        return any(
            line.startswith("ray_multimoe_expert_requests_total") and 'expert="right"' in line and 'status="ok"' in line
            for line in text.splitlines()
        )

    until(counted, "the question above among the metrics")


def test_experts_are_scaled_added_and_removed_without_a_failed_request(
    product: tuple[str, Catalog], client: Client
) -> None:
    with Load(product[0]) as load:
        client.scale("left", 2, 3)
        until(lambda: client.expert("left")["replicas"] >= 2, "a second replica")
        client.add_expert(echo("newcomer", "right").model_dump(mode="json"))
        until(lambda: client.expert("newcomer")["state"] == "ready", "the newcomer")
        route = client.route([{"role": "user", "content": "Echo on the right node"}])
        client.remove_expert("newcomer")
        until(lambda: all(e["name"] != "newcomer" for e in client.experts()), "the newcomer gone")
        client.scale("left", 1, 3)
    assert set(load.statuses) == {200}, load.statuses
    assert sum(load.statuses.values()) > 20
    assert not load.wrong
    assert "newcomer" in json.dumps(route)


def test_a_killed_replica_and_an_upgrade_lose_no_question(product: tuple[str, Catalog], client: Client) -> None:
    client.scale("left", 2, 3)
    until(lambda: client.expert("left")["replicas"] >= 2, "a second replica")
    edition = echo("left", "left").model_dump(mode="json")
    edition["card"] |= {"description": "Echoes better on the left node."}
    with Load(product[0]) as load:
        killed = pids("left")[0]
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(pids("left")) >= 2 and killed not in pids("left"), "another in its place")
        before = set(pids("left"))
        client.replace_expert(edition)
        until(lambda: not before & set(pids("left")), "the edition before gone")
        with pytest.raises(Conflict):
            client.replace_expert(edition | {"output": "labels"})
    assert set(load.statuses) == {200}, load.statuses
    assert not load.wrong
    assert client.expert("left")["description"] == "Echoes better on the left node."
    client.scale("left", 1, 3)


def pids(expert: str) -> list[int]:
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()["applications"][f"expert-{expert}"]
    return [r["pid"] for r in details["deployments"]["Expert"]["replicas"] if r["state"] == "RUNNING"]


def test_the_gate_is_swapped_in_place_without_a_failed_request(product: tuple[str, Catalog], client: Client) -> None:
    url, catalog = product
    write_versions(catalog, 2)
    with Load(url) as load:
        for version in (1, 2, 1, 0, 2):
            began = sum(load.statuses.values())
            client.promote(version)
            until(lambda began=began: sum(load.statuses.values()) > began + 4, "some answers")  # type: ignore[misc]
    assert set(load.statuses) == {200}, load.statuses
    assert load.versions == {0, 1, 2}
    assert client.gate()["version"] == 2


def test_a_shadow_becomes_a_canary_by_itself_and_is_withdrawn_without_a_failed_request(
    product: tuple[str, Catalog], client: Client
) -> None:
    url, catalog = product
    champion, canary = client.gate()["version"], write_versions(catalog, 1)[0]
    with Load(url) as load:
        client.put_on_trial(canary, 0.0)
        until(lambda: client.gate()["challenger"]["stage"] == "canary", "the monitor's look at the shadow")
        until(lambda: {champion, canary} <= load.versions, "answers by both")
        client.withdraw()
        began = sum(load.statuses.values())
        until(lambda: sum(load.statuses.values()) > began + 4, "answers after it")
    assert set(load.statuses) == {200}, load.statuses
    assert client.gate()["challenger"] is None
    past = httpx.get(f"{url}/v1/routing", params={"limit": 500}, timeout=60).json()["data"]
    contested = [one for one in past if one["decision"] and one["decision"]["contest"]]
    assert contested
    for one in contested:
        both = one["decision"]["contest"]
        mixed = (1 - both["share"]) * both["champion_chance"] + both["share"] * both["challenger_chance"]
        assert one["decision"]["propensity"] == pytest.approx(mixed)


def test_experts_on_two_nodes_write_one_answer_token_by_token(product: tuple[str, Catalog]) -> None:
    wish = {"combine": "tokens", "top_k": 2, "experts": ["left", "right"]}
    body = {"model": "multimoe", "messages": [{"role": "user", "content": "one 🌊"}], "x_multimoe": wish}
    reply = httpx.post(f"{product[0]}/v1/chat/completions", json=body, timeout=60).json()
    assert reply["choices"][0]["message"]["content"] == "one 🌊"
    assert reply["x_multimoe"]["combine"] == "tokens"
    assert [share["status"] for share in reply["x_multimoe"]["experts"]] == ["ok", "ok"]


def test_changes_by_two_processes_at_once_are_all_kept(product: tuple[str, Catalog], client: Client) -> None:
    """By the gateway, and by this process, as a training would."""
    from gateway.deployment.ray_cluster import RayCluster

    guests = [echo(f"guest-{number}", "left", low=0) for number in range(2)]

    async def add(specs: list[ExpertSpec]) -> None:
        cluster = RayCluster(product[1])
        for spec in specs:
            await cluster.add(spec)

    here = threading.Thread(target=lambda: asyncio.run(add(guests[::2])))
    here.start()
    for spec in guests[1::2]:
        client.add_expert(spec.model_dump(mode="json"))
    here.join()
    names = {spec.name for spec in guests}
    until(lambda: names <= {expert["name"] for expert in client.experts()}, "all guests")
    for name in sorted(names):
        client.remove_expert(name)


def write_versions(catalog: Catalog, count: int) -> list[int]:
    """Gate versions that know nothing more than the cards, but carry a number of their own."""
    from multimoe.checkpoint import Manifest, Registry
    from multimoe.quality import Learned

    learned = Learned().rows([spec.name for spec in catalog.experts])
    return [Registry(catalog.gates).write(learned, Manifest()).version for _ in range(count)]
