"""Start the whole product on this machine, say where it is, and leave nothing running afterwards.

Joins a running Ray cluster instead when told its address; then only the applications are started and stopped.
"""

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

from multimoe.config import Catalog
from multimoe.errors import BadConfig, Unavailable

START_SECONDS = 300.0
POLL_SECONDS = 0.5
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",  # a second thread gains nothing beside other replicas, and spins
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine takes longer than the 30 s Ray gives it
}


@dataclass(frozen=True)
class Step:
    """One application on its way up: `done` once it serves."""

    name: str
    done: bool
    message: str = ""


Report = Callable[[list[Step]], None]


def is_usable(steps: list[Step]) -> bool:
    """Whether API and page answer, with one expert at least; others may still be loading."""
    done = {step.name for step in steps if step.done}
    return done >= {"gate", "gateway", "page"} and any(name.startswith("expert-") for name in done)


@contextmanager
def running(catalog: Catalog, report: Report, ray_address: str | None = None) -> Iterator[str]:
    """The product, up while the block runs; yields its base URL.

    Raises BadConfig when the port is taken, Unavailable when an application does not come up.
    """
    server = catalog.server
    if why := why_not_listen(server.host, server.port):
        raise BadConfig(f"cannot listen on {server.host}:{server.port} ({why}); choose another with --port")
    catalog.home.mkdir(parents=True, exist_ok=True)
    temp = tempfile.mkdtemp(prefix="mm-")  # short: unix socket paths inside it may not pass 107 characters
    wanted = ENVIRONMENT if ray_address is None else ENVIRONMENT.keys() - {"RAY_AUTH_MODE"}  # theirs to say
    os.environ.update({name: os.environ.get(name, ENVIRONMENT[name]) for name in wanted})
    import ray
    from ray import serve

    joined = ray_address is not None
    try:
        report([Step("ray", False)])
        _start_ray(ray_address, temp)
        serve.start(proxy_location="EveryNode", http_options=_http_options(catalog))
        _deploy(catalog, report)
        yield catalog.server.url
    finally:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # Ray tells of processes it ends itself
            if ray.is_initialized():
                _stop(joined)
            ray.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _stop(joined: bool) -> None:
    """On somebody else's cluster only our applications go; Serve itself may carry others."""
    from ray import serve

    if not joined:
        serve.shutdown()  # type: ignore[no-untyped-call]  # Ray ships it without types
        return
    from gateway.ray_cluster import undeploy

    undeploy()


def wait_for_signal() -> None:
    """Until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1.0):
        pass


def _start_ray(address: str | None, temp: str) -> None:
    import ray

    options: dict[str, Any] = {"namespace": "serve", "log_to_driver": False, "logging_level": "warning"}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "_temp_dir": temp}
    else:
        options |= {"address": address}
    ray.init(**options)


def _http_options(catalog: Catalog) -> dict[str, Any]:
    return {"host": catalog.server.host, "port": catalog.server.port}


def _deploy(catalog: Catalog, report: Report) -> None:
    """Gate, API, page and one expert first, so that it can be used while the others load, one after the other.

    The gate knows an expert only once it is there, and what is changed meanwhile is kept.
    """
    from gateway.ray_cluster import deploy, deployed_config, enlist
    from gateway.render import serve_config
    from multimoe.checkpoint import Registry

    # those that sleep until they are asked come last
    first, *others = sorted(catalog.experts, key=lambda spec: spec.serve.autoscaling_config.min_replicas == 0)
    config = serve_config(catalog, Registry(catalog.gates).sound_champion(), [first])
    deploy(config)
    _poll(report, partial(_are_built, [application["name"] for application in config["applications"]]))
    for spec in others:
        config = deployed_config()
        enlist(config, spec, str(catalog.weights))
        deploy(config)
        _poll(report, partial(_are_built, [config["applications"][-1]["name"]]))
    _poll(report, lambda status: all(app.status == "RUNNING" for app in status.values()))


def _are_built(names: list[str], status: dict[str, Any]) -> bool:
    return all(name in status and bool(status[name].deployments) for name in names)


def _poll(report: Report, satisfied: Callable[[dict[str, Any]], bool]) -> None:
    """Until the applications' status satisfies. Raises Unavailable when one fails, or it takes too long."""
    from ray import serve

    deadline = time.monotonic() + START_SECONDS
    while True:
        status: dict[str, Any] = dict(serve.status().applications)
        report([Step("ray", True), *(Step(name, a.status == "RUNNING", a.message) for name, a in status.items())])
        failed = [f"{name}: {app.message}" for name, app in status.items() if app.status == "DEPLOY_FAILED"]
        if failed:
            raise Unavailable("could not start\n  " + "\n  ".join(failed))
        if satisfied(status):
            return
        if time.monotonic() > deadline:
            waiting = ", ".join(name for name, app in status.items() if app.status != "RUNNING")
            raise Unavailable(f"not up after {START_SECONDS:.0f} s: {waiting}; `multimoe doctor` may say why")
        time.sleep(POLL_SECONDS)


def why_not_listen(host: str, port: int) -> str | None:
    """Why the port cannot be listened on, in the system's words; None when it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None
