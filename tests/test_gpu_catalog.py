"""Every entry of deploy/gpu.yaml loads and keeps the contract as it stands there, but for two things: a tiny random
model of the same architecture is in the place of its weights, and the CPU in that of its share of a GPU.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models

from multimoe import config
from multimoe.backends import load_expert
from multimoe.config import Catalog, ExpertSpec
from multimoe.contract import examine
from multimoe.messages import ChatRequest, Message, TextPart
from multimoe.outputs import Labels
from multimoe.pretrained import imagenet_labels
from multimoe.weights import parse

ROOT = Path(__file__).parents[1]
CATALOG = config.load(ROOT / "deploy" / "gpu.yaml")

TINY: dict[str, Callable[[Path], Path]] = {  # repository -> the same architecture
    "Qwen/Qwen2.5-7B-Instruct": lambda folder: tiny_models.language_model(folder, "qwen2"),
    "Qwen/Qwen2.5-Coder-7B-Instruct": lambda folder: tiny_models.language_model(folder, "qwen2"),
    "Qwen/Qwen2.5-Math-7B-Instruct": lambda folder: tiny_models.language_model(folder, "qwen2"),
    "allenai/OLMoE-1B-7B-0924-Instruct": lambda folder: tiny_models.language_model(folder, "olmoe"),
    "Qwen/Qwen2.5-VL-7B-Instruct": tiny_models.vision_language_model,
    "google/vit-base-patch16-224": lambda folder: tiny_models.image_classifier(
        folder, [synonyms for _, synonyms in imagenet_labels()]
    ),
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": lambda folder: tiny_models.text_classifier(
        folder, ["NEGATIVE", "POSITIVE"]
    ),
    "timm/convnextv2_base.fcmae_ft_in22k_in1k": lambda folder: tiny_models.timm_classifier(
        folder, "convnextv2_base", depths=[1, 1, 1, 1], dims=[8, 16, 32, 64]
    ),
    "openai/whisper-large-v3-turbo": tiny_models.whisper,
    "MIT/ast-finetuned-audioset-10-10-0.4593": lambda folder: tiny_models.audio_classifier(
        folder, ["Speech", "Music", "Dog", "Bell"]
    ),
}
ROUGH = 0.03  # by how much scores of half precision may differ in another batch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(uri: str) -> Path:
        repository = parse(uri).name
        if repository not in made:
            made[repository] = TINY[repository](tmp_path_factory.mktemp("model"))
        return made[repository]

    return find


def on_cpu(spec: ExpertSpec) -> ExpertSpec:
    return spec.model_copy(update={"serve": config.Deployment()})


@pytest.mark.parametrize("spec", CATALOG.experts, ids=[spec.name for spec in CATALOG.experts])
async def test_it_keeps_the_contract_on_a_tiny_model(spec: ExpertSpec, folders: Callable[[str], Path]) -> None:
    findings = await examine(on_cpu(spec), folders, tolerance=ROUGH)
    assert [f"{finding.promise}: {finding.advice}" for finding in findings if finding.state == "broken"] == []
    assert sum(finding.state == "kept" for finding in findings) > 8


async def test_experts_of_one_tokenizer_have_one_vocabulary(folders: Callable[[str], Path]) -> None:
    request = ChatRequest("r", (Message("user", (TextPart("What is 2 + 2?"),)),))
    by_tokenizer: dict[str, set[str]] = {}
    for spec in CATALOG.experts:
        if spec.tokenizer:
            expert = load_expert(on_cpu(spec), folders)
            following = await expert.next_tokens(request, (), 3)  # type: ignore[attr-defined]
            by_tokenizer.setdefault(spec.tokenizer, set()).add(following.vocabulary)
    assert [len(fingerprints) for fingerprints in by_tokenizer.values()] == [1]


@pytest.mark.parametrize("name", ["image-tags", "image-tags-careful"])
async def test_the_picture_taggers_speak_of_imagenet(name: str, folders: Callable[[str], Path]) -> None:
    tagger = load_expert(on_cpu(CATALOG.expert(name)), folders)
    pixels = tiny_models.picture()
    (delta,) = [delta async for delta in tagger.answer(ChatRequest("r", (Message("user", (pixels,)),)))]
    assert isinstance(delta.output, Labels)
    assert delta.output.space == "imagenet-1k"
    assert all(re.fullmatch(r"n\d{8}", label.id or "") for label in delta.output.labels)


def test_every_model_is_pinned_by_its_commit_and_has_its_share_of_a_gpu() -> None:
    for spec in CATALOG.experts:
        for uri in map(parse, spec.weights.values()):
            assert uri.scheme == "hf"
            assert re.fullmatch("[0-9a-f]{40}", uri.version), spec.name
        assert 0 < spec.serve.ray_actor_options.num_gpus < 1
        assert spec.options.get("dtype", "") in ("bfloat16", "float16") or "timm" in spec.backend
        assert len(spec.card.text) > 3
    always = [spec for spec in CATALOG.experts if spec.serve.autoscaling_config.min_replicas]
    assert sum(spec.serve.ray_actor_options.num_gpus for spec in always) <= 1
    assert sum(spec.serve.ray_actor_options.num_gpus for spec in CATALOG.experts) <= 2


def test_the_gate_reads_as_it_does_without_a_gpu(catalog: Catalog) -> None:
    assert CATALOG.gate.encoders == catalog.gate.encoders
