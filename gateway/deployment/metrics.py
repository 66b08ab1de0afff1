"""What is counted of routing and experts, beside Ray Serve's own metrics, and where a node's metrics are read.

Ray adds application, deployment and replica to every series, and `ray_` and `_total` to the names.
"""

import asyncio
import os
from pathlib import Path

import httpx
import ray
from ray.serve.metrics import Counter, Histogram

from multimoe.decision import Decision
from multimoe.errors import Unavailable

SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
SHARES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
SCRAPE_SECONDS = 5.0


class Metrics:
    """Counters and histograms of one process; tags are names out of the catalog, so their number is bounded."""

    def __init__(self) -> None:
        self._asked = Counter("multimoe_expert_requests", "Questions put to an expert.", ("expert", "status"))  # type: ignore[arg-type]  # any number of them
        self._took = Histogram(
            "multimoe_expert_duration_seconds", "From asking an expert to its last word.", SECONDS, ("expert",)
        )
        self._weight = Histogram("multimoe_routing_weight", "Weight given to a chosen expert.", SHARES, ("expert",))
        self._route = Histogram("multimoe_route_duration_seconds", "Embedding and deciding.", SECONDS, ("gate",))
        self._faults = Counter(
            "multimoe_expert_faults",
            "Experts ejected, restored, passed over, and questions repeated because a replica went away.",
            ("expert", "what"),  # type: ignore[arg-type]  # any number of them
        )
        self._explored = Counter("multimoe_explored", "Decisions drawn by chance.", ("gate",))

    def decided(self, decision: Decision) -> None:
        gate = {"gate": str(decision.gate_version)}
        self._route.observe(sum(decision.timing_ms.values()) / 1000, gate)
        if decision.explored:
            self._explored.inc(1, gate)
        for choice in decision.chosen:
            if choice.weight > 0:
                self._weight.observe(choice.weight, {"expert": choice.expert})

    def faulted(self, expert: str, what: str) -> None:
        """`what` is ejected, restored, passed_over, retried or hedged; the gate counts as an expert here."""
        self._faults.inc(1, {"expert": expert, "what": what})

    def asked(self, expert: str, status: str, seconds: float) -> None:
        """`status` is ok, error or cancelled."""
        self._asked.inc(1, {"expert": expert, "status": status})
        self._took.observe(max(seconds, 1e-6), {"expert": expert})


async def scrape() -> str:
    """This node's metrics in Prometheus' text form, as its Ray agent serves them. Raises Unavailable."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node for node in await asyncio.to_thread(ray.nodes)}
    if here not in nodes:
        raise Unavailable("this node is not registered with Ray yet; try again in a few seconds")
    node = nodes[here]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        async with httpx.AsyncClient(timeout=SCRAPE_SECONDS, trust_env=False) as client:
            reply = await client.get(url, headers=_token())
        reply.raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable("Ray's metrics agent on this node does not answer; try again in a few seconds") from error
    return reply.text


def _token() -> dict[str, str]:
    """Ray's own token, from where Ray looks for it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    token = os.environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.exists() else "")
    return {"Authorization": f"Bearer {token}"} if token else {}
