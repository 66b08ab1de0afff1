"""`multimoe experts new`: a package with an expert that keeps the contract, to put one's own model into."""

import importlib.util
import keyword
import re
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from multimoe.errors import BadConfig, Conflict
from multimoe.messages import MODALITIES
from multimoe.outputs import OutputKind

TEMPLATES = Path(__file__).parent / "template"
NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
NEEDS = {"words": "image", "objects": "image", "transcript": "audio", "events": "audio"}
TYPES = {  # what an output is made of
    "labels": "Label, Labels",
    "words": "Box, Words",
    "objects": "Box, Objects",
    "transcript": "Segment, Transcript",
    "events": "Event, Events",
}


def new(
    name: Annotated[str, typer.Argument(help="Of the expert: lowercase letters, digits and dashes.")],
    inputs: Annotated[str, typer.Option(help=f"What it reads, of {', '.join(MODALITIES)}; commas between.")] = "text",
    output: Annotated[str, typer.Option(help=f"What it gives: {', '.join(get_args(OutputKind))}.")] = "labels",
) -> None:
    """Write a package with a new expert: class, catalog entry, test and entry point. It passes as it is."""
    reads = _modalities(inputs)
    _check_kind(output, reads)
    module = _module(name)
    folder = Path(name)
    if folder.exists():
        raise Conflict(f"there is a {folder} here already, and nothing is overwritten: choose another name")
    facts = {"name": name, "module": module, "cls": module.title().replace("_", ""), "inputs": reads, "output": output}
    for path, text in _written(facts | {"types": TYPES.get(output, "")}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        typer.echo(folder / path)
    typer.echo(f"\ncd {name} && multimoe experts check {module}.expert:{facts['cls']}")


def _modalities(inputs: str) -> list[str]:
    asked = [word.strip() for word in inputs.split(",")]
    if unknown := [word for word in asked if word not in MODALITIES]:
        raise typer.BadParameter(f"--inputs {unknown[0]!r} is none of {', '.join(MODALITIES)}")
    return [modality for modality in MODALITIES if modality in asked]


def _check_kind(output: str, reads: list[str]) -> None:
    if output not in get_args(OutputKind):
        raise typer.BadParameter(f"--output {output!r} is none of {', '.join(get_args(OutputKind))}")
    if output in NEEDS and NEEDS[output] not in reads:
        raise typer.BadParameter(f"{output} are found in {NEEDS[output]}: add --inputs {NEEDS[output]}")


def _module(name: str) -> str:
    """The package of that name; raises BadConfig for one that could not be imported."""
    module = name.replace("-", "_")
    if not NAME.fullmatch(name) or keyword.iskeyword(module):
        raise BadConfig(f"{name!r} cannot be the name of an expert and its package: use lowercase letters and dashes")
    if importlib.util.find_spec(module) is not None:
        raise BadConfig(
            f"there is a Python module {module!r} already, which the new one would hide: choose another name"
        )
    return module


def _written(facts: dict[str, Any]) -> dict[str, str]:
    """The text of each file, by its path in the package's folder."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701  # it writes Python, not HTML
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    module = facts["module"]
    templates = {
        "pyproject.toml": "pyproject.toml.jinja",
        f"{module}/expert.py": "expert.py.jinja",
        f"{module}/expert.yaml": "expert.yaml.jinja",
        f"tests/test_{module}.py": "test.py.jinja",
    }
    made = {path: environment.get_template(template).render(facts) for path, template in templates.items()}
    return made | {f"{module}/__init__.py": f'"""An expert for multimoe: see {module}/expert.py."""\n'}
