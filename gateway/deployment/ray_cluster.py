"""The cluster the gateway runs on: Ray Serve applications looked up by name, changed through one declarative config.

The Serve controller keeps the only copy of that config. A change reads it, edits it and hands it back, so that nothing
has to be kept in step: what runs is what the controller has.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import ServeDeploySchema

from gateway.cluster import ExpertState, GateState, refuse_other_kind
from gateway.deployment.metrics import Metrics, scrape
from gateway.deployment.render import Config, expert_application, gate_user_config
from gateway.deployment.serving import EXPERT, GATE, GATE_APP, expert_app_name
from gateway.locks import alone
from multimoe.breaker import RetryBudget, may_sleep
from multimoe.checkpoint import Registry
from multimoe.config import Autoscaling, Catalog, ExpertSpec
from multimoe.decision import Policy
from multimoe.embedding import Embedding
from multimoe.errors import Conflict, ExpertFailed, MultimoeError, NoReplica, NotFound, ReplicaLost, Unavailable
from multimoe.expert import Delta, NextToken
from multimoe.feedback import FeedbackLog
from multimoe.journal import Trial
from multimoe.messages import ChatRequest
from multimoe.reply import Routed
from multimoe.routing import loads

GONE = (RayActorError, RayServeException, RayError)
GATE_TRIES = 3  # a decision may be asked for again: nothing has been answered yet
ASSIGN_SECONDS = 0.3  # without a replica after that, it is looked up whether there is one at all
STALE_SECONDS = 2.0  # that the roster is waited for; then the last one known has to do
UPGRADE_SECONDS = 300.0  # for a new edition of an expert to come up
FRESH = 1.0  # seconds for which a look at the controller or at the gate's roster is good
SETTLE_SECONDS = 60.0
GATE_SECONDS = 5.0  # for every replica of the gate to say something short
SETTLED_EVERY = 0.5
LOCK = "serve.lock"  # in the catalog's home: held while the deployed config is read, changed and handed back
UNDER_WAY_SECONDS = 2.0  # from a decision to its expert; a call to an application that is gone would wait for nothing


class RayCluster:
    """`Cluster` on Ray Serve. Cheap to make; every gateway replica and every retraining has its own."""

    def __init__(
        self, catalog: Catalog, clock: Callable[[], float] = time.monotonic, log: FeedbackLog | None = None
    ) -> None:
        self.catalog = catalog
        self.log = log
        self.registry = Registry(catalog.gates)
        self.clock = clock
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._roster: tuple[ExpertSpec, ...] = ()
        self._revision = ""
        self._roster_seen = float("-inf")
        self._seen: tuple[float, dict[str, Any]] = (float("-inf"), {})
        self._changing = asyncio.Lock()
        self._in_flight: Counter[str] = Counter()
        self._metrics = Metrics()
        self._retries = RetryBudget(catalog.faults.retries)
        self.faulted = self._metrics.faulted

    async def roster(self) -> tuple[ExpertSpec, ...]:
        """While the gate is away the last one known: who is asked by name needs no gate."""
        if self.clock() - self._roster_seen > FRESH:
            try:
                async with asyncio.timeout(STALE_SECONDS if self._roster else None):
                    await self._look_up_roster()
            except (Unavailable, TimeoutError):
                if not self._roster:
                    raise
                self._roster_seen = self.clock()
        return self._roster

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        routed: Routed
        routed, revision = await self._call_gate("decide", request, policy, await self._load())
        known = {spec.name for spec in self._roster}  # the gate may decide for a newcomer just before it says so
        if revision != self._revision or not known.issuperset(c.expert for c in routed.decision.chosen):
            await self._look_up_roster()
        self._metrics.decided(routed.decision)
        return routed

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = await self._call_gate("embed_texts", texts)
        return vectors

    async def embed(self, request: ChatRequest) -> Embedding:
        """By the gate's encoders."""
        (embedding,) = await self._call_gate("embed", [request])
        return Embedding.from_bytes(embedding)

    async def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Stream one expert. Closing the iterator cancels the call in its replica."""
        handle: Any = self._handle(expert_app_name(expert), EXPERT).options(stream=True)
        stream: DeploymentResponseGenerator[Delta | MultimoeError] = handle.answer.remote(request)
        began, status = self.clock(), "error"
        try:
            with self._asking(expert):
                await self._assigned(expert, stream)
                async for delta in stream:
                    if isinstance(delta, MultimoeError):
                        raise delta
                    yield delta
            status = "ok"
        except (GeneratorExit, asyncio.CancelledError):
            status = "cancelled"
            raise
        finally:
            self._metrics.asked(expert, status, self.clock() - began)
            if status != "ok":
                stream.cancel()  # type: ignore[no-untyped-call]  # Ray ships it without types

    async def next_tokens(self, expert: str, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        """One step of one expert, in whichever replica; each keeps what it has read for a while."""
        handle: Any = self._handle(expert_app_name(expert), EXPERT)
        with self._asking(expert):
            listed: NextToken = await _or_cancel(handle.next_tokens.remote(request, written, top))
        return listed

    async def _assigned(self, expert: str, stream: Any) -> None:
        """Once a replica has taken the question. Raises NoReplica as soon as it is clear that there is none.

        One that has replicas, only busy ones, is waited for; so is one that sleeps, for it wakes.
        """
        spec = next((spec for spec in self._roster if spec.name == expert), None)
        taken = asyncio.ensure_future(stream._fetch_future_result_async())
        try:
            while spec is None or not may_sleep(spec):
                await asyncio.wait({taken}, timeout=ASSIGN_SECONDS)
                if taken.done():
                    break
                if await self._has_none(expert):
                    raise NoReplica(f"no replica of expert {expert!r} is up; one is being started")
            await taken
        finally:
            taken.cancel()

    async def _has_none(self, expert: str) -> bool:
        """Whether no replica is up, by what this gateway has heard of them, else by what the controller says."""
        if (known := _replicas_known(self._handle(expert_app_name(expert), EXPERT))) is not None:
            return known == 0
        try:
            async with asyncio.timeout(ASSIGN_SECONDS):
                state = _state((await self._details())["applications"].get(expert_app_name(expert), {}))
        except (RayError, RayServeException, TimeoutError):  # the controller is away, too: nobody can say
            return False
        return state.state in ("starting", "down")

    @contextmanager
    def _asking(self, expert: str) -> Iterator[None]:
        """A call to an expert: counted while it is under way, and what Ray says of its failure in our own words."""
        self._in_flight[expert] += 1
        try:
            yield
        except RayTaskError as error:
            raise _own_error(error, expert) from error
        except DeploymentUnavailableError as error:
            raise NoReplica(f"expert {expert!r} is not deployed now; ask another") from error
        except BackPressureError as error:
            raise Unavailable(f"expert {expert!r} has more questions waiting than it takes; try again soon") from error
        except GONE as error:
            raise ReplicaLost(f"a replica of expert {expert!r} went away while answering; ask again") from error
        finally:
            self._in_flight[expert] -= 1

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
            _serve_experts(config, tuple(_scaled(spec, expert, scaled) for spec in _roster_of(config)))

        await self._change(change)

    async def add(self, spec: ExpertSpec) -> None:
        await self._change(lambda config: enlist(config, spec, str(self.catalog.weights)))

    async def replace(self, spec: ExpertSpec) -> None:
        """The new edition starts beside the one before, which goes when it is up. Then the gate reads its card.

        One that does not come up is taken back.
        """
        name, weights = expert_app_name(spec.name), str(self.catalog.weights)
        before: list[Config] = []

        def swap(config: Config) -> None:
            _application(config, name, spec.name)
            known = next(known for known in _roster_of(config) if known.name == spec.name)
            refuse_other_kind(known, spec)
            before[:] = [app for app in config["applications"] if app["name"] == name]
            _put_application(config, expert_application(spec, weights))

        def tell(config: Config) -> None:
            _serve_experts(config, tuple(spec if s.name == spec.name else s for s in _roster_of(config)))

        await self._change(swap)
        if why := await self._not_up(name):
            await self._change(lambda config: _put_application(config, before[0]))
            raise Unavailable(f"the new edition of {spec.name!r} did not come up, the one before goes on: {why}")
        await self._change(tell)

    async def _not_up(self, application: str) -> str:
        """Once an application runs as it was last deployed: "", else why it does not."""
        deadline = self.clock() + UPGRADE_SECONDS
        while self.clock() < deadline:
            await asyncio.sleep(SETTLED_EVERY)
            with suppress(RayError):  # the controller may be away for a moment
                details = await asyncio.to_thread(lambda: _controller().get_serve_details())
                found = details["applications"].get(application, {})
                told = [d.get("message", "") for d in found.get("deployments", {}).values()]
                if found.get("status") == "RUNNING":
                    return ""
                if found.get("status") in ("DEPLOY_FAILED", "UNHEALTHY") or any("rolled back" in m for m in told):
                    return found.get("message") or " ".join(told) or "see its log"
        return f"not within {UPGRADE_SECONDS:g} s"

    async def remove(self, expert: str) -> None:
        """First the gate forgets it, and only when what was routed before has reached it does it go."""

        def forget(config: Config) -> None:
            _application(config, expert_app_name(expert), expert)
            kept = tuple(spec for spec in _roster_of(config) if spec.name != expert)
            if not kept:
                raise Conflict(f"{expert!r} is the last expert; add another one before removing it")
            _serve_experts(config, kept)

        def delete(config: Config) -> None:
            config["applications"] = [a for a in config["applications"] if a["name"] != expert_app_name(expert)]

        await self._change(forget)
        await asyncio.sleep(UNDER_WAY_SECONDS)
        await self._change(delete)

    async def gate_state(self) -> GateState:
        state: GateState = await self._call_gate("state")
        return state

    async def serve_gate(self, version: int, trial: Trial | None = None) -> None:
        """Raises CheckpointError or NotFound before anything changes, Unavailable when the gate does not take it up."""
        for wanted in [version, *([trial.version] if trial else [])]:
            await asyncio.to_thread(self.registry.load, wanted)
        before = await self.gate_state()
        await self._change(lambda config: _serve_versions(config, version, trial))
        now: list[GateState] = await self._call_every_gate("state")
        if wrong := [state for state in now if state.version != version or state.trial_error]:
            await self._change(lambda config: _serve_versions(config, before.version, before.trial))
            told = f" ({wrong[0].trial_error})" if wrong[0].trial_error else ""
            raise Unavailable(f"the gate could not take up version {version}{told} and serves {before.version}")

    async def metrics(self) -> str:
        return await scrape()

    async def train(self, job: str) -> None:
        from gateway.deployment.trainer import run_training

        run_training.remote(self.catalog.model_dump(mode="json"), job)

    async def _load(self) -> dict[str, float]:
        """The share of each expert's room that this gateway's requests take; nothing while nobody is asked anything."""
        busy = {name: count for name, count in self._in_flight.items() if count > 0}
        if not busy:
            return {}
        states: dict[str, ExpertState] = {}
        with suppress(RayError):  # without the controller one replica each is what is sure
            states = await self.expert_states()
        experts = [spec for spec in await self.roster() if spec.name in busy]
        replicas = {name: states[name].replicas if name in states else 1 for name in busy}
        return loads(experts, busy, replicas, self.catalog.gate.capacity_factor)

    def _handle(self, application: str, deployment: str) -> DeploymentHandle[Any]:
        if application not in self._handles:
            handle = serve.get_deployment_handle(deployment, app_name=application, _check_exists=False)
            self._handles[application] = handle
        return self._handles[application]

    async def _call_gate(self, method: str, *args: Any) -> Any:
        """What a replica that dies was asked is put to another, or to the next one that comes up."""
        self._retries.earn()
        for tried in range(1, GATE_TRIES + 1):
            try:
                return await _or_cancel(getattr(self._handle(GATE_APP, GATE), method).remote(*args))
            except RayTaskError as error:
                raise _own_error(error, "gate") from error
            except BackPressureError as error:
                raise Unavailable("the gate has more requests waiting than it takes; try again soon") from error
            except GONE as error:
                if tried == GATE_TRIES or not self._retries.take():
                    raise Unavailable("the gate is being restarted; try again in a few seconds") from error
                self._metrics.faulted("gate", "retried")
        raise AssertionError("unreachable: the last try returns or raises")

    async def _call_every_gate(self, method: str) -> list[Any]:
        """What each replica of the gate says. Raises Unavailable, also where one is about to go."""
        handle: Any = self._handle(GATE_APP, GATE)
        try:
            async with asyncio.timeout(GATE_SECONDS):
                said: list[Any] = await handle.broadcast(method).results_async()
        except (*GONE, TimeoutError) as error:
            raise Unavailable("not every replica of the gate answers; try again in a few seconds") from error
        return said

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
        """Edit the deployed config, hand it back, and wait until the gate has taken up what concerns it.

        One change at a time, on the whole cluster: each hands back what it read.
        """
        async with self._changing, alone(self.catalog.home / LOCK, self.log):
            config = await asyncio.to_thread(deployed_config)
            edit(config)
            await asyncio.to_thread(deploy, config)
            self._seen = (float("-inf"), {})
            await self._settled(_gate(config)["user_config"]["revision"])

    async def _settled(self, revision: str) -> None:
        """Once every replica of the gate has taken up that revision. Raises Unavailable."""
        deadline = self.clock() + SETTLE_SECONDS
        while True:
            with suppress(Unavailable):  # one may be restarting just now
                said = await self._call_every_gate("roster")
                if all(theirs == revision for _, theirs in said) and not await asyncio.to_thread(_a_gate_is_changing):
                    break
            if self.clock() > deadline:
                raise Unavailable(f"the gate did not take up the change in {SETTLE_SECONDS:g} s; see its log")
            await asyncio.sleep(0.05)
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


def _a_gate_is_changing() -> bool:
    """Whether a replica of the gate is about to take something up; meanwhile nobody reaches it."""
    gate = _controller().get_serve_details()["applications"][GATE_APP]["deployments"][GATE]
    return any(replica["state"] == "UPDATING" for replica in gate["replicas"])


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
    _serve_experts(config, (*experts, spec))


def deploy(config: Config) -> None:
    """Hand the whole config to the controller; it works out what changed. Returns before replicas are up."""
    _controller().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)


async def _or_cancel(response: Any) -> Any:
    """What a replica returns. Who stops waiting for it stops it, or takes it out of the queue."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def _replicas_known(handle: Any) -> int | None:
    """How many replicas a call could go to now; None where this process has not heard yet.

    Serve has no public word for it, and without it a call waits for ever. Where Ray moves it, the controller is asked.
    """
    if not handle.running_replicas_populated():
        return None
    router = getattr(getattr(handle._router, "_asyncio_router", None), "request_router", None)
    replicas = getattr(router, "curr_replicas", None)
    return None if replicas is None else len(replicas)


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


def _put_application(config: Config, application: Config) -> None:
    """In the place of the one of that name."""
    config["applications"] = [application if a["name"] == application["name"] else a for a in config["applications"]]


def _deployment(application: Config, name: str) -> Config:
    found: Config = next(d for d in application["deployments"] if d["name"] == name)
    return found


def _gate(config: Config) -> Config:
    return _deployment(next(a for a in config["applications"] if a["name"] == GATE_APP), GATE)


def _roster_of(config: Config) -> tuple[ExpertSpec, ...]:
    return tuple(ExpertSpec.model_validate(spec) for spec in _gate(config)["user_config"]["experts"])


def _serve_experts(config: Config, experts: tuple[ExpertSpec, ...]) -> None:
    gate = _gate(config)
    trial = gate["user_config"]["trial"] and Trial.model_validate(gate["user_config"]["trial"])
    gate["user_config"] = gate_user_config(gate["user_config"]["version"], experts, trial)


def _scaled(spec: ExpertSpec, expert: str, scaling: Autoscaling) -> ExpertSpec:
    """`spec`, if it is that expert's, as it is scaled now: whoever asks it has to know whether it may sleep."""
    serve = spec.serve.model_copy(update={"num_replicas": None, "autoscaling_config": scaling})
    return spec.model_copy(update={"serve": serve}) if spec.name == expert else spec


def _serve_versions(config: Config, version: int, trial: Trial | None) -> None:
    _gate(config)["user_config"] = gate_user_config(version, _roster_of(config), trial)


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
