"""What a stranger on the network does: try every port, speak to what answers, with a token or without.

Run by `perimeter` in a network namespace of its own, as `python -m drills._street VERB …`; prints JSON.
"""

import json
import pickle
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

PORTS = range(1, 65536)
WAIT = 0.5  # seconds for a port to answer; a closed one says so at once
# one harmless call of each of Ray's services; which port speaks which is not known from outside
CALLS = (
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/NumPendingTasks",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.rpc.ObjectManagerService/FreeObjects",
)
REPLICA = "/ray.serve.ASGIService/HandleRequest"
REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
NOT_SPOKEN = {"UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"}
SITE = "http://evil.example"  # a page that a browser here has open
REQUESTS = (("GET", "/"), ("GET", "/api/version"), ("POST", "/api/jobs/"), ("DELETE", "/api/serve/applications/"))


class Canary:
    """Unpickled, it writes a file: what a stranger would do with a replica that believes them."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"open({self.path!r}, 'w').write('in')",)


def scan(host: str) -> list[int]:
    """Ports that take a connection."""
    found = []
    for port in PORTS:
        with socket.socket() as caller:
            caller.settimeout(WAIT)
            if caller.connect_ex((host, port)) == 0:
                found.append(port)
    return found


def call(host: str, ports: list[int], token: str, canary: str) -> dict[str, int]:
    """How often a call was `refused` for want of a token, `believed`, or `executed` code of ours. "" sends no token."""
    import grpc
    from ray.serve.generated.serve_pb2 import ASGIRequest

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    poison = ASGIRequest(pickled_request_metadata=pickle.dumps(Canary(canary))).SerializeToString()
    counted: Counter[str] = Counter(refused=0, believed=0, executed=0)
    for port in ports:
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            for method in (*CALLS, REPLICA):
                body = poison if method == REPLICA else b""
                try:
                    channel.unary_unary(method)(body, timeout=3, metadata=metadata)
                    status = "OK"
                except grpc.RpcError as error:
                    status = error.code().name
                if status in NOT_SPOKEN | REFUSED:
                    counted["refused"] += status in REFUSED
                elif method != REPLICA:
                    counted["believed"] += 1
                if Path(canary).exists():
                    Path(canary).unlink()
                    counted["executed"] += 1
    return dict(counted)


def browse(host: str, ports: list[int], token: str) -> dict[str, int]:
    """HTTP answers by status to what a page of another site could have a browser send; only ports that speak HTTP."""
    import httpx

    headers = {"origin": SITE, "host": "evil.example"} | ({"authorization": f"Bearer {token}"} if token else {})
    seen: Counter[str] = Counter()
    with httpx.Client(timeout=3, trust_env=False, headers=headers) as client:
        for port in ports:
            for method, path in REQUESTS:
                try:
                    seen[f"{method} {client.request(method, f'http://{host}:{port}{path}').status_code}"] += 1
                except httpx.HTTPError:
                    break
    return dict(seen)


def get(url: str, key: str) -> int:
    import httpx

    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.get(url, headers=headers, timeout=30, trust_env=False).status_code


def main(verb: str, *given: str) -> Any:
    match verb, *given:
        case "scan", host:
            return scan(host)
        case "call", host, ports, token, canary:
            return call(host, json.loads(ports), token, canary)
        case "browse", host, ports, token:
            return browse(host, json.loads(ports), token)
        case "get", url, key:
            return get(url, key)
    raise SystemExit(f"unknown: {verb} {given}")


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
