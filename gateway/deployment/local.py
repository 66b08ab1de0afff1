"""The one-process mode: gate and experts in this very process, behind the same protocol as a cluster of machines.

An expert is loaded when it is first asked. There is one of each, so nothing scales; for that there is Ray.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, cast

from gateway.cluster import ExpertState, GateState, refuse_other_kind
from multimoe.backends import load_expert
from multimoe.config import ExpertSpec
from multimoe.decision import Policy
from multimoe.embedding import Embedding
from multimoe.errors import Conflict, ExpertFailed, MultimoeError, NotFound
from multimoe.expert import Delta, Expert, FindWeights, NextToken, token_expert
from multimoe.journal import Trial
from multimoe.messages import ChatRequest
from multimoe.reply import Routed

if TYPE_CHECKING:  # loads torch, which this module itself does not need
    from gateway.deployment.gate_service import GateService

logger = logging.getLogger(__name__)

Train = Callable[[str], Awaitable[None]]


class Router(Protocol):
    """A gate as this mode needs it. `configure` raises CheckpointError and NotFound and then changes nothing."""

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed: ...

    async def embed(self, request: ChatRequest) -> Embedding: ...

    async def embed_texts(self, texts: list[str]) -> list[list[float]]: ...

    async def state(self) -> GateState: ...

    async def configure(self, version: int, experts: Sequence[ExpertSpec], trial: Trial | None) -> None: ...


class ThreadedGate:
    """The product's gate as a `Router`. One thread, because its models are not to run beside themselves."""

    def __init__(self, service: "GateService") -> None:
        self.service = service
        self._thread = ThreadPoolExecutor(1, "gate")

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        routed: Routed = await self._run(self.service.decide, request, policy)
        return routed

    async def embed(self, request: ChatRequest) -> Embedding:
        (embedding,) = await self._run(self.service.encoders.embed, [request])
        return cast(Embedding, embedding)

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        return [[float(x) for x in vector] for vector in await self._run(self.service.encoders.embed_texts, texts)]

    async def state(self) -> GateState:
        return self.service.state()

    async def configure(self, version: int, experts: Sequence[ExpertSpec], trial: Trial | None) -> None:
        await self._run(self.service.configure, version, experts, trial)

    async def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


class LocalCluster:
    """`Cluster` in one process. `train` gets the job's id and runs beside the answers; without it there is none."""

    def __init__(
        self, specs: Sequence[ExpertSpec], weights: FindWeights, router: Router, train: Train | None = None
    ) -> None:
        self.weights = weights
        self.router = router
        self._specs = {spec.name: spec for spec in specs}
        self._experts: dict[str, Expert] = {}
        self._loading: dict[str, asyncio.Lock] = {}
        self._train = train
        self._jobs: set[asyncio.Task[None]] = set()

    async def roster(self) -> tuple[ExpertSpec, ...]:
        return tuple(self._specs.values())

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        return await self.router.decide(request, policy)

    async def ask(self, expert: str, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        spec = self._spec(expert)
        try:
            answer: Any = (await self._loaded(spec)).answer(request)
            async with aclosing(answer):
                async for delta in answer:
                    yield delta
        except MultimoeError:
            raise
        except Exception as error:  # the contract: anything else is a failure of the expert, not of the request
            logger.exception("expert failed", extra={"expert": expert, "request_id": request.id})
            raise ExpertFailed(f"expert {expert!r} failed; the log has the details") from error

    async def next_tokens(self, expert: str, request: ChatRequest, written: tuple[int, ...], top: int) -> NextToken:
        spec = self._spec(expert)
        try:
            return await token_expert(await self._loaded(spec)).next_tokens(request, written, top)
        except MultimoeError:
            raise
        except Exception as error:
            logger.exception("expert failed", extra={"expert": expert, "request_id": request.id})
            raise ExpertFailed(f"expert {expert!r} failed; the log has the details") from error

    async def embed(self, request: ChatRequest) -> Embedding:
        return await self.router.embed(request)

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        return await self.router.embed_texts(texts)

    async def expert_states(self) -> dict[str, ExpertState]:
        return {name: self._state(name) for name in self._specs}

    async def scale(self, expert: str, min_replicas: int, max_replicas: int) -> None:
        self._spec(expert)
        raise Conflict("one process has one replica of each expert; `multimoe serve` scales", code="not_scalable")

    async def add(self, spec: ExpertSpec) -> None:
        if spec.name in self._specs:
            raise Conflict(f"there is an expert {spec.name!r} already; choose another name", "name", "expert_exists")
        await self._loaded(spec)
        await self._rerostered({**self._specs, spec.name: spec})

    async def replace(self, spec: ExpertSpec) -> None:
        refuse_other_kind(self._spec(spec.name), spec)
        edition = await asyncio.to_thread(load_expert, spec, self.weights)
        await self._rerostered({**self._specs, spec.name: spec})
        self._experts[spec.name] = edition

    async def remove(self, expert: str) -> None:
        self._spec(expert)
        if len(self._specs) == 1:
            raise Conflict(f"{expert!r} is the last expert; add another one first", "name", "last_expert")
        await self._rerostered({name: spec for name, spec in self._specs.items() if name != expert})
        self._experts.pop(expert, None)

    async def gate_state(self) -> GateState:
        return await self.router.state()

    async def metrics(self) -> str:
        return ""

    async def serve_gate(self, version: int, trial: Trial | None = None) -> None:
        await self.router.configure(version, tuple(self._specs.values()), trial)

    async def train(self, job: str) -> None:
        if self._train is None:
            raise Conflict("this process cannot retrain; `multimoe serve` does", code="not_trainable")
        task = asyncio.ensure_future(self._train(job))
        self._jobs.add(task)  # a task nobody holds may be collected while it runs
        task.add_done_callback(self._jobs.discard)

    def _spec(self, expert: str) -> ExpertSpec:
        if expert not in self._specs:
            there = ", ".join(self._specs)
            raise NotFound(f"no expert {expert!r}; there are: {there}", "name", "expert_not_found")
        return self._specs[expert]

    def _state(self, expert: str) -> ExpertState:
        up = expert in self._experts
        return ExpertState(state="ready" if up else "asleep", replicas=int(up), min_replicas=0, max_replicas=1)

    async def _loaded(self, spec: ExpertSpec) -> Expert:
        async with self._loading.setdefault(spec.name, asyncio.Lock()):
            if spec.name not in self._experts:
                self._experts[spec.name] = await asyncio.to_thread(load_expert, spec, self.weights)
            return self._experts[spec.name]

    async def _rerostered(self, specs: dict[str, ExpertSpec]) -> None:
        state = await self.router.state()
        await self.router.configure(state.version, tuple(specs.values()), state.trial)
        self._specs = specs
