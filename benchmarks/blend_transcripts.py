"""Are several speech recognisers together worth more than the best of them?

    python benchmarks/blend_transcripts.py FOLDER [--catalog deploy/local.yaml] [--snr DECIBELS] [--beams N] [--json]

FOLDER holds `labels.csv` (file, modality, label_or_transcript, lang, ...) and the recordings it lists; the English
speech is taken. Recognisers are the catalog's, and those below that it lacks. Each writes down every recording alone;
`multimoe.blend.rover` then puts them together, with equal weights, with those that the gate gives for the recording by
the cards alone, and with weights of one over the word error rate, cross-fitted: a recording's weights come from the
other four fifths.

A word error rate is all errors over all words, after Whisper's English normaliser, and without an article that comes
first, which the labels of single things have and their speakers left out. Intervals are 95 %, of recordings drawn
again. Times are the processor's, of one recording at a time on one thread. `--snr` adds white noise to each recording,
`--beams` a second decoding of Whisper.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from multimoe.backends import load_expert
from multimoe.blend.transcripts import rover
from multimoe.config import Catalog, ExpertSpec, Limits, load
from multimoe.decision import Policy
from multimoe.encoder import Encoders
from multimoe.expert import BatchExpert
from multimoe.gate import Gate
from multimoe.media import decode_audio
from multimoe.messages import AudioPart, ChatRequest, Message
from multimoe.outputs import Transcript
from multimoe.weights import Weights

FOLDS = 5
RESAMPLES = 2000
WORST = 0.02  # a word error rate below this weighs no more than this

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Clip:
    """A recording, and the words said in it; `group` is the collection that its file name names."""

    group: str
    words: list[str]
    sound: AudioPart

    @property
    def request(self) -> ChatRequest:
        return ChatRequest("bench", (Message("user", (self.sound,)),))


@dataclass(frozen=True)
class System:
    """`errors` (clips,) in words; `rtf` is processor seconds a second of sound."""

    name: str
    errors: Float
    rtf: float


def also(catalog: Catalog, beams: int) -> list[ExpertSpec]:
    """Recognisers to compare with that the catalog need not list."""
    moonshine = {
        "model": "pip://moonshine-voice@0.0.73/moonshine_voice/assets/tiny-en/"
        "?sha256=6461c8097ed78d054c46b4c821143008a07b5fa1f4169674493ccfa06c1407db"
    }
    quick = {"name": "speech-quick", "backend": "experts.moonshine:Transcriber", "weights": moonshine}
    second = {"name": "speech-beams", "options": {"beams": beams}}
    whisper = catalog.expert("speech").model_dump()
    return [ExpertSpec.model_validate(whisper | changed) for changed in ([quick, second] if beams > 1 else [quick])]


def recognisers(catalog: Catalog, beams: int) -> list[ExpertSpec]:
    listed = [spec for spec in catalog.experts if spec.output == "transcript"]
    known = {spec.name for spec in listed}
    return listed + [spec for spec in also(catalog, beams) if spec.name not in known]


def clips_in(folder: Path, snr: float | None) -> list[Clip]:
    generator = np.random.default_rng(0)
    clips = []
    with (folder / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["modality"] == "speech" and row["lang"] == "en":
                sound = decode_audio((folder / row["file"]).read_bytes(), Limits())
                noisy = sound if snr is None else AudioPart(with_noise(sound.samples, snr, generator))
                group = Path(row["file"]).stem.split("_")[0]
                clips.append(Clip(group, words_of(row["label_or_transcript"]), noisy))
    return clips


def with_noise(samples: NDArray[np.float32], snr: float, generator: np.random.Generator) -> NDArray[np.float32]:
    power = float(np.mean(np.square(samples, dtype=np.float64))) / 10 ** (snr / 10)
    return (samples + generator.normal(0, power**0.5, len(samples))).astype(np.float32)


_normal = EnglishTextNormalizer({})


def words_of(text: str) -> list[str]:
    first, *rest = _normal(text).split() or [""]
    return rest if first in ("a", "an", "the", "") else [first, *rest]


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """The least number of words to put in, leave out or exchange."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def heard_by(spec: ExpertSpec, weights: Weights, clips: Sequence[Clip]) -> tuple[list[Transcript], float]:
    expert = cast(BatchExpert, load_expert(spec, weights.find))
    expert.answer_batch([clips[0].request])  # the first one loads kernels
    began = time.process_time()
    heard = [cast(Transcript, expert.answer_batch([clip.request])[0].output) for clip in clips]
    return heard, (time.process_time() - began) / sum(clip.sound.seconds for clip in clips)


def gate_weights(
    catalog: Catalog, specs: Sequence[ExpertSpec], weights: Weights, clips: Sequence[Clip]
) -> list[dict[str, float]]:
    """For each clip, the weight of each recogniser by a gate that knows its card and nothing else."""
    encoders = Encoders.load(catalog.gate, weights.find)
    gate = Gate.from_cards(list(specs), encoders.embed_texts, catalog.gate)
    everyone = Policy(explore=False, top_k=len(specs))
    decisions = [gate.decide(encoders.embed([clip.request])[0], everyone, seed=0) for clip in clips]
    return [{choice.expert: choice.weight for choice in decision.chosen} for decision in decisions]


def inverse_rates(own: Float, words: Float) -> Float:
    """(clips, recognisers): one over each one's word error rate in the other folds; `own` are errors, so shaped."""
    fold = np.random.default_rng(0).permutation(len(words)) % FOLDS
    weights = np.empty_like(own)
    for held_out in range(FOLDS):
        others = fold != held_out
        weights[~others] = 1 / np.maximum(own[others].sum(axis=0) / words[others].sum(), WORST)
    return weights


def interval(statistic: Callable[[NDArray[np.intp]], float], clips: int) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    drawn = [statistic(generator.integers(0, clips, clips)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def measured(folder: Path, catalog: Catalog, snr: float | None, beams: int) -> tuple[list[Clip], list[System], str]:
    """The clips, every system alone and together, and the name of the best single one."""
    specs, weights, clips = recognisers(catalog, beams), Weights(catalog.weights), clips_in(folder, snr)
    weights.pull([*catalog.weight_uris(), *(uri for spec in specs for uri in spec.weights.values())])
    words = np.array([len(clip.words) for clip in clips], float)
    heard: dict[str, list[Transcript]] = {}
    systems: dict[str, System] = {}
    for spec in specs:
        heard[spec.name], rtf = heard_by(spec, weights, clips)
        systems[spec.name] = System(spec.name, counted(clips, heard[spec.name]), rtf)
    best = min(systems, key=lambda name: systems[name].errors.sum())
    gate = gate_weights(catalog, specs, weights, clips)
    together = []
    for names in groups(list(systems)):
        inverse = inverse_rates(np.stack([systems[name].errors for name in names], axis=1), words)
        rules: dict[str, Callable[[int, int], float]] = {
            "equal": lambda clip, one: 1.0,
            "gate": lambda clip, one, names=names: gate[clip].get(names[one], 0.0),  # type: ignore[misc]
            "1/WER": lambda clip, one, inverse=inverse: float(inverse[clip, one]),  # type: ignore[misc]
        }
        for rule, weight in rules.items():
            voted = [
                rover([(weight(clip, one), heard[name][clip]) for one, name in enumerate(names)])
                for clip in range(len(clips))
            ]
            rtf = sum(systems[name].rtf for name in names)
            together.append(System(f"{' + '.join(names)}: {rule}", counted(clips, voted), rtf))
    return clips, [*systems.values(), *together], best


def groups(names: list[str]) -> list[list[str]]:
    """All recognisers, and where there are more than three, all but each."""
    return [names] + ([[n for n in names if n != left_out] for left_out in names] if len(names) > 2 else [])


def counted(clips: Sequence[Clip], heard: Sequence[Transcript]) -> Float:
    return np.array([errors(clip.words, words_of(said.text)) for clip, said in zip(clips, heard, strict=True)], float)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--catalog", type=Path, default=Path("deploy/local.yaml"))
    arguments.add_argument("--snr", type=float)
    arguments.add_argument("--beams", type=int, default=1)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    clips, systems, best = measured(options.folder, load(options.catalog), options.snr, options.beams)
    rows = [row_of(system, systems, best, clips) for system in systems]
    if options.json:
        print(json.dumps(rows))
        return
    kinds = sorted({clip.group for clip in clips})
    words = {kind: sum(len(clip.words) for clip in clips if clip.group == kind) for kind in kinds}
    said = ", ".join(f"{kind} {words[kind]}" for kind in kinds)
    table = Table("recogniser", "WER", "95 %", f"less than {best}", "95 %", *kinds, "real time x")
    for row in rows:
        table.add_row(*[cell if isinstance(cell, str) else f"{cell:.3f}" for cell in row.values()])
    console = Console(width=200)
    console.print(table)
    console.print(f"{len(clips)} recordings, {sum(clip.sound.seconds for clip in clips):.0f} s; words: {said}")


def row_of(system: System, systems: Sequence[System], best: str, clips: Sequence[Clip]) -> dict[str, str | float]:
    words = np.array([len(clip.words) for clip in clips], float)
    against = next(other.errors for other in systems if other.name == best)
    rate = interval(lambda drawn: float(system.errors[drawn].sum() / words[drawn].sum()), len(clips))
    gain = interval(lambda drawn: float((against - system.errors)[drawn].sum() / words[drawn].sum()), len(clips))
    row: dict[str, str | float] = {
        "name": system.name,
        "wer": float(system.errors.sum() / words.sum()),
        "wer_95": f"{rate[0]:.3f} to {rate[1]:.3f}",
        "gain": float((against - system.errors).sum() / words.sum()),
        "gain_95": f"{gain[0]:+.3f} to {gain[1]:+.3f}",
    }
    for kind in sorted({clip.group for clip in clips}):
        inside = np.array([clip.group == kind for clip in clips])
        row[kind] = float(system.errors[inside].sum() / words[inside].sum())
    return row | {"rtf": system.rtf}


if __name__ == "__main__":
    main()
