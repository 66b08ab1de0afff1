"""Versions on trial from end to end in one process: real gates, requests, ratings, journal and monitor."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_world import World, said
from worlds import embed_texts, request

from gateway.change import stages
from gateway.change.monitor import Monitor
from gateway.deployment import gate_service
from gateway.deployment.gate_service import GateService
from gateway.deployment.local import ThreadedGate
from multimoe.checkpoint import Manifest
from multimoe.decision import Policy
from multimoe.embedding import Embedding
from multimoe.errors import CheckpointError, Conflict
from multimoe.feedback import Rating
from multimoe.gate import Gate
from multimoe.journal import Step, Trial
from multimoe.messages import ChatRequest, Message, TextPart
from multimoe.offpolicy import Estimate
from multimoe.quality import Learned

CHAT = "/v1/chat/completions"
ASKED = ChatRequest("r", (Message("user", (TextPart("hi"),)),))
PROOF = {"gain_doubly_robust": Estimate(value=0.2, low=0.1, high=0.3, effective_sample_size=50, n=90)}
ROLLOUT = {"shadow_requests": 10, "canary_share": 0.5, "canary_ratings": 150, "watch_ratings": 60}


class Words:
    """Embeds by the words alone, as worlds do."""

    revisions = {"text": "t1"}
    embed_texts = staticmethod(embed_texts)

    def embed(self, requests: Sequence[ChatRequest]) -> list[Embedding]:
        return [request(text=one.text) for one in requests]


class Product(World):
    """Two echo experts, `left` and `right`; version 0 asks either alike, others by what they have learned."""

    def __init__(self, home: Path, **rollout: Any) -> None:
        experts = [
            {
                "name": name,
                "backend": "experts.echo:Echo",
                "inputs": ["text"],
                "output": "text",
                "card": {"description": f"Goes {name}."},
                "cost": cost,
            }
            for name, cost in (("left", 0.001), ("right", 0.0015))
        ]
        encoders = {"text": {"backend": "multimoe.encoder:TextEncoder", "revision": "t1"}}
        gate = {"encoders": encoders, "top_k": 1, "rollout": {**ROLLOUT, **rollout}}
        super().__init__(home, experts=experts, gate=gate)
        numbers = iter(range(10**6))
        self.service = GateService(self.catalog.gate, self.catalog.gates, Path, seed=lambda: next(numbers))
        self.service.configure(0, self.catalog.experts)
        self.cluster.router = ThreadedGate(self.service)
        self.time = datetime.now(UTC)
        self.monitor = Monitor(self.services, now=lambda: self.time)

    def version(self, proven: bool = True, **liked: float) -> int:
        """A version that likes experts by so much."""
        learned = Learned().rows(["left", "right"])
        learned.own[:, 0] = [liked.get("left", 0.0), liked.get("right", 0.0)]
        return self.registry.write(
            learned, Manifest(proven=proven, parent=self.registry.champion(), metrics=PROOF, created=self.time)
        ).version

    async def start(self, version: int, action: str, share: float = 0.0, watched: bool = False) -> None:
        told = {"at": datetime.now(UTC), "action": action, "version": version, "share": share, "watched": watched}
        await stages.take(self.cluster, self.registry, self.log, Step.model_validate(told))

    async def ask(self, count: int, score: Callable[[str], float] | None = None) -> list[dict[str, Any]]:
        """Ask so often; rate by who answered."""
        replies = []
        async with self.client() as client:
            for number in range(count):
                reply = await client.post(CHAT, json=said(f"question {number}"))
                assert reply.status_code == 200, reply.text
                replies.append(reply.json())
                if score is not None:
                    told = score(expert(reply.json()))
                    assert self.log.rate(
                        Rating(completion_id=reply.json()["id"], score=told, created=datetime.now(UTC))
                    )
        return replies

    async def until_moved(self, score: Callable[[str], float]) -> int:
        """How many answers are rated until the monitor takes a step; it looks after every tenth."""
        for asked in range(10, 310, 10):
            await self.ask(10, score)
            if await self.monitor.check():
                return asked
        raise AssertionError("it took no step")

    async def get(self, path: str = "/v1/gate") -> dict[str, Any]:
        async with self.client() as client:
            found: dict[str, Any] = (await client.get(path)).json()
        return found


def expert(reply: dict[str, Any]) -> str:
    name: str = reply["x_multimoe"]["experts"][0]["id"]
    return name.removeprefix("multimoe/")


@pytest.fixture
def product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Product]:
    monkeypatch.setattr(gate_service.Encoders, "load", lambda *_: Words())
    product = Product(tmp_path)
    yield product
    product.log.close()


async def test_in_shadow_the_champion_answers_and_the_other_is_counted(product):
    left, right = product.version(left=3.0), product.version(right=3.0)
    await product.start(left, "promoted")
    await product.start(right, "shadow")
    replies = await product.ask(9)
    assert {reply["x_multimoe"]["gate"]["version"] for reply in replies} == {left}
    assert await product.monitor.check() is None
    challenger = (await product.get())["challenger"]
    assert (challenger["version"], challenger["stage"], challenger["seen"]["requests"]) == (right, "shadow", 9)
    assert challenger["seen"]["shares"]["right"]["challenger"] > 0.8
    assert challenger["seen"]["cost"]["challenger"] > challenger["seen"]["cost"]["champion"]
    assert challenger["seen"]["gain"] > 0.1
    assert challenger["earned"] is None
    await product.ask(1)
    assert (await product.monitor.check()).action == "canary"


async def test_a_better_version_goes_all_the_way_to_champion(product):
    def likes_right(name: str) -> float:
        return float(name == "right")

    left, right = product.version(left=3.0), product.version(right=3.0)
    await product.start(left, "promoted")
    await product.ask(30, likes_right)
    await product.start(right, "shadow")
    taken = []
    for _ in range(60):
        await product.ask(10, likes_right)
        if step := await product.monitor.check():
            taken.append(step.action)
        if taken[-1:] == ["confirmed"]:
            break
    assert taken == ["canary", "promoted", "confirmed"]
    assert (await product.get())["version"] == right
    stages_ = {one["version"]: one["stage"] for one in (await product.get("/v1/gate/versions"))["data"]}
    assert stages_ == {0: "former", left: "former", right: "champion"}


async def test_a_worse_canary_is_withdrawn_by_its_ratings(product):
    left, right = product.version(left=3.0), product.version(right=3.0)
    await product.start(left, "promoted")
    await product.start(right, "canary", 0.5)
    assert await product.until_moved(lambda name: float(name == "left")) < 100
    gate = await product.get()
    assert (gate["version"], gate["challenger"]) == (left, None)
    told = await product.get(f"/v1/gate/versions/{right}")
    assert (told["stage"], told["aliases"]) == ("withdrawn", [])
    assert "earned less" in told["stage_reason"]
    replies = await product.ask(20)
    assert {reply["x_multimoe"]["gate"]["version"] for reply in replies} == {left}


async def test_a_canary_answers_its_share_and_says_so_with_the_mixture_s_propensity(product):
    left, right = product.version(left=3.0), product.version(right=3.0)
    await product.start(left, "promoted")
    await product.start(right, "canary", 0.5)
    replies = await product.ask(60)
    versions = [reply["x_multimoe"]["gate"]["version"] for reply in replies]
    assert 15 <= versions.count(right) <= 45
    for reply in replies:
        gate = reply["x_multimoe"]["gate"]
        assert gate["alias"] == ("canary" if gate["version"] == right else "champion")
        decision = product.log.interaction(reply["id"]).decision
        both = decision.contest
        assert decision.gate_version == gate["version"]
        assert decision.propensity == pytest.approx(0.5 * both.champion_chance + 0.5 * both.challenger_chance)
        # the champion's own chance of `right`, or the canary's of `left`, is exploration's small part alone
        assert decision.propensity < 0.6


async def test_the_champion_alone_answers_who_asks_for_it(product):
    left, right = product.version(left=3.0), product.version(right=3.0)
    await product.start(left, "promoted")
    await product.start(right, "canary", 0.5)
    async with product.client() as client:
        for alias, version in (("champion", left), ("challenger", right)):
            for _ in range(8):
                body = said("hi", x_multimoe={"gate": alias})
                gate = (await client.post(CHAT, json=body)).json()["x_multimoe"]["gate"]
                assert (gate["version"], gate["alias"]) == (version, alias)


@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_a_version_that_cannot_decide_is_withdrawn_at_once_and_no_request_fails(product, monkeypatch, share):
    bad = product.version(right=3.0)
    decide = Gate.decide

    def breaks(gate: Gate, *args: Any, **named: Any) -> Any:
        if gate.version == bad:
            raise ValueError("operands could not be broadcast")
        return decide(gate, *args, **named)

    monkeypatch.setattr(Gate, "decide", breaks)
    await product.start(bad, "canary" if share else "shadow", share)
    replies = await product.ask(12)  # each is a 200
    assert {reply["x_multimoe"]["gate"]["version"] for reply in replies} == {0}
    failed = [i for i in product.log.interactions() if i.decision.contest is not None]
    assert len(failed) == 1  # it is not asked again
    assert failed[0].decision.propensity == failed[0].decision.contest.champion_chance
    step = await product.monitor.check()
    assert (step.action, step.version) == ("withdrawn", bad)
    assert "ValueError: operands could not be broadcast" in step.reason
    assert (await product.get())["challenger"] is None


async def test_a_failure_on_a_request_without_a_record_ends_the_trial_too(product, monkeypatch):
    bad = product.version(right=3.0)
    await product.start(bad, "shadow")
    monkeypatch.setattr(product.service.serving.challenger, "decide", lambda *_: 1 / 0)
    async with product.client() as client:
        assert (await client.post("/v1/route", json=said("hi"))).status_code == 200
    assert (await product.monitor.check()).action == "withdrawn"


async def test_a_new_champion_that_earns_less_is_rolled_back_by_itself(product):
    left, right = product.version(left=3.0), product.version(right=3.0)
    await product.start(left, "promoted")
    await product.ask(60, lambda name: float(name == "left"))
    await product.start(right, "promoted", watched=True)
    assert await product.until_moved(lambda name: float(name == "left")) <= 30
    gate = await product.get()
    assert (gate["version"], gate["watch"]) == (left, None)
    told = await product.get(f"/v1/gate/versions/{right}")
    assert told["stage"] == "rolled back"
    assert f"against what gate {left} earned before" in told["stage_reason"]


async def test_a_champion_as_good_as_the_one_before_is_confirmed(product):
    left, right = product.version(left=3.0), product.version(right=3.0)
    await product.start(left, "promoted")
    coin = np.random.default_rng(4)
    await product.ask(60, lambda _: float(coin.random() < 0.7))
    await product.start(right, "promoted", watched=True)
    assert (await product.get())["watch"]["against"] == left
    await product.ask(60, lambda _: float(coin.random() < 0.7))
    assert (await product.monitor.check()).action == "confirmed"
    assert (await product.get())["watch"] is None


async def test_of_two_gateways_that_want_a_step_one_takes_it(product):
    version = product.version(right=3.0)
    await product.start(version, "shadow")
    await product.ask(10)
    before = len(product.registry.journal.steps())
    monitors = [Monitor(product.services) for _ in range(4)]
    steps = await asyncio.gather(*(monitor.check() for monitor in monitors))
    assert [step.action for step in steps if step] == ["canary"]
    assert len(product.registry.journal.steps()) == before + 1


async def test_a_step_decided_on_an_older_standing_changes_nothing(product):
    version = product.version(right=3.0)
    seen = product.registry.standing()
    await product.start(version, "shadow")
    step = Step(at=datetime.now(UTC), action="promoted", version=version)
    with pytest.raises(Conflict, match="is in shadow"):
        await stages.take(product.cluster, product.registry, product.log, step, expected=seen)
    assert (product.service.state().version, product.service.state().trial.version) == (0, version)


async def test_what_serves_is_put_right_where_somebody_died_between_gate_and_journal(product, caplog):
    first, second = product.version(left=3.0), product.version(right=3.0)
    await product.start(first, "promoted", watched=True)
    await product.cluster.serve_gate(second, None)  # and the journal was never told
    await product.monitor.check()
    assert product.service.state().version == first
    assert "putting that right" in caplog.text


async def test_what_serves_is_put_right_too_where_nobody_ever_took_a_step(product):
    await product.cluster.serve_gate(product.version(left=3.0), None)
    assert await product.monitor.check() is None
    assert product.service.state().version == 0
    assert product.registry.journal.steps() == ()


async def test_a_proof_counts_only_against_the_champion_it_was_made_against(product):
    proven, other = product.version(right=3.0), product.version(left=3.0)
    await product.start(proven, "shadow")
    assert product.monitor._proof(product.registry.standing()) == PROOF["gain_doubly_robust"]
    await product.start(other, "promoted")
    await product.start(proven, "shadow")
    assert product.monitor._proof(product.registry.standing()) is None


async def test_a_changed_rating_is_seen_although_there_are_no_more_of_them(product):
    await product.start(product.version(right=3.0), "canary", 0.5)
    answered = await product.ask(3, lambda _: 1.0)
    standing, state = product.registry.standing(), product.service.state()
    before = await product.monitor.look(standing, state)
    async with product.client() as client:
        changed = {"completion_id": answered[0]["id"], "score": 0.0}
        assert (await client.post("/v1/feedback", json=changed)).status_code < 300
    after = await product.monitor.look(standing, state)
    assert (after.canary.ratings, after.canary == before.canary) == (before.canary.ratings, False)


async def test_a_version_never_contests_itself(product):
    version = product.version(right=3.0)
    trial = Trial(version=version, share=0.5, since=product.time)
    product.service.configure(version, product.catalog.experts, trial)
    routed = product.service.decide(ASKED, Policy())
    assert routed.decision.contest is None
    assert "against itself" in product.service.state().trial_error


async def test_a_decision_is_made_by_what_served_when_it_began(product):
    first, second = product.version(left=3.0), product.version(right=3.0)
    product.service.configure(0, product.catalog.experts, Trial(version=first, share=0.0, since=product.time))
    challenger = product.service.serving.challenger
    decide = challenger.decide

    def swapped(*args: Any, **named: Any) -> Any:
        product.service.configure(second, product.catalog.experts)
        return decide(*args, **named)

    challenger.decide = swapped
    contest = product.service.decide(ASKED, Policy()).decision.contest
    assert (contest.champion, contest.challenger, contest.error) == (0, first, None)
    assert product.service.state().version == second


async def test_a_trial_that_got_damaged_is_withdrawn(product):
    version = product.version(right=3.0)
    await product.start(version, "shadow")
    (product.registry.root / f"{version:04d}" / "gate.safetensors").write_bytes(b"")
    await product.cluster.serve_gate(0, product.registry.standing().trial)  # as after a restart
    assert (await product.ask(1))[0]["x_multimoe"]["gate"]["version"] == 0
    assert (await product.monitor.check()).action == "withdrawn"


async def test_what_was_learned_from_another_encoder_is_refused_and_what_served_goes_on(product):
    told = Manifest(proven=True, parent=0, created=product.time)
    foreign = product.registry.write(replace(Learned().rows(["left"]), revisions={"text": "t0"}), told).version

    with pytest.raises(CheckpointError, match="learned from text encoder 't0', the catalog has 't1'"):
        await product.start(foreign, "promoted")
    with pytest.raises(CheckpointError):
        product.service.configure(foreign, product.catalog.experts)
    assert product.service.state().version == 0
    assert len(await product.ask(1)) == 1


async def test_a_trial_survives_a_restart_and_a_change_of_experts(product):
    version = product.version(right=3.0)
    await product.start(version, "canary", 0.25)
    assert product.registry.serving() == (0, product.registry.standing().trial)
    await product.cluster.add(product.catalog.experts[0].model_copy(update={"name": "middle"}))
    assert product.service.state().trial.share == 0.25
    assert (await product.ask(1))[0]["x_multimoe"]["gate"]["version"] in (0, version)


async def test_a_stage_lasts_only_so_many_days(product):
    version = product.version(right=3.0)
    await product.start(version, "shadow")
    product.time += timedelta(days=6)
    assert await product.monitor.check() is None
    product.time += timedelta(days=1.1)
    assert (await product.monitor.check()).action == "canary"


async def test_the_log_is_read_again_only_when_it_says_something_new(product, monkeypatch):
    version = product.version(right=3.0)
    await product.start(version, "canary", 0.5)
    await product.ask(3, lambda _: 1.0)
    await product.monitor.check()
    monkeypatch.setattr(product.log, "rated", lambda **_: pytest.fail("read again"))
    await product.monitor.check()


async def test_the_monitor_runs_while_the_api_is_up(product, monkeypatch):
    monkeypatch.setattr("gateway.change.monitor.CHECK_SECONDS", 0.01)
    version = product.version(right=3.0)
    await product.start(version, "shadow")
    await product.ask(10)
    async with product.app.router.lifespan_context(product.app):
        for _ in range(300):
            if product.registry.standing().trial.share:
                break
            await asyncio.sleep(0.01)
    assert product.registry.standing().trial.stage == "canary"


async def test_the_store_is_let_go_when_the_api_goes_down(product):
    pool = product.log.database.engine.pool
    async with product.app.router.lifespan_context(product.app):
        await product.ask(1)
        assert product.log.database.engine.pool is pool
    assert product.log.database.engine.pool is not pool  # its connections are closed, and it was replaced by a new one
