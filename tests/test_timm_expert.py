"""Any classifier of timm as an expert, tried on a tiny one made here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from experts.timm_images import TimmClassifier
from multimoe.config import Card, ExpertSpec
from multimoe.contract import examine
from multimoe.errors import BadConfig, WeightsError
from multimoe.messages import ChatRequest, ImagePart, Message
from multimoe.outputs import Label, Labels
from multimoe.pretrained import timm_labels
from multimoe.weights import Weights

NAMES = ("cat", "dog", "house")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a tiny MobileNet that tells three things apart."""
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("timm") / "tiny.safetensors"
    safetensors.torch.save_file(network(3).state_dict(), path)
    return path


def network(classes: int) -> Any:
    return timm.create_model("test_resnet", num_classes=classes).eval()


def spec(path: Path, **options: Any) -> ExpertSpec:
    return ExpertSpec(
        name="tiny",
        backend="experts.timm_images:TimmClassifier",
        inputs=frozenset(("image",)),
        output="labels",
        card=Card(description="Tells three things apart."),
        weights={"model": f"file:{path}{'/' if path.is_dir() else ''}"},
        options=options,
    )


def loaded(path: Path, **options: Any) -> TimmClassifier:
    return TimmClassifier(spec(path, **options), Weights(path).find)


def shown(*pictures: Any) -> ChatRequest:
    return ChatRequest("r", (Message("user", tuple(ImagePart(picture) for picture in pictures)),))


def found(expert: TimmClassifier, *pictures: Any) -> Labels:
    (answer,) = expert.answer_batch([shown(*pictures)])
    assert isinstance(answer.output, Labels)
    return answer.output


def noise(seed: int, *size: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*(size or (50, 70)), 3), dtype=np.uint8)


def values(labels: Sequence[Label]) -> dict[str, float]:
    return {label.name: label.probability for label in labels}


async def test_keeps_the_contract(file: Path) -> None:
    tiny = spec(file, architecture="test_resnet", labels=NAMES)
    findings = await examine(tiny, Weights(file).find)
    assert [finding for finding in findings if finding.state == "broken"] == []


def test_says_what_the_bare_model_says(file: Path) -> None:
    bare = network(3)
    bare.load_state_dict(safetensors.torch.load_file(file))
    settings = timm.data.resolve_model_data_config(bare)
    transform: Any = timm.data.create_transform(**settings, is_training=False)
    picture = noise(1)
    with torch.inference_mode():
        probabilities = bare(transform(Image.fromarray(picture))[None]).softmax(-1)[0]
    answer = found(loaded(file, architecture="test_resnet", labels=NAMES), picture)
    assert answer.space == "tiny"
    assert values(answer.labels) == pytest.approx(dict(zip(NAMES, probabilities.tolist(), strict=True)), abs=1e-6)


def test_temperature_and_top_are_obeyed(file: Path) -> None:
    plain = found(loaded(file, architecture="test_resnet", labels=NAMES), noise(1))
    sure = found(loaded(file, architecture="test_resnet", labels=NAMES, temperature=0.1, top=1), noise(1))
    assert len(sure.labels) == 1
    assert sure.labels[0].name == plain.labels[0].name
    assert sure.labels[0].probability > plain.labels[0].probability


def test_of_several_pictures_it_gives_the_mean_and_each(file: Path) -> None:
    expert = loaded(file, architecture="test_resnet", labels=NAMES)
    one, other, both = found(expert, noise(1)), found(expert, noise(2, 9, 9)), found(expert, noise(1), noise(2, 9, 9))
    mean = {name: (values(one.labels)[name] + values(other.labels)[name]) / 2 for name in NAMES}
    assert values(both.labels) == pytest.approx(mean, abs=1e-6)
    assert [values(each.labels) for each in both.each] == [pytest.approx(values(o.labels)) for o in (one, other)]


def test_a_hub_folder_says_itself_what_it_holds(tmp_path: Path) -> None:
    config = {
        "architecture": "test_resnet",
        "num_classes": 2,
        "label_names": ["n01", "n02"],
        "label_descriptions": {"n01": "tabby, tabby cat", "n02": "house"},
        "pretrained_cfg": {"input_size": [3, 64, 64], "num_classes": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(network(2).state_dict(), tmp_path / "model.safetensors")
    answer = found(loaded(tmp_path), noise(1))
    named = {(label.id, label.name, label.synonyms) for label in answer.labels}
    assert named == {("n01", "tabby", ("tabby cat",)), ("n02", "house", ())}


@pytest.mark.parametrize(
    ("classes", "space", "first"),
    [
        (1000, "imagenet-1k", "n01440764"),
        (11821, "imagenet-12k", "n00005787"),
        (21843, "imagenet-21k-goog", "n00004475"),
    ],
)
def test_classes_of_each_imagenet_have_their_wordnet_ids(classes: int, space: str, first: str) -> None:
    labels, named = timm_labels({}, classes)
    assert (named, len(labels), labels[0].id) == (space, classes, first)


def test_refuses_what_it_cannot_name_or_build(file: Path) -> None:
    with pytest.raises(BadConfig, match="its 3 have none: list them all"):
        loaded(file, architecture="test_resnet")
    with pytest.raises(BadConfig, match="2 of its 3 classes"):
        loaded(file, architecture="test_resnet", labels=("cat", "dog"))
    with pytest.raises(BadConfig, match=r"set options\.architecture"):
        loaded(file, labels=NAMES)
    with pytest.raises(BadConfig, match="did you mean 'test_resnet'"):
        loaded(file, architecture="test_resnt")


def test_weights_of_another_model_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not hold the weights of test_vit"):
        loaded(file, architecture="test_vit", labels=NAMES)
    (damaged := tmp_path / "damaged.safetensors").write_bytes(file.read_bytes()[:500])
    with pytest.raises(WeightsError):
        loaded(damaged, architecture="test_resnet", labels=NAMES)
