"""The cluster the gateway runs on: Ray Serve applications looked up by name, changed through one declarative config.

The Serve controller keeps the only copy of that config. A change reads it, edits it and hands it back, so that nothing
has to be kept in step: what runs is what the controller has.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import ServeDeploySchema

from gateway.cluster import ExpertState, GateState
from gateway.metrics import Metrics, scrape
from gateway.render import Config, expert_application, gate_user_config
from gateway.serving import EXPERT, GATE, GATE_APP, expert_app_name
from multimoe.checkpoint import Registry
from multimoe.config import Autoscaling, Catalog, ExpertSpec
from multimoe.decision import Policy
from multimoe.errors import Conflict, ExpertFailed, MultimoeError, NotFound, Unavailable
from multimoe.expert import Delta
from multimoe.messages import ChatRequest
from multimoe.reply import Routed

GONE = (RayActorError, DeploymentUnavailableError, RayServeException, RayError)
FRESH = 1.0  # seconds for which a look at the controller or at the gate's roster is good
SETTLE_SECONDS = 60.0
UNDER_WAY_SECONDS = 2.0  # from a decision to its expert; a call to an application that is gone would wait for nothing


class RayCluster:
    """`Cluster` on Ray Serve. Cheap to make; every gateway replica and every retraining has its own."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float] = time.monotonic) -> None:
        self.catalog = catalog
        self.clock = clock
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._roster: tuple[ExpertSpec, ...] = ()
        self._revision = ""
        self._roster_seen = float("-inf")
        self._seen: tuple[float, dict[str, Any]] = (float("-inf"), {})
        self._changing = asyncio.Lock()
        self._metrics = Metrics()

    async def roster(self) -> tuple[ExpertSpec, ...]:
        if self.clock() - self._roster_seen > FRESH:
            await self._look_up_roster()
        return self._roster

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        routed: Routed
        routed, revision = await self._call_gate("decide", request, policy)
        if revision != self._revision:
            await self._look_up_roster()
        self._metrics.decided(routed.decision)
        return routed

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = await self._call_gate("embed_texts", texts)
        return vectors

    async def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Stream one expert. Closing the iterator cancels the call in its replica."""
        handle: Any = self._handle(expert_app_name(expert), EXPERT).options(stream=True)
        stream: DeploymentResponseGenerator[Delta] = handle.answer.remote(request)
        began, status = self.clock(), "error"
        try:
            async for delta in stream:
                yield delta
            status = "ok"
        except (GeneratorExit, asyncio.CancelledError):
            status = "cancelled"
            raise
        except RayTaskError as error:
            raise _own_error(error, expert) from error
        except BackPressureError as error:
            raise Unavailable(f"expert {expert!r} has more questions waiting than it takes; try again soon") from error
        except GONE as error:
            raise ExpertFailed(f"a replica of expert {expert!r} went away while answering; ask again") from error
        finally:
            self._metrics.asked(expert, status, self.clock() - began)
            stream.cancel()  # type: ignore[no-untyped-call]  # Ray ships it without types

    async def expert_states(self) -> dict[str, ExpertState]:
        applications = (await self._details())["applications"]
        return {spec.name: _state(applications.get(expert_app_name(spec.name), {})) for spec in await self.roster()}

    async def scale(self, expert: str, min_replicas: int, max_replicas: int) -> None:
        def change(config: Config) -> None:
            deployment = _deployment(_application(config, expert_app_name(expert), expert), EXPERT)
            before = deployment.get("autoscaling_config") or {}
            scaled = Autoscaling.model_validate(
                {**Autoscaling().model_dump(), **{k: v for k, v in before.items() if k in Autoscaling.model_fields}}
                | {"min_replicas": min_replicas, "max_replicas": max_replicas, "initial_replicas": None}
            )
            deployment.pop("num_replicas", None)
            deployment["autoscaling_config"] = scaled.model_dump(exclude_none=True)

        await self._change(change)

    async def add(self, spec: ExpertSpec) -> None:
        await self._change(lambda config: enlist(config, spec, str(self.catalog.weights)))

    async def remove(self, expert: str) -> None:
        """First the gate forgets it, and only when what was routed before has reached it does it go."""

        def forget(config: Config) -> None:
            _application(config, expert_app_name(expert), expert)
            kept = tuple(spec for spec in _roster_of(config) if spec.name != expert)
            if not kept:
                raise Conflict(f"{expert!r} is the last expert; add another one before removing it")
            _set_gate(config, experts=kept)

        def delete(config: Config) -> None:
            config["applications"] = [a for a in config["applications"] if a["name"] != expert_app_name(expert)]

        await self._change(forget)
        await asyncio.sleep(UNDER_WAY_SECONDS)
        await self._change(delete)

    async def gate_state(self) -> GateState:
        return GateState.model_validate(await self._call_gate("state"))

    async def serve_gate(self, version: int) -> None:
        """Raises CheckpointError or NotFound before anything changes, Unavailable when the gate does not take it up."""
        if version != 0:
            await asyncio.to_thread(Registry(self.catalog.gates).load, version)
        before = (await self.gate_state()).version
        await self._change(lambda config: _set_gate(config, version=version))
        if (await self.gate_state()).version != version:
            await self._change(lambda config: _set_gate(config, version=before))
            raise Unavailable(f"the gate could not take up version {version} and serves {before}; see its log")

    async def metrics(self) -> str:
        return await scrape()

    async def train(self, job: str) -> None:
        from gateway.trainer import run_training

        run_training.remote(self.catalog.model_dump(mode="json"), job)

    def _handle(self, application: str, deployment: str) -> DeploymentHandle[Any]:
        if application not in self._handles:
            handle = serve.get_deployment_handle(deployment, app_name=application, _check_exists=False)
            self._handles[application] = handle
        return self._handles[application]

    async def _call_gate(self, method: str, *args: Any) -> Any:
        try:
            return await getattr(self._handle(GATE_APP, GATE), method).remote(*args)
        except RayTaskError as error:
            raise _own_error(error, "gate") from error
        except BackPressureError as error:
            raise Unavailable("the gate has more requests waiting than it takes; try again soon") from error
        except GONE as error:
            raise Unavailable("the gate is being restarted; try again in a few seconds") from error

    async def _look_up_roster(self) -> None:
        self._roster, self._revision = await self._call_gate("roster")
        self._roster_seen = self.clock()

    async def _details(self) -> dict[str, Any]:
        """The controller's view of every application, at most `FRESH` old."""
        when, details = self._seen
        if self.clock() - when > FRESH:
            details = await asyncio.to_thread(lambda: _controller().get_serve_details())
            self._seen = (self.clock(), details)
        return details

    async def _change(self, edit: Callable[[Config], None]) -> None:
        """Edit the deployed config, hand it back, and wait until the gate has taken up what concerns it."""
        async with self._changing:
            config = await asyncio.to_thread(deployed_config)
            edit(config)
            await asyncio.to_thread(deploy, config)
            self._seen = (float("-inf"), {})
            wanted, deadline = _gate(config)["user_config"]["revision"], self.clock() + SETTLE_SECONDS
            while self._revision != wanted:
                if self.clock() > deadline:
                    raise Unavailable(f"the gate did not take up the change in {SETTLE_SECONDS:g} s; see its log")
                await asyncio.sleep(0.05)
                with suppress(Unavailable):  # the gate may be restarting just now
                    await self._look_up_roster()


def deployed_config() -> Config:
    """The declarative config as it was last deployed."""
    details = _controller().get_serve_details()
    applications = [app["deployed_app_config"] for app in details["applications"].values()]
    return {
        "proxy_location": details["proxy_location"],
        "http_options": {k: details["http_options"][k] for k in ("host", "port")},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": [app for app in applications if app],
    }


def undeploy() -> None:
    """Take away every application that came by the declarative config."""
    config = deployed_config()
    deploy({**config, "applications": []})


def enlist(config: Config, spec: ExpertSpec, weights: str) -> None:
    """Add an expert's application and tell the gate of it. Raises Conflict when the name is taken."""
    experts = _roster_of(config)
    if any(known.name == spec.name for known in experts):
        raise Conflict(f"there is an expert {spec.name!r} already; remove it first or choose another name")
    config["applications"].append(expert_application(spec, weights))
    _set_gate(config, experts=(*experts, spec))


def deploy(config: Config) -> None:
    """Hand the whole config to the controller; it works out what changed. Returns before replicas are up."""
    _controller().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)


def _controller() -> Any:
    # the public way to deploy a config is the dashboard's REST API: one more server, one more port, one more token
    client = _get_global_client()
    if client is None:
        raise Unavailable("Ray Serve is not running here; start it with `multimoe serve`")
    return client


def _application(config: Config, name: str, expert: str) -> Config:
    for application in config["applications"]:
        if application["name"] == name:
            found: Config = application
            return found
    known = ", ".join(sorted(spec.name for spec in _roster_of(config)))
    raise NotFound(f"no expert {expert!r}; there are: {known}")


def _deployment(application: Config, name: str) -> Config:
    found: Config = next(d for d in application["deployments"] if d["name"] == name)
    return found


def _gate(config: Config) -> Config:
    return _deployment(next(a for a in config["applications"] if a["name"] == GATE_APP), GATE)


def _roster_of(config: Config) -> tuple[ExpertSpec, ...]:
    return tuple(ExpertSpec.model_validate(spec) for spec in _gate(config)["user_config"]["experts"])


def _set_gate(config: Config, version: int | None = None, experts: tuple[ExpertSpec, ...] | None = None) -> None:
    gate = _gate(config)
    kept = gate["user_config"]["version"] if version is None else version
    gate["user_config"] = gate_user_config(kept, _roster_of(config) if experts is None else experts)


def _state(details: Config) -> ExpertState:
    """What the controller says of one application, in the words users see."""
    if not details:
        return ExpertState(state="down", message="not deployed")
    deployment = details["deployments"].get(EXPERT, {})
    replicas = [r for r in deployment.get("replicas", []) if r["state"] == "RUNNING"]
    config = deployment.get("deployment_config", {})
    scaling = config.get("autoscaling_config") or {}
    low, high = (scaling.get(key, config.get("num_replicas") or 0) for key in ("min_replicas", "max_replicas"))
    status, message = details["status"], details.get("message") or deployment.get("message") or ""
    if replicas:
        state = "ready"
    elif status in ("DEPLOY_FAILED", "UNHEALTHY", "DELETING"):
        state = "down"
    else:
        state = "asleep" if low == 0 and status == "RUNNING" else "starting"
    nodes = tuple(sorted({f"{r['node_ip']}/{r['node_id'][:8]}" for r in replicas}))
    return ExpertState.model_validate(
        {
            "state": state,
            "replicas": len(replicas),
            "min_replicas": low,
            "max_replicas": high,
            "nodes": nodes,
            "message": message if state == "down" else "",
        }
    )


def _own_error(error: RayTaskError, name: str) -> MultimoeError:
    cause = error.cause
    if isinstance(cause, MultimoeError):
        return cause
    return ExpertFailed(f"{name!r} failed with {type(cause).__name__}; its log has the details")
