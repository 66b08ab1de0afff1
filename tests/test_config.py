"""The catalog: mistakes are named with their place and the nearest right word, and nothing else gets through."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # comes with ray, without stubs
import pytest
import yaml
from pydantic import ValidationError

from multimoe.config import ActorOptions, Catalog, Limits, load, parse
from multimoe.errors import BadConfig

LOCAL = Path(__file__).parent.parent / "deploy" / "local.yaml"
SMALL: dict[str, Any] = {
    "gate": {"encoders": {"text": {"backend": "multimoe.encoder:TextEncoder", "revision": "1"}}},
    "experts": [
        {
            "name": "echo",
            "backend": "experts.echo:Echo",
            "inputs": ["text"],
            "output": "text",
            "card": {"description": "Says back what it was sent."},
        }
    ],
}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIMOE_HOME", raising=False)
    monkeypatch.delenv("MULTIMOE_WEIGHTS", raising=False)


def small(**top: Any) -> dict[str, Any]:
    return copy.deepcopy(SMALL) | top


def expert(**fields: Any) -> dict[str, Any]:
    return small(experts=[SMALL["experts"][0] | fields])


def gate(**fields: Any) -> dict[str, Any]:
    return small(gate=SMALL["gate"] | fields)


def test_the_smallest_catalog_is_enough() -> None:
    assert parse(small()).expert("echo").serve.max_ongoing_requests == 8


@pytest.mark.parametrize(
    ("tree", "where", "meant"),
    [
        (small(expertz=[]), "expertz", "'experts'"),
        (gate(topk=3), "gate.topk", "'top_k'"),
        (expert(modalities=["text"], input=["text"]), "experts.0.input", "'inputs'"),
        (expert(card={"description": "x", "txt": []}), "experts.0.card.txt", "'text'"),
        (
            expert(serve={"autoscaling_config": {"min_replica": 1}}),
            "experts.0.serve.autoscaling_config.min_replica",
            "'min_replicas'",
        ),
        (small(presets={"fast": {"topk": 1}}), "presets.fast.topk", "'top_k'"),
        (
            gate(encoders={"text": {"backend": "a:B", "revision": "1", "weigths": {}}}),
            "gate.encoders.text.weigths",
            "'weights'",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_right_one(tree: dict[str, Any], where: str, meant: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse(tree)
    key = where.rsplit(".", 1)[-1]
    assert f"  {where}: unknown key {key!r}; did you mean {meant}?" in caught.value.message.splitlines()


def test_a_key_like_no_other_lists_what_is_allowed() -> None:
    with pytest.raises(
        BadConfig,
        match="'zzz'; allowed: blend, experts, faults, gate, home, limits, media, presets, server, store, weights",
    ):
        parse(small(zzz=1))


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        (gate(top_k=0), "gate.top_k"),
        (gate(top_k=17), "gate.top_k"),
        (gate(temperature=0), "gate.temperature"),
        (gate(explore=1.5), "gate.explore"),
        (gate(explore=float("nan")), "gate.explore"),
        (gate(preference=-0.1), "gate.preference"),
        (gate(encoders={"video": {"backend": "a:B", "revision": "1"}}), "gate.encoders.video"),
        (expert(name="Bad Name"), "experts.0.name"),
        (expert(name="echo\n"), "experts.0.name"),
        (expert(backend="experts.echo"), "experts.0.backend"),
        (expert(backend=".:Echo"), "experts.0.backend"),
        (expert(backend="experts..echo:Echo"), "experts.0.backend"),
        (expert(inputs=[]), "experts.0.inputs"),
        (expert(inputs=["video"]), "experts.0.inputs"),
        (expert(output="speech"), "experts.0.output"),
        (expert(card={"description": ""}), "experts.0.card.description"),
        (expert(cost=-1), "experts.0.cost"),
        (expert(timeout_s=0), "experts.0.timeout_s"),
        (expert(batch={"size": 0}), "experts.0.batch.size"),
        (expert(serve={"autoscaling_config": {"min_replicas": 3}}), "experts.0.serve.autoscaling_config"),
        (small(experts=[]), "experts"),
        (small(experts=[None]), "experts.0"),
        (small(server={"port": 70_000}), "server.port"),
        (small(limits={"body_bytes": 0}), "limits.body_bytes"),
        (small(store=None), "store"),
    ],
)
def test_a_value_out_of_range_is_refused_where_it_stands(tree: dict[str, Any], where: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse(tree)
    assert [line for line in caught.value.message.splitlines() if line.startswith(f"  {where}")], caught.value.message


def test_every_mistake_is_told_at_once_and_only_once() -> None:
    with pytest.raises(BadConfig, match=r"3 mistake\(s\)") as caught:
        parse(expert(cost=-1, topk=1) | {"zzz": 1})
    assert len(caught.value.message.splitlines()) == 4


def test_experts_of_one_name_are_refused() -> None:
    with pytest.raises(BadConfig, match="more than once: echo"):
        parse(small(experts=SMALL["experts"] * 2))


def test_an_unknown_expert_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadConfig, match="no expert 'ecko' in the catalog; did you mean 'echo'"):
        parse(small()).expert("ecko")


def test_a_parsed_catalog_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(small()).home = Path("/elsewhere")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "catalog.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{a: ]", "is not YAML"),
        ("", "holds NoneType, not a mapping"),
        ("- a", "holds list, not a mapping"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_file_that_is_no_catalog_is_refused_by_name(written: Callable[[str], Path], text: str, said: str) -> None:
    path = written(text)
    with pytest.raises(BadConfig, match=said) as caught:
        load(path)
    assert str(path) in caught.value.message


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, said in (("binary.yaml", "is not YAML"), ("none.yaml", "No such file"), (".", "Is a directory")):
        with pytest.raises(BadConfig, match=said):
            load(tmp_path / name)


def test_a_catalog_is_read_as_utf8_whatever_the_locale(written: Callable[[str], Path]) -> None:
    path = written(yaml.safe_dump(expert(card={"description": "Grüße 你好"}), allow_unicode=True))
    assert load(path).expert("echo").card.description == "Grüße 你好"


def test_home_and_weights_of_the_environment_stand_above_the_file(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = written(yaml.safe_dump(small(home="/in/the/file", weights="/in/the/file")))
    assert load(path).home == Path("/in/the/file")
    monkeypatch.setenv("MULTIMOE_HOME", str(tmp_path))
    monkeypatch.setenv("MULTIMOE_WEIGHTS", "~/elsewhere")
    catalog = load(path)
    assert catalog.home == tmp_path
    assert catalog.weights == Path.home() / "elsewhere"
    assert catalog.store_url == f"sqlite:///{tmp_path}/multimoe.db"
    assert catalog.gates == tmp_path / "gates"


def test_an_empty_variable_changes_nothing(written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIMOE_HOME", "")
    assert load(written(yaml.safe_dump(small(home="/in/the/file")))).home == Path("/in/the/file")


def test_paths_do_not_depend_on_where_one_stands_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(small(home="here")).home == tmp_path / "here"


def test_weight_uris_are_listed_once_in_order() -> None:
    tree = small()
    tree["gate"]["encoders"]["text"]["weights"] = {"model": "file:a"}
    tree["experts"] = [
        SMALL["experts"][0] | {"name": name, "weights": {"model": "file:b", "words": uri}}
        for name, uri in (("one", "file:a"), ("two", "file:c"))
    ]
    assert parse(tree).weight_uris() == ["file:a", "file:b", "file:c"]


def test_the_shipped_catalog_loads() -> None:
    catalog = load(LOCAL)
    assert set(catalog.gate.encoders) == {"text", "image", "audio"}
    assert {"text", "image", "audio"} <= {m for expert in catalog.experts for m in expert.inputs}


def test_the_json_schema_is_valid_and_takes_the_shipped_catalog() -> None:
    schema = Catalog.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load(LOCAL.read_text()))
    assert not validator.is_valid(small(expertz=[]))


def test_a_catalog_survives_the_way_through_json() -> None:
    catalog = load(LOCAL)
    assert Catalog.model_validate_json(catalog.model_dump_json()) == catalog


def test_yaml_s_off_is_a_word_and_true_is_no_number() -> None:
    assert Limits.model_validate(yaml.safe_load("admission: off")).admission == "off"
    for tree in ({"messages": True}, {"admission": True}):
        with pytest.raises(ValidationError, match="a flag \\(true\\) is no value for this"):
            Limits.model_validate(tree)
    with pytest.raises(ValidationError, match="a flag"):
        ActorOptions.model_validate({"resources": {"left": False}})
