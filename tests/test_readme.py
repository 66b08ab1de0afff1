"""The README's code runs: the client's snippet against the real API, the worked expert from its card to its answer."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_world import World, png, served

from multimoe.config import Catalog, ExpertSpec, validate
from multimoe.decision import Policy
from multimoe.encoder import Encoders
from multimoe.errors import ExpertFailed
from multimoe.expert import FindWeights
from multimoe.gate import Gate
from multimoe.messages import ChatRequest, Message, TextPart

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, having: str) -> str:
    """The README's one code block of a language that has these words."""
    found = [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if having in code]
    assert len(found) == 1, f"{len(found)} {language} blocks have {having!r}"
    return found[0]


def ask(text: str) -> ChatRequest:
    return ChatRequest("r", (Message("user", (TextPart(text),)),))


@pytest.fixture(scope="module")
def spec() -> ExpertSpec:
    return validate(ExpertSpec, yaml.safe_load(block("yaml", "name: calculator")), "the README")


@pytest.fixture
def calculator(spec: ExpertSpec) -> Any:
    made: dict[str, Any] = {}
    exec(block("python", "class Calculator"), made)  # noqa: S102  # the README is ours
    return made["Calculator"](spec, lambda uri: Path(uri))


def test_the_snippet_of_the_openai_client_prints_an_answer_and_who_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import base64

    (tmp_path / "photo.jpg").write_bytes(base64.b64decode(png()))
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path / "home")
    world.gate.picks = ("eye",)
    with served(world) as url:
        exec(block("python", "from openai import OpenAI").replace("http://127.0.0.1:8000/v1", url), {})  # noqa: S102
    world.log.close()
    said = capsys.readouterr().out.splitlines()
    assert said[-1].split() == ["multimoe/eye", "1.0", "ok"]
    assert len(said) >= 2


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 1234 * 5678?", "1234 * 5678 = 7006652"),
        ("How much is 100 - 37.5?", "100 - 37.5 = 62.5"),
        ("144/12", "144/12 = 12"),
    ],
)
async def test_the_worked_expert_does_sums(calculator: Any, question: str, answer: str) -> None:
    assert "".join([delta.text async for delta in calculator.answer(ask(question))]) == answer


async def test_the_worked_expert_fails_where_there_is_no_sum(calculator: Any) -> None:
    with pytest.raises(ExpertFailed, match="no sum"):
        await anext(calculator.answer(ask("Who are you?")))


@pytest.mark.weights
def test_the_worked_expert_is_routed_to_from_its_card_alone(
    catalog: Catalog, weights: FindWeights, spec: ExpertSpec
) -> None:
    encoders = Encoders.load(catalog.gate, weights)
    gate = Gate.from_cards((*catalog.experts, spec), encoders.embed_texts, catalog.gate)

    def first(text: str) -> str:
        return gate.decide(encoders.embed([ask(text)])[0], Policy(explore=False), seed=0).chosen[0].expert

    assert first("What is 1234 * 5678?") == "calculator"
    assert first("Tell me a story about a fox.") == "chat"


def test_every_command_of_the_readme_exists() -> None:
    from typer.main import get_command

    from gateway.cli import app

    root: Any = get_command(app)
    for line in re.findall(
        r"multimoe ((?:[a-z]+ ?){1,2})", "\n".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))
    ):
        command = root
        for word in line.split():
            if hasattr(command, "commands"):
                assert word in command.commands, f"no command {line!r}"
                command = command.commands[word]


def test_what_the_readme_links_to_exists() -> None:
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    targets = re.findall(r"\]\(((?!http)[^)#]+)\)", prose)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
