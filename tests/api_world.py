"""A whole gateway in one process for tests: real store, registry, mixture and media; small experts, a gate one can set.

The experts are classes as anybody would add them, named in the specs below.
"""

import asyncio
import base64
import io
import threading
import time
import wave
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from gateway.api.app import Services, build_api
from gateway.cluster import GateState
from gateway.deployment.local import LocalCluster
from gateway.reading.decoding import Decoders
from gateway.reading.fetch import Fetcher
from gateway.services import open_store
from multimoe.checkpoint import Manifest, Registry
from multimoe.config import Catalog, ExpertSpec, parse
from multimoe.decision import Choice, Considered, Decision, Policy
from multimoe.embedding import CONCEPT, Embedding, Vector
from multimoe.errors import CheckpointError, NoExpert
from multimoe.expert import Delta, Expert
from multimoe.journal import Trial
from multimoe.messages import ChatRequest
from multimoe.mixture import Mixture
from multimoe.outputs import Label, Labels, Segment, Transcript
from multimoe.quality import Learned
from multimoe.reply import Routed

CATALOG: dict[str, Any] = {
    "gate": {"encoders": {"text": {"backend": "multimoe.encoder:TextEncoder", "revision": "t1"}}},
    "presets": {"top1": {"top_k": 1, "description": "The best one alone."}},
    "experts": [
        {
            "name": name,
            "backend": backend,
            "inputs": inputs,
            "output": output,
            "card": {"description": f"About {name}."},
            "cost": cost,
            "options": options,
        }
        for name, backend, inputs, output, cost, options in (
            ("parrot", "experts.echo:Echo", ["text"], "text", 0.001, {}),
            ("sloth", "api_world:Sloth", ["text"], "text", 0.0, {}),
            ("broken", "api_world:Broken", ["text"], "text", 0.0, {}),
            ("eye", "api_world:Eye", ["image"], "labels", 0.0002, {"api_key": "secret-key"}),
            ("ear", "api_world:Ear", ["audio"], "transcript", 0.0, {}),
        )
    ],
}


class Sloth(Expert):
    """Says one word, then nothing for a long time. Counts how many it is answering."""

    answering = 0

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        Sloth.answering += 1
        try:
            yield Delta(text="well ")
            await asyncio.sleep(60)
            yield Delta(text="then", finish="stop")
        finally:
            Sloth.answering -= 1


class Broken(Expert):
    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        raise RuntimeError("secret detail in /usr/lib/secret.py")
        yield Delta()


class Eye(Expert):
    """Knows how large a picture is."""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        height, width, _ = request.images[0].pixels.shape
        size = Label(name=f"{width}x{height}", probability=0.9)
        yield Delta(output=Labels(space="sizes", labels=(size,)), finish="stop")


class Ear(Expert):
    """Knows how long a recording is."""

    async def answer(self, request: ChatRequest) -> AsyncIterator[Delta]:
        seconds = request.audios[0].seconds
        said = Segment(start=0.0, end=seconds, text=f"{seconds:.1f} seconds")
        yield Delta(output=Transcript(segments=(said,), language="en"), finish="stop")


@dataclass
class SetGate:
    """Picks `picks` (those the policy allows), all with the same weight; the first expert that can read it else."""

    specs: Sequence[ExpertSpec] = ()
    picks: tuple[str, ...] = ()
    version: int = 0
    trial: Trial | None = None
    trial_error: str = ""
    broken_versions: set[int] = field(default_factory=set)
    failure: Exception | None = None
    policies: list[Policy] = field(default_factory=list)
    configured: list[int] = field(default_factory=list)

    async def decide(self, request: ChatRequest, policy: Policy) -> Routed:
        self.policies.append(policy)
        if self.failure is not None:
            raise self.failure
        able = [s.name for s in self.specs if s.inputs & request.modalities]
        able = [n for n in able if n in (policy.experts or able) and n not in policy.exclude]
        if not able:
            raise NoExpert("no expert reads this; add one to the catalog", "messages")
        picked = [name for name in (self.picks or able[:1]) if name in able][: policy.top_k or 16] or able[:1]
        share = 1 / len(able)
        decision = Decision(
            chosen=tuple(Choice(expert=n, probability=share, quality=0.5, weight=1 / len(picked)) for n in picked),
            considered=tuple(Considered(expert=n, probability=share, quality=0.5) for n in able),
            ineligible={s.name: "reads something else" for s in self.specs if s.name not in able},
            propensity=0.25,
            explored=False,
            strategy="softmax",
            seed=1,
            gate_version=self.version if policy.gate is None else policy.gate,
            modalities=tuple(m for m in ("text", "image", "audio") if m in request.modalities),
            policy=policy,
            reasons=("it was set so",),
            timing_ms={"embed": 1.0, "route": 0.5},
        )
        return Routed(decision, (await self.embed(request)).to_bytes())

    async def embed(self, request: ChatRequest) -> Embedding:
        vector = np.zeros(CONCEPT, np.float32)
        return Embedding({"text": Vector(vector, vector)}, {"text": "t1"})

    async def embed_texts(self, texts: list[str]) -> list[list[float]]:
        return [[float(len(text))] + [0.0] * (CONCEPT - 1) for text in texts]

    async def state(self) -> GateState:
        if self.failure is not None:
            raise self.failure
        return GateState(
            version=self.version, trial=self.trial, trial_error=self.trial_error, encoder_revisions={"text": "t1"}
        )

    async def configure(self, version: int, experts: Sequence[ExpertSpec], trial: Trial | None) -> None:
        self.configured.append(version)
        if version in self.broken_versions:
            raise CheckpointError(f"gate version {version} is damaged; serve another")
        self.version, self.specs, self.trial = version, tuple(experts), trial


class World:
    """`app` and everything behind it, under `home`."""

    def __init__(self, home: Path, fetcher: Fetcher | None = None, **changes: Any) -> None:
        self.catalog: Catalog = parse({**CATALOG, "home": str(home), **changes})
        home.mkdir(parents=True, exist_ok=True)
        self.gate = SetGate(self.catalog.experts)
        self.trained: list[str] = []
        self.cluster = LocalCluster(self.catalog.experts, lambda uri: Path(uri), self.gate, self._train)
        self.log = open_store(self.catalog)
        self.registry = Registry(self.catalog.gates)
        self.services = Services(
            self.catalog,
            self.cluster,
            self.log,
            self.registry,
            Mixture(self.cluster, self.cluster),
            Decoders(self.catalog.limits),
            fetcher or Fetcher(self.catalog.media),
        )
        self.app: FastAPI = build_api(self.services)

    def client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", **options)

    def with_log(self, log: Any) -> FastAPI:
        return build_api(replace(self.services, log=log))

    def write_version(self) -> int:
        return self.registry.write(Learned().rows(["parrot"]), Manifest(reason="better")).version

    async def _train(self, job: str) -> None:
        self.trained.append(job)
        await asyncio.to_thread(self.log.update_job, job, 0.5, "halfway")
        await asyncio.to_thread(self.log.finish_job, job, "done", {"version": 1})


def said(text: str, **body: Any) -> dict[str, Any]:
    return {"model": "multimoe", "messages": [{"role": "user", "content": text}], **body}


def png(width: int = 12, height: int = 8) -> str:
    """A picture as base64."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def wav(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(b"\x10\x00" * int(16_000 * seconds))
    return file.getvalue()


def image_part(data: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data or png()}"}}


def audio_part(data: bytes | None = None, format: str = "wav") -> dict[str, Any]:
    encoded = base64.b64encode(data or wav()).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": format}}


@contextmanager
def served(world: World, port: int = 0) -> Iterator[str]:
    """The base URL of `world` on that port of this machine, or on a free one."""
    server = uvicorn.Server(uvicorn.Config(world.app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join(10)


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
