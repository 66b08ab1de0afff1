"""Start the whole product on this machine, say where it is, and leave nothing running afterwards.

Joins a running Ray cluster instead when told its address; then only the applications are started and stopped.
"""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

from gateway.access.guard import refuse_open_house
from gateway.deployment.perimeter import ON_LOOPBACK, fresh_token, refuse_disabled_token, refuse_open_cluster
from multimoe.config import Catalog, Server
from multimoe.errors import BadConfig, Unavailable
from multimoe.feedback import FeedbackLog

logger = logging.getLogger(__name__)

DRAIN_CALL_SECONDS = 5.0
DRAIN_POLL_SECONDS = 0.1
LAST_BYTES_SECONDS = 0.3  # that a proxy may take to hand on what a gateway has given out
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
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # a proxy that died is missed for 5 s then, not for 20
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine takes longer than the 30 s Ray gives it
    **ON_LOOPBACK,
}
OWN = {"RAY_AUTH_MODE", *ON_LOOPBACK}  # not for a cluster that is joined: theirs to say


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

    Raises BadConfig when the port is taken or the door would stand open, Unavailable when something does not come up.
    """
    server = catalog.server
    if ray_address is None:
        refuse_disabled_token()
    if why := why_not_listen(server.host, server.port):
        raise BadConfig(f"cannot listen on {server.host}:{server.port} ({why}); choose another with --port")
    catalog.home.mkdir(parents=True, exist_ok=True)
    with FeedbackLog.open(catalog.store_url) as log:
        refuse_open_house(server, log)
    temp = tempfile.mkdtemp(prefix="mm-")  # short: unix socket paths inside it may not pass 107 characters
    wanted = ENVIRONMENT if ray_address is None else ENVIRONMENT.keys() - OWN
    os.environ.update({name: os.environ.get(name, ENVIRONMENT[name]) for name in wanted})
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client

    joined, ours, token = ray_address is not None, False, ExitStack()
    gateways: Any = None
    try:
        report([Step("ray", False)])
        if not joined:
            token.enter_context(fresh_token(catalog.home))
        _start_ray(ray_address, temp)
        serve.start(proxy_location="EveryNode", http_options=_http_options(catalog))
        _refuse_other_address(server, _get_global_client())
        ours = True
        _deploy(catalog, report)
        gateways = _gateways()  # now, for to look for them takes its time, and at the end there is none
        yield catalog.server.url
    finally:
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # Ray tells of processes it ends itself
                with suppress(KeyboardInterrupt):  # a second one: now
                    up = ours and ray.is_initialized()
                    if up and (not gateways or _drained(gateways, server.grace_seconds, joined)):
                        _stop(joined)
                ray.shutdown()
        finally:
            token.close()
            shutil.rmtree(temp, ignore_errors=True)


def _drained(gateways: Any, grace: float, joined: bool) -> bool:
    """Have every gateway take nothing new, and wait until what they are answering is out, or `grace` is over.

    Says whether the applications are to be taken down one by one: not where a second signal, or answers without an end,
    mean that our own cluster shall simply end.
    """
    deadline, left = time.monotonic() + grace, 0
    try:
        while left := sum(_said_by_each(gateways, "drain")):
            if time.monotonic() > deadline:
                break
            time.sleep(DRAIN_POLL_SECONDS)
        time.sleep(LAST_BYTES_SECONDS)
    except KeyboardInterrupt:
        return joined
    except Exception as error:  # whatever Ray makes of a gateway that is gone: there is nothing to wait for
        logger.warning("the gateway could not be drained: %r", error)
    return joined or not left


def _gateways() -> Any:
    """A handle that has heard of every gateway, where they answer in time."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from gateway.deployment.serving import GATEWAY, GATEWAY_APP

    handle = serve.get_deployment_handle(GATEWAY, GATEWAY_APP, _check_exists=False)
    with suppress(RayServeException, TimeoutError):
        _said_by_each(handle, "under_way")
    return handle


def _said_by_each(gateways: Any, method: str) -> list[int]:
    """What every gateway says. A new handle hears of them a moment late."""
    from ray.serve.exceptions import DeploymentUnavailableError

    until = time.monotonic() + DRAIN_CALL_SECONDS
    while True:
        try:
            said: list[int] = gateways.broadcast(method).results(timeout_s=DRAIN_CALL_SECONDS)
            return said
        except DeploymentUnavailableError:
            if time.monotonic() > until:
                raise
            time.sleep(DRAIN_POLL_SECONDS)


def _stop(joined: bool) -> None:
    """On somebody else's cluster only our applications go; Serve itself may carry others."""
    from ray import serve

    if not joined:
        serve.shutdown()  # type: ignore[no-untyped-call]  # Ray ships it without types
        return
    from gateway.deployment.ray_cluster import undeploy

    undeploy()


def wait_for_signal() -> None:
    """Until Ctrl-C or SIGTERM. A second one then ends at once what is being ended."""
    stop = threading.Event()

    def stopping(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopping)
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
    if address is not None:
        refuse_open_cluster(ray.get_runtime_context().gcs_address)


def _refuse_other_address(server: Server, client: Any) -> None:
    """Raises BadConfig where Serve ran before us and listens elsewhere: it keeps its address, and keys go by ours."""
    found = client.http_config
    if (found.host, found.port) != (server.host, server.port):
        raise BadConfig(
            f"Serve runs on this cluster already and listens on {found.host}:{found.port}, not on {server.host}:"
            f"{server.port}: say so in server.host and server.port",
            "server.host",
        )


def _http_options(catalog: Catalog) -> dict[str, Any]:
    return {"host": catalog.server.host, "port": catalog.server.port}


def _deploy(catalog: Catalog, report: Report) -> None:
    """Gate, API, page and one expert first, so that it can be used while the others load, one after the other.

    The gate knows an expert only once it is there, and what is changed meanwhile is kept.
    """
    from gateway.deployment.ray_cluster import LOCK, deploy, deployed_config, enlist
    from gateway.deployment.render import serve_config
    from gateway.deployment.store_address import deposit
    from gateway.locks import lock
    from multimoe.checkpoint import Registry

    # those that sleep until they are asked come last
    first, *others = sorted(catalog.experts, key=lambda spec: spec.serve.autoscaling_config.min_replicas == 0)
    champion, trial = Registry(catalog.gates).serving()
    deposit(catalog)
    config = serve_config(catalog, champion, [first], trial)
    deploy(config)
    _poll(report, partial(_are_built, [application["name"] for application in config["applications"]]))
    for spec in others:
        with lock(catalog.home / LOCK):
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
