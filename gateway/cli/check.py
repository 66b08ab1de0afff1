"""`multimoe experts check`: anybody's expert, put to the test of the contract."""

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import gateway
from gateway.cli.console import FAILED, AsJson, print_json, print_table
from gateway.cli.session import Session, session
from multimoe.config import ExpertSpec
from multimoe.errors import BadConfig

if TYPE_CHECKING:
    from multimoe.contract import Finding, Probes

SPEECH = Path(gateway.__file__).parent / "assets/question.ogg"


def check(
    ctx: typer.Context,
    backend: Annotated[
        str, typer.Argument(help="module:Class, from this folder too, or the name of an installed one.")
    ],
    spec: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Its catalog entry. Default: that beside its module."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try every promise of the contract on an expert, and say what to do about those it breaks. Exits 1 for any."""
    sys.path.insert(0, str(Path.cwd()))
    entry = _entry(session(ctx), backend, spec)
    findings = _examined(session(ctx), entry)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        _print(entry, findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(FAILED)


def _entry(asked: Session, backend: str, file: Path | None) -> ExpertSpec:
    """From the file named, else from beside the module, else from the catalog. Raises BadConfig where there is none."""
    from multimoe.backends import entry_beside, find_offer, read_entry

    if file is not None:
        return read_entry(file).model_copy(update={"backend": backend})
    found = entry_beside(backend) if ":" in backend else find_offer(backend).entry()
    if found is not None:
        return found.model_copy(update={"backend": backend})
    for entry in asked.catalog().experts:
        if entry.backend == backend:
            return entry
    raise BadConfig(
        f"nothing says what {backend} reads and gives: put its catalog entry into a YAML file (name, backend, inputs, "
        "output, card) beside its module, or name the file with --spec FILE"
    )


def _examined(asked: Session, entry: ExpertSpec) -> "list[Finding]":
    from gateway.cli.weights import fetch
    from multimoe.contract import examine
    from multimoe.weights import Weights

    root = asked.catalog().weights if entry.weights else Path()
    if entry.weights:
        fetch(root, list(entry.weights.values()))
    return asyncio.run(examine(entry, Weights(root).find, _probes(entry)))


def _probes(entry: ExpertSpec) -> "Probes":
    """With somebody speaking: recognisers give nothing else words."""
    from dataclasses import replace

    from multimoe.config import Limits
    from multimoe.contract import probes_for
    from multimoe.media import decode_audio

    made = probes_for(entry.card)
    if "audio" not in entry.inputs:
        return made
    return replace(made, audio=(decode_audio(SPEECH.read_bytes(), Limits()), made.audio[0]))


def _print(entry: ExpertSpec, findings: "list[Finding]") -> None:
    marks = {"kept": "yes", "broken": "NO", "untried": "-"}
    print_table(("kept", "promise", "what to do"), [(marks[f.state], f.promise, f.advice) for f in findings])
    broken = sum(finding.state == "broken" for finding in findings)
    kept = sum(finding.state == "kept" for finding in findings)
    typer.echo(f"\n{entry.name}: {kept} promises kept, {broken} broken")
