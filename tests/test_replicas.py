"""What becomes of a call on Ray when a replica dies, when there is none, when nobody waits any more; with no Ray."""

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from api_world import CATALOG

from multimoe.config import ExpertSpec, FaultSpec, parse
from multimoe.errors import ExpertFailed, ReplicaLost, Unavailable
from multimoe.expert import Delta
from multimoe.messages import ChatRequest, Message, TextPart

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, on import
    from ray.exceptions import ActorDiedError
    from ray.serve.exceptions import BackPressureError

    from gateway.deployment import ray_cluster
    from gateway.deployment.ray_cluster import RayCluster
    from gateway.deployment.serving import GATE_APP, expert_app_name

ASKED = ChatRequest("chatcmpl-1", (Message("user", (TextPart("hi"),)),))
DIED = ActorDiedError()
FULL = BackPressureError(1, 1)


class Call:
    """What a handle gives for one call: an awaitable, or a stream once a replica has taken it."""

    def __init__(self, work: Callable[[], Awaitable[Any]], deltas: list[Any]) -> None:
        self.work = work
        self.deltas = deltas
        self.cancelled = False

    def __await__(self) -> Any:
        return self.work().__await__()

    async def _fetch_future_result_async(self) -> Any:
        return await self.work()

    async def __aiter__(self) -> Any:
        for delta in self.deltas:
            if isinstance(delta, Exception):
                raise delta
            yield delta

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Stands for a deployment's handle: every method answers as the script says, in order."""

    def __init__(self, *script: Any, deltas: list[Any] | None = None, replicas: int | None = 1) -> None:
        self.script = list(script)
        self.deltas = deltas or []
        self.replicas = replicas
        self.calls: list[Call] = []
        self._router = type("R", (), {"_asyncio_router": type("A", (), {"request_router": self})()})()

    @property
    def curr_replicas(self) -> dict[int, None]:
        return dict.fromkeys(range(self.replicas or 0))

    def running_replicas_populated(self) -> bool:
        return self.replicas is not None

    def options(self, **_: Any) -> "Handle":
        return self

    def __getattr__(self, name: str) -> "Handle":
        return self

    def remote(self, *_: Any) -> Call:
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]

        async def work() -> Any:
            if isinstance(said, Exception):
                raise said
            if said is Ellipsis:
                await asyncio.Event().wait()
            return said

        self.calls.append(Call(work, self.deltas))
        return self.calls[-1]


def cluster(home: Path, **faults: Any) -> RayCluster:
    tree = {**CATALOG, "home": str(home), "faults": FaultSpec(**faults).model_dump()}
    made = RayCluster(parse(tree))
    made._roster = made.catalog.experts
    return made


def put(made: RayCluster, handle: Handle, expert: str = "parrot") -> Handle:
    made._handles[expert_app_name(expert)] = handle  # type: ignore[assignment]
    return handle


async def heard(made: RayCluster) -> list[Delta]:
    return [delta async for delta in made.ask("parrot", ASKED)]


async def test_a_gate_that_dies_while_it_decides_is_asked_again(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    gate = made._handles[GATE_APP] = Handle(DIED, DIED, [[1.0]])  # type: ignore[assignment]
    assert await made.embed_texts(["hi"]) == [[1.0]]
    assert len(gate.calls) == 3


async def test_a_gate_that_keeps_dying_is_given_up_and_without_retries_at_once(tmp_path: Path) -> None:
    for retries, calls in ((0.1, 3), (0.0, 1)):
        made = cluster(tmp_path, retries=retries)
        gate = made._handles[GATE_APP] = Handle(DIED)  # type: ignore[assignment]
        with pytest.raises(Unavailable, match="being restarted"):
            await made.embed_texts(["hi"])
        assert len(gate.calls) == calls


async def test_who_is_asked_by_name_needs_no_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "STALE_SECONDS", 0.05)
    made = cluster(tmp_path)
    for dead in (DIED, ...):
        made._handles[GATE_APP] = Handle(dead)  # type: ignore[assignment]
        made._roster_seen = float("-inf")
        assert next(spec.name for spec in await made.roster()) == "parrot"


async def test_a_gateway_that_knows_no_roster_yet_says_so(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    made._roster = ()
    made._handles[GATE_APP] = Handle(DIED)  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        await made.roster()


async def test_a_replica_that_dies_is_told_from_an_expert_that_fails(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    for handle in (Handle(DIED), Handle(None, deltas=[Delta(text="one"), DIED])):
        put(made, handle)
        with pytest.raises(ReplicaLost, match="parrot"):
            await heard(made)
        assert handle.calls[0].cancelled
    put(made, Handle(FULL))
    with pytest.raises(Unavailable, match="more questions waiting"):
        await heard(made)
    assert not +made._in_flight


async def test_an_expert_without_a_replica_is_not_waited_for(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    handle = put(made, Handle(..., replicas=0))
    with pytest.raises(ExpertFailed, match="no replica") as failed:
        await heard(made)
    assert not isinstance(failed.value, ReplicaLost)
    assert handle.calls[0].cancelled


@pytest.mark.parametrize("asleep", [True, False])
async def test_one_that_is_busy_or_asleep_is_waited_for(tmp_path: Path, asleep: bool) -> None:
    made = cluster(tmp_path)
    if asleep:
        sleeper = made.catalog.experts[0].model_dump(mode="json")
        sleeper["serve"]["autoscaling_config"]["min_replicas"] = 0
        made._roster = (ExpertSpec.model_validate(sleeper),)
    put(made, Handle(..., replicas=0 if asleep else 2))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(heard(made), 1.0)


async def test_who_no_longer_waits_takes_the_question_back(tmp_path: Path) -> None:
    made = cluster(tmp_path)
    handle = put(made, Handle(...))
    for work in (heard(made), made.next_tokens("parrot", ASKED, (), 1)):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work, 0.05)
        assert handle.calls[-1].cancelled
