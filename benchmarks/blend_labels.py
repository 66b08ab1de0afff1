"""Are two image classifiers together worth more than the better of them, and when need the second be asked?

    python benchmarks/blend_labels.py FOLDER [--catalog deploy/local.yaml] [--json]

FOLDER holds `labels.csv` (file, modality, label, ..., note) and the pictures it lists. Those whose note names a class
of ImageNet ("class n02123045") are scored: every classifier alone, and mixtures by `multimoe.blend`. Other pictures
whose label is a name of exactly one class are scored apart, with what was fitted on the former.

Temperatures are cross-fitted: a picture's is fitted on the others. Classifiers list 20 labels; the rest counts as
spread evenly over the classes not listed. Gate weights are those the cards give for the picture alone. Times are of one
picture at a time on one thread, in the processor's time, without the cluster: for a mixture the sum of both. Intervals
are 95 %, of pictures drawn again.
"""

import argparse
import csv
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.special import log_softmax
from timm.data.imagenet_info import ImageNetInfo

from experts.imagenet import ImageNetClassifier
from multimoe.blend import mix_labels
from multimoe.blend.labels import plain
from multimoe.calibration import calibration_error
from multimoe.config import Catalog, Limits, load
from multimoe.decision import Policy
from multimoe.encoder import Encoders
from multimoe.gate import Gate
from multimoe.media import decode_image
from multimoe.messages import ChatRequest, ImagePart, Message
from multimoe.outputs import Label, Labels
from multimoe.temperature import Fitted, calibrate, cross_fitted
from multimoe.temperature import fit as fit_temperature
from multimoe.weights import Weights

Float = NDArray[np.float64]

SPACE = "imagenet-1k"
FIRST, SECOND = "vision-fast", "vision-careful"
TOP = 20  # labels an answer lists
RESAMPLES = 2000
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ANIMALS = 398  # the first so many classes of ImageNet are animals

IDS = [ImageNetInfo().index_to_label_name(index) for index in range(1000)]  # WordNet's
NAMES = [ImageNetInfo().index_to_description(index).split(", ") for index in range(1000)]


@dataclass(frozen=True, eq=False)
class Pictures:
    """n pictures with their right classes (n,), each classifier's logits (n, 1000) and times (n,) in ms, and the gate's

    weight of FIRST (n,).
    """

    parts: Sequence[ImagePart]
    truth: NDArray[np.intp]
    logits: Mapping[str, Float]
    ms: Mapping[str, Float]
    gate: Float


@dataclass(frozen=True, eq=False)
class Scored:
    """What each of n pictures came to, all (n,): `chance` of the right label, `sure` of the likeliest."""

    top1: Float
    top5: Float
    chance: Float
    sure: Float
    ms: Float

    def each(self, measure: str) -> Float:
        """What every picture contributes to a mean, (n,)."""
        return -np.log(self.chance) if measure == "nll" else np.asarray(getattr(self, measure))

    def figures(self) -> dict[str, float]:
        means = {measure: float(self.each(measure).mean()) for measure in ("top1", "top5", "nll", "ms")}
        return means | {"ece": calibration_error(self.sure, self.top1)}


def rows_of(folder: Path) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Pictures with the class they are filed under, and others with the one class that has their name."""
    named: dict[str, set[int]] = {}
    for index, names in enumerate(NAMES):
        for name in names:
            named.setdefault(plain(name), set()).add(index)
    filed, other = [], []
    with (folder / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["modality"] != "image":
                continue
            found = re.search(r"class (n\d{8})", row["note"])
            if found:
                filed.append((folder / row["file"], IDS.index(found.group(1))))
            elif len(classes := named.get(plain(row["label_or_transcript"]), set())) == 1:
                other.append((folder / row["file"], next(iter(classes))))
    return filed, other


def look(rows: Sequence[tuple[Path, int]], catalog: Catalog) -> Pictures:
    find = Weights(catalog.weights).find
    experts = {name: ImageNetClassifier(catalog.expert(name), find) for name in (FIRST, SECOND)}
    encoders = Encoders.load(catalog.gate, find)
    gate = Gate.from_cards(catalog.experts, encoders.embed_texts, catalog.gate)
    parts = [decode_image(path.read_bytes(), Limits()) for path, _ in rows]
    logits: dict[str, list[Float]] = {name: [] for name in experts}
    ms: dict[str, list[float]] = {name: [] for name in experts}
    for expert in experts.values():
        expert.logits([Image.fromarray(parts[0].pixels)])
    for part in parts:
        for name, expert in experts.items():
            began = time.thread_time()
            logits[name].append(expert.logits([Image.fromarray(part.pixels)])[0].double().numpy())
            ms[name].append(1000 * (time.thread_time() - began))
    return Pictures(
        parts,
        np.array([truth for _, truth in rows], dtype=np.intp),
        {name: np.stack(found) for name, found in logits.items()},
        {name: np.array(found) for name, found in ms.items()},
        np.array([weight_of_first(gate, encoders, part) for part in parts]),
    )


def weight_of_first(gate: Gate, encoders: Encoders, part: ImagePart) -> float:
    """Between the two classifiers, of the picture alone."""
    embedding = encoders.embed([ChatRequest("bench", (Message("user", (part,)),))])[0]
    decision = gate.decide(embedding, Policy(experts=(FIRST, SECOND), top_k=2, explore=False), seed=0)
    return {choice.expert: choice.weight for choice in decision.chosen}.get(FIRST, 0.0)


def answer(chances: Float, able: slice = slice(None)) -> Labels:
    """As the expert would give it, from probabilities (1000,); `able` are the classes it knows."""
    known = np.arange(len(IDS))[able]
    best = known[np.argsort(-chances[known])[:TOP]]
    labels = (Label(name=NAMES[i][0], probability=min(1.0, float(chances[i])), id=IDS[i]) for i in best)
    return Labels(space=SPACE if able == slice(None) else "part", labels=tuple(labels))


def linear(parts: Sequence[tuple[float, Labels]]) -> Labels:
    """The plain pool over the union, in which what an expert cannot name counts as 0."""
    return mix_labels([(weight, labels.model_copy(update={"space": SPACE})) for weight, labels in parts])


def score(found: Sequence[Labels], truth: NDArray[np.intp], ms: Float) -> Scored:
    top1, top5, chance, sure = [], [], [], []
    for labels, right in zip(found, truth, strict=True):
        ids = [label.id for label in labels.labels]
        listed = {label.id: label.probability for label in labels.labels}
        rest = max(1e-6, 1 - sum(listed.values())) / (len(IDS) - len(listed))
        top1.append(ids[0] == IDS[right])
        top5.append(IDS[right] in ids[:5])
        chance.append(max(listed.get(IDS[right], 0.0), rest))
        sure.append(labels.labels[0].probability)
    return Scored(*(np.array(column, dtype=np.float64) for column in (top1, top5, chance, sure)), ms)


def ways(pictures: Pictures, chances: Mapping[str, Float]) -> dict[str, Scored]:
    """Each classifier alone and every mixture of both, at probabilities (n, 1000)."""
    first, second = ([answer(row) for row in chances[name]] for name in (FIRST, SECOND))
    both = pictures.ms[FIRST] + pictures.ms[SECOND]
    sure = [np.array([labels.labels[0].probability for labels in found]) for found in (first, second)]
    weights = {
        "uniform mix": np.full(len(first), 0.5),
        "gate-weighted mix": pictures.gate,
        "mix by confidence": sure[0] / (sure[0] + sure[1]),
    }
    mixed = {
        name: [mix_labels([(w, a), (1 - w, b)]) for w, a, b in zip(shares, first, second, strict=True)]
        for name, shares in weights.items()
    }
    found = {
        FIRST: score(first, pictures.truth, pictures.ms[FIRST]),
        SECOND: score(second, pictures.truth, pictures.ms[SECOND]),
        **{name: score(labels, pictures.truth, both) for name, labels in mixed.items()},
    }
    for threshold in THRESHOLDS:
        asked = sure[0] < threshold
        labels = [mixed["gate-weighted mix"][i] if ask else first[i] for i, ask in enumerate(asked)]
        ms = pictures.ms[FIRST] + asked * pictures.ms[SECOND]
        found[f"second below {threshold:g} ({asked.mean():.0%})"] = score(labels, pictures.truth, ms)
    return found


def as_they_come(pictures: Pictures, chances: Mapping[str, Float]) -> dict[str, Scored]:
    """Each alone, to be set beside what calibration makes of it."""
    return {
        f"{name}, as it comes": score([answer(row) for row in rows], pictures.truth, pictures.ms[name])
        for name, rows in chances.items()
    }


def in_part(pictures: Pictures, chances: Mapping[str, Float], temperature: float) -> dict[str, Scored]:
    """FIRST beside a SECOND that knows animals alone, or things alone, and must call every picture one of them."""
    found = {}
    for kind, able in (("animals", slice(0, ANIMALS)), ("things", slice(ANIMALS, None))):
        closed = np.full((len(pictures.truth), len(IDS)), -np.inf)
        closed[:, able] = pictures.logits[SECOND][:, able]
        few = np.exp(log_softmax(closed / temperature, axis=1))
        pairs = [((0.5, answer(a)), (0.5, answer(b, able))) for a, b in zip(chances[FIRST], few, strict=True)]
        both = pictures.ms[FIRST] + pictures.ms[SECOND]
        pools: dict[str, Callable[[Sequence[tuple[float, Labels]]], Labels]] = {
            "linear pool": linear,
            "as mixed": mix_labels,
        }
        for name, pool in pools.items():
            found[f"with one for {kind}, {name}"] = score([pool(pair) for pair in pairs], pictures.truth, both)
    return found


def interval(found: Scored, best: Scored | None, measure: str) -> tuple[float, float]:
    """Of a figure, or of its difference to `best`'s on the same pictures."""
    values = found.each(measure) - (best.each(measure) if best is not None else 0.0)
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def table(title: str, found: Mapping[str, Scored], best: str) -> Table:
    columns = ("who", "top-1 %", "top-5 %", "NLL", "ECE", "ms", f"top-1 less {best}'s", f"NLL less {best}'s")
    shown = Table(*columns, title=title)
    for name, scored in found.items():
        f = scored.figures()
        cells = [
            f"{100 * f[m]:.1f} ({100 * low:.0f} to {100 * high:.0f})"
            for m in ("top1", "top5")
            for low, high in [interval(scored, None, m)]
        ]
        low, high = interval(scored, None, "nll")
        cells += [f"{f['nll']:.3f} ({low:.2f} to {high:.2f})", f"{f['ece']:.3f}", f"{f['ms']:.0f}"]
        for m, scale, digits in (("top1", 100, 1), ("nll", 1, 3)):
            gain = f[m] - found[best].figures()[m]
            low, high = interval(scored, found[best], m)
            cells.append(
                "" if name == best else f"{scale * gain:+.{digits}f} ({scale * low:+.2g} to {scale * high:+.2g})"
            )
        shown.add_row(name, *cells)
    return shown


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("media", type=Path)
    arguments.add_argument("--catalog", type=Path, default=Path("deploy/local.yaml"))
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    catalog = load(options.catalog)
    filed, other = rows_of(options.media)
    pictures, strange = look(filed, catalog), look(other, catalog)
    temperatures: dict[str, Fitted] = {
        name: calibrate(logits, pictures.truth, np.random.default_rng(0)) for name, logits in pictures.logits.items()
    }
    raw = {name: np.exp(log_softmax(logits, axis=1)) for name, logits in pictures.logits.items()}
    fair = {
        name: np.exp(cross_fitted(logits, pictures.truth, np.random.default_rng(0)))
        for name, logits in pictures.logits.items()
    }
    moved = {
        name: np.exp(log_softmax(logits / temperatures[name].temperature, axis=1))
        for name, logits in strange.logits.items()
    }
    untouched = {name: np.exp(log_softmax(logits, axis=1)) for name, logits in strange.logits.items()}
    results = {
        "as they come": ways(pictures, raw),
        "at cross-fitted temperatures": as_they_come(pictures, raw)
        | ways(pictures, fair)
        | in_part(pictures, fair, temperatures[SECOND].temperature),
        "other pictures, as they come": ways(strange, untouched),
        "other pictures, at the temperatures of the former": ways(strange, moved),
    }
    spread = {name: spread_of(logits, pictures.truth) for name, logits in pictures.logits.items()}
    if options.json:
        figures = {title: {name: s.figures() for name, s in found.items()} for title, found in results.items()}
        fitted = {name: f.model_dump() | {"interval": spread[name]} for name, f in temperatures.items()}
        print(json.dumps({"temperatures": fitted, "figures": figures}))
        return
    console = Console(width=190)
    for name, fitted_one in temperatures.items():
        low, high = spread[name]
        console.print(f"{name}: temperature {fitted_one.temperature:.3f} ({low:.2f} to {high:.2f})  {fitted_one}")
    console.print(f"the gate's weight of {FIRST}: {pictures.gate.min():.2f} to {pictures.gate.max():.2f}")
    for title, found in results.items():
        count = len(next(iter(found.values())).top1)
        console.print(table(f"{count} pictures, {title}", found, SECOND))


def spread_of(logits: Float, truth: NDArray[np.intp], resamples: int = 200) -> tuple[float, float]:
    """The interval of a temperature, of pictures drawn again."""
    generator = np.random.default_rng(0)
    drawn = (generator.integers(0, len(truth), len(truth)) for _ in range(resamples))
    low, high = np.quantile([fit_temperature(logits[rows], truth[rows]) for rows in drawn], [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
