"""How often the gate picks the right kind of expert before it has seen a single rating.

    python benchmarks/zero_shot.py --media FOLDER [--catalog deploy/local.yaml] [--json]

FOLDER holds `labels.csv` (file, modality, ...) and the files it lists; modality is image, image-ocr, speech or sound.
The text prompts lie beside this file. Prints a table of hits by kind, and every miss.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from multimoe.config import Catalog, Limits, load
from multimoe.decision import Policy
from multimoe.encoder import Encoders
from multimoe.gate import Gate
from multimoe.media import decode_audio, decode_image
from multimoe.messages import ChatRequest, Message, Part, TextPart
from multimoe.weights import Weights

RIGHT = {  # kind of input -> kinds of output that are right for it
    "image": {"labels"},
    "image-ocr": {"words"},
    "speech": {"transcript"},
    "sound": {"events"},
    "image+question": {"text"},
}


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    parts: tuple[Part, ...]


def text_cases() -> Iterator[Case]:
    for line in (Path(__file__).parent / "prompts.tsv").read_text().splitlines():
        kind, prompt = line.split("\t", 1)
        text = prompt.replace("\\n", "\n")
        yield Case(kind, prompt, (TextPart(text),))


def media_cases(folder: Path) -> Iterator[Case]:
    questions = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    asked = {q["images"][0]: q["question"] for q in questions}
    with (folder / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            data = (folder / row["file"]).read_bytes()
            part = (decode_image if row["modality"].startswith("image") else decode_audio)(data, Limits())
            question = asked.get(row["file"]) if row["modality"] == "image+question" else None
            yield Case(row["modality"], row["file"], (part, *([TextPart(question)] if question else [])))


def is_right(case: Case, chosen: str, catalog: Catalog) -> bool:
    spec = catalog.expert(chosen)
    if case.kind in RIGHT:
        return spec.output in RIGHT[case.kind] and bool({p.modality for p in case.parts} & spec.inputs)
    return spec.output == "text" if case.kind == "text" else spec.name == case.kind


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--catalog", type=Path, default=Path("deploy/local.yaml"))
    arguments.add_argument("--media", type=Path)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    catalog = load(options.catalog)
    encoders = Encoders.load(catalog.gate, Weights(catalog.weights).find)
    gate = Gate.from_cards(catalog.experts, encoders.embed_texts, catalog.gate)
    cases = [*text_cases(), *(media_cases(options.media) if options.media else ())]
    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    went: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    misses = []
    for case in cases:
        embedding = encoders.embed([ChatRequest("bench", (Message("user", case.parts),))])[0]
        decision = gate.decide(embedding, Policy(explore=False), seed=0)
        chosen = decision.chosen[0].expert
        hit = is_right(case, chosen, catalog)
        tally[case.kind][0] += hit
        tally[case.kind][1] += 1
        went[case.kind][chosen] += 1
        if not hit:
            misses.append((case.kind, case.name, chosen, decision.reasons[0]))
    hits, total = (sum(row[i] for row in tally.values()) for i in (0, 1))
    if options.json:
        print(json.dumps({"right": hits, "of": total, "by_kind": tally, "misses": misses}))
        return
    console = Console(width=160)
    table = Table("input", "right kind", "of", "share", "went to", title="top-1 expert before any rating")
    for kind, (right, n) in tally.items():
        counts = ", ".join(f"{name} {count}" for name, count in sorted(went[kind].items(), key=lambda x: -x[1]))
        table.add_row(kind, str(right), str(n), f"{right / n:.1%}", counts)
    table.add_row("all", str(hits), str(total), f"{hits / total:.1%}", "", style="bold")
    console.print(table)
    for kind, name, chosen, reason in misses:
        console.print(f"[dim]{kind}[/]  {name[:60]!r} -> {chosen}  [dim]{reason[:110]}[/]")


if __name__ == "__main__":
    main()
