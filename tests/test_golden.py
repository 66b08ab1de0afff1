from pathlib import Path

import pytest
from worlds import Town, embed_texts, expert, gate_spec, rated, request

from multimoe import config
from multimoe.checks import golden as checked
from multimoe.config import Catalog, Limits
from multimoe.decision import Policy
from multimoe.embedding import Embedding
from multimoe.encoder import Encoders
from multimoe.errors import BadConfig
from multimoe.examples import read
from multimoe.expert import FindWeights
from multimoe.feedback import Rated, Rating
from multimoe.gate import Gate
from multimoe.golden import Golden, GoldenRequest, embedded, golden_of, kept_apart, load

LOCAL = Path(__file__).parents[1] / "deploy/local.yaml"


GATE = Gate.from_cards([expert("a", text=("red",)), expert("b", text=("blue",))], embed_texts, gate_spec(top_k=1))


def asked(*requests: Embedding) -> list[Rated]:
    decided = ((i, r, GATE.decide(r, Policy(), i)) for i, r in enumerate(requests))
    return [rated(i, r, d, Rating(completion_id=f"c{i}", score=1.0, user="u")) for i, r, d in decided]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "golden.yaml"
    path.write_text(text)
    return path


def test_a_file_of_requests_is_read(tmp_path):
    path = written(tmp_path, "- {text: hello, experts: [chat]}\n- {image: a/dog.jpg, experts: [fast, careful]}\n")

    assert [(r.name, r.experts) for r in load(path)] == [("hello", ("chat",)), ("dog.jpg", ("fast", "careful"))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {text: hello}", "requests.0.experts: Field required"),
        ("- {text: hello, experts: []}", "requests.0.experts"),
        ("- {txt: hello, experts: [chat]}", "did you mean 'text'"),
        ("text: hello", "requests"),
        ("- [", "is not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, said):
    with pytest.raises(BadConfig, match=said):
        load(written(tmp_path, text))


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(BadConfig, match="cannot read the golden requests"):
        load(tmp_path / "none.yaml")
    with pytest.raises(BadConfig, match="which a golden request names"):
        embedded([GoldenRequest(image=Path("none.jpg"), experts=("a",))], tmp_path, Limits(), lambda r: request())


def test_the_catalog_names_the_file_from_where_it_lies(tmp_path):
    catalog = written(tmp_path, LOCAL.read_text())

    assert config.load(catalog).gate.promotion.golden == tmp_path / "golden.yaml"


def test_ratings_of_golden_requests_are_left_out():
    town = Town(1, {"red": "a", "blue": "b"})
    golden = [Golden("red", request(text="red"), ("a",))]
    rows = read([*town.live(GATE, 20), *asked(*[request(text="red")] * 5)])

    kept = kept_apart(rows, golden)

    assert len(kept) == 20
    assert kept_apart(rows, []) == list(rows)


def test_the_same_words_beside_a_picture_are_another_request():
    golden = [Golden("red", request(text="red"), ("a",))]
    with_picture = read(asked(request(text="red", image="cat")))

    assert len(kept_apart(with_picture, golden)) == 1


def test_a_gate_that_routes_a_golden_request_elsewhere_fails_and_says_which():
    right, wrong = Golden("red", request(text="red"), ("a",)), Golden("blue things", request(text="blue"), ("a", "z"))

    assert checked([right], GATE).passed
    assert checked([right, wrong], GATE).reason == "fails 1 of 2 golden requests: 'blue things' does not go to a or z"


@pytest.mark.weights
def test_the_cards_alone_answer_every_golden_request_that_ships(catalog: Catalog, weights: FindWeights):
    text = {m: spec for m, spec in catalog.gate.encoders.items() if m == "text"}
    encoders = Encoders.load(catalog.gate.model_copy(update={"encoders": text}), weights)
    gate = Gate.from_cards(catalog.experts, encoders.embed_texts, catalog.gate)

    golden = [g for g in golden_of(catalog, lambda chat: encoders.embed([chat])[0]) if g.embedding.modalities]

    assert len(golden) >= 25
    assert {e.name for e in catalog.experts if "text" in e.inputs} <= {name for g in golden for name in g.experts}
    assert checked(golden, gate).passed, checked(golden, gate).reason
