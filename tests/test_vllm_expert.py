"""vLLM by way of Ray's own `ray.serve.llm`, with vLLM itself replaced (tests/fake_vllm): all of Ray's part is real.

Nothing here needs a GPU; the one that Ray is told of is only a number.
"""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from api_world import until

from multimoe.backends import load_expert
from multimoe.config import ExpertSpec
from multimoe.contract import examine
from multimoe.errors import BadConfig, BadInput, ExpertFailed
from multimoe.expert import Delta, Expert
from multimoe.messages import ChatRequest, ImagePart, Message, Part, TextPart
from multimoe.outputs import Usage
from multimoe.weights import Weights

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, on import and when its processes end
]

HERE = Path(__file__).parent


def spec_of(folder: Path, gpus: float = 0.5, name: str = "big", **options: Any) -> ExpertSpec:
    return ExpertSpec.model_validate(
        {
            "name": name,
            "backend": "experts.vllm_chat:VLLM",
            "inputs": ["text", "image"],
            "output": "text",
            "card": {"description": "A large model."},
            "weights": {"model": f"file:{folder}/"},
            "options": options,
            "serve": {"ray_actor_options": {"num_cpus": 0.1, "num_gpus": gpus}},
        }
    )


def find(uri: str) -> Path:
    return Weights(Path("/nowhere")).find(uri)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    (made / "config.json").write_text("{}")
    return made


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """Ray with two CPUs and a GPU that is a number; its workers find the stand-in for vLLM."""
    from gateway.deployment.launch import ENVIRONMENT

    handlers, level = logging.root.handlers[:], logging.root.level  # ray.serve.llm takes them over when imported
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="mm-") as temp:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE / "fake_vllm"), str(HERE.parent)]))
        patch.syspath_prepend(HERE / "fake_vllm")
        import ray
        from ray import serve

        ray.init(
            address="local", num_cpus=2, num_gpus=1, include_dashboard=False, namespace="serve",
            log_to_driver=False, logging_level="error", _temp_dir=temp,
        )  # fmt: skip
        try:
            _stand_in_a_placement_group(patch)
            yield
        finally:
            serve.shutdown()
            ray.shutdown()
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)


def _stand_in_a_placement_group(patch: pytest.MonkeyPatch) -> None:
    """As a replica does, whose group stands before it: Ray asks for nodes of one that it made a moment ago."""
    import ray
    from ray.util.placement_group import placement_group

    group = placement_group([{"GPU": 0.5}])
    ray.get(group.ready(), timeout=60)
    patch.setattr("ray.llm._internal.serve.engines.vllm.vllm_models.get_current_placement_group", lambda: group)


@pytest.fixture(scope="module")
def expert(running: None, folder: Path) -> Iterator[Expert]:
    made: Any = load_expert(spec_of(folder, engine_kwargs={"dtype": "bfloat16", "max_model_len": 4096}), find)
    yield made
    made._loop.call_soon_threadsafe(made._loop.stop)


def asking(*parts: Part, **settings: Any) -> ChatRequest:
    return ChatRequest("r", (Message("user", parts),), **settings)


async def read(expert: Expert, request: ChatRequest) -> list[Delta]:
    return [delta async for delta in expert.answer(request)]


def words(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_it_keeps_the_contract_of_experts(expert: Expert) -> None:
    findings = await examine(
        expert.spec, find, load=lambda spec, find: expert if spec == expert.spec else load_expert(spec, find)
    )
    assert {finding.promise: finding.advice for finding in findings if finding.state == "broken"} == {}


async def test_it_streams_and_counts_as_the_engine_does(expert: Expert) -> None:
    import vllm  # the stand-in

    deltas = await read(expert, asking(TextPart("one two three"), max_tokens=2, temperature=0.5, seed=4, stop=("x",)))
    assert [delta.text for delta in deltas] == ["one", " two", ""]
    assert deltas[-1] == Delta(usage=Usage(prompt_tokens=3, completion_tokens=2), finish="length")
    asked = vllm.SEEN[-1]
    assert (asked.model, asked.temperature, asked.seed, asked.stop) == ("big", 0.5, 4, ["x"])
    picture = ImagePart(np.zeros((4, 4, 3), np.uint8))
    assert words(await read(expert, asking(TextPart("look"), picture))) == "look [image_url]"


def test_the_engine_starts_with_what_the_catalog_says(expert: Expert, folder: Path) -> None:
    import vllm

    args = vllm.STARTED[0]
    assert (args.model, args.served_model_name) == (str(folder), ["big"])
    assert (args.dtype, args.max_model_len, args.distributed_executor_backend) == ("bfloat16", 4096, "ray")


async def test_closing_the_answer_ends_the_work_on_it(expert: Expert) -> None:
    import vllm

    answer: Any = expert.answer(asking(TextPart("on and " * 200), max_tokens=400))
    await anext(answer)
    assert len(vllm.RUNNING) == 1
    await answer.aclose()
    await asyncio.to_thread(until, lambda: not vllm.RUNNING)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("too long for it", BadInput, "maximum context length"),
        ("it will break here", ExpertFailed, "out of memory"),
        ("die", ExpertFailed, "EngineCore died"),
    ],
)
async def test_a_failure_of_the_engine_is_told(expert: Expert, text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        await read(expert, asking(TextPart(text)))
    assert words(await read(expert, asking(TextPart("still here")))) == "still here"


async def test_an_engine_that_died_is_told_to_serve(expert: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    await expert.check_health()
    monkeypatch.setattr(vllm, "DEAD", [True])
    with pytest.raises(RuntimeError, match="EngineCore"):
        await expert.check_health()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine_kwargs": {"dtypo": "float16"}}, "Unknown engine argument: dtypo"),
        ({"engine_kwargs": {"dtype": "float3"}}, "Unknown dtype: float3"),
        ({"accelerator": "H100"}, "accelerator"),
    ],
)
def test_a_catalog_that_the_engine_refuses_is_a_mistake(
    running: None, folder: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadConfig, match=says):
        load_expert(spec_of(folder, 0, **options), find)
    gc.collect()  # Ray's server, half built, warns when it goes: here, where that is overlooked


def test_without_vllm_it_says_what_to_install(folder: Path) -> None:
    spec = spec_of(folder).model_dump_json()
    code = (
        "import sys; from pathlib import Path\n"
        "from multimoe.config import ExpertSpec; from experts.vllm_chat import VLLM\n"
        "try: VLLM(ExpertSpec.model_validate_json(sys.argv[1]), Path)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, spec], capture_output=True, text=True, cwd=HERE.parent, env=plain
    )
    assert "BadConfig" in done.stdout, done.stderr
    assert "pip install vllm" in done.stdout


def test_without_ray_it_says_how_to_start_it(running: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(BadConfig, match="multimoe serve"):
        load_expert(spec_of(folder), find)


def test_its_workers_have_the_gpus_and_room_beside_the_replica(folder: Path) -> None:
    from gateway.deployment.render import expert_application

    spec = spec_of(folder, 0.5, engine_kwargs={"tensor_parallel_size": 2})
    (deployment,) = expert_application(spec, "/weights")["deployments"]
    assert deployment["placement_group_bundles"] == [{"CPU": 0.1, "GPU": 0.5}, {"GPU": 0.5}]
    assert deployment["ray_actor_options"]["num_gpus"] == 0
    (deployment,) = expert_application(spec_of(folder, 0), "/weights")["deployments"]
    assert deployment["placement_group_bundles"] == [{"CPU": 1.1}]


async def test_it_is_deployed_and_asked_as_every_expert_is(running: None, folder: Path, tmp_path: Path) -> None:
    from ray import serve
    from ray.util import placement_group_table

    from gateway.deployment.ray_cluster import RayCluster, deploy
    from gateway.deployment.render import expert_application
    from multimoe.config import Catalog

    before = set(placement_group_table())
    serve.start(proxy_location="Disabled")
    deploy({"applications": [expert_application(spec_of(folder, 0.25), str(tmp_path))]})
    status: Any = serve.status
    await asyncio.to_thread(until, lambda: status().applications["expert-big"].status == "RUNNING", 120)
    cluster = RayCluster(Catalog.model_construct(home=tmp_path))
    deltas = [delta async for delta in cluster.ask("big", asking(TextPart("hello from a replica")))]
    assert words(deltas) == "hello from a replica"
    assert cast(Usage, deltas[-1].usage).completion_tokens == 4
    groups = placement_group_table()
    (made,) = [group for key, group in groups.items() if key not in before and group["state"] == "CREATED"]
    assert made["bundles"] == {0: {"CPU": 0.1, "GPU": 0.25}}  # the engine made none of its own
