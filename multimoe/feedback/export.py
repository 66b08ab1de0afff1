"""Ratings for other programs: JSON lines, a spreadsheet, TRL's two datasets, Vowpal Wabbit's contextual bandit.

JSON lines are exact. In the spreadsheet a cell that would run as a formula gets an apostrophe in front (OWASP, CSV
injection). TRL: https://huggingface.co/docs/trl/dataset_formats, conversational. VW: `--cb_adf`, one example a request.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

from multimoe.embedding import Embedding
from multimoe.errors import BadInput, NotFound
from multimoe.feedback.records import Interaction, Rated, Rating

Format = Literal["jsonl", "csv", "trl-kto", "trl-dpo", "vw"]
Find = Callable[[str], Interaction]  # raises NotFound

RATING_COLUMNS = (
    "completion_id",
    "target",
    "expert",
    "name",
    "score",
    "label",
    "comment",
    "source",
    "user",
    "preferred",
    "rejected",
    "created",
)
ANSWER_COLUMNS = ("model", "experts", "weights", "propensity", "gate_version", "question", "answer")


def lines(format: Format, rated: Iterable[Rated], find: Find) -> Iterator[str]:
    """Lines without line ends. Raises BadInput for an unknown format, at once."""
    if format == "jsonl":
        return _jsonl(rated)
    if format == "csv":
        return _csv(rated)
    if format == "trl-kto":
        return _kto(rated)
    if format == "trl-dpo":
        return _dpo(rated, find)
    if format == "vw":
        return _vw(rated)
    raise BadInput(f"format {format!r} is unknown; allowed: {', '.join(get_args(Format))}", "format")


def _jsonl(rated: Iterable[Rated]) -> Iterator[str]:
    """One rating a line, with the whole interaction but its embedding."""
    for one in rated:
        interaction = one.interaction.model_dump(mode="json", exclude={"embedding"})
        for rating in one.ratings:
            yield json.dumps(rating.model_dump(mode="json") | {"interaction": interaction}, ensure_ascii=False)


def _csv(rated: Iterable[Rated]) -> Iterator[str]:
    yield _csv_line((*RATING_COLUMNS, *ANSWER_COLUMNS))
    for one in rated:
        answer = _answer_cells(one.interaction)
        for rating in one.ratings:
            cells = rating.model_dump(mode="json") | {"rejected": " ".join(rating.rejected)}
            yield _csv_line([*(cells[name] for name in RATING_COLUMNS), *answer])


def _answer_cells(interaction: Interaction) -> list[Any]:
    decision = interaction.decision
    did = [outcome for outcome in interaction.outcomes if outcome.status != "skipped"]
    return [
        interaction.model,
        " ".join(outcome.expert for outcome in did),
        " ".join(f"{outcome.weight:.6g}" for outcome in did),
        decision and decision.propensity,
        decision and decision.gate_version,
        interaction.question,
        interaction.answer,
    ]


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([_harmless(cell) for cell in cells])
    return line.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _kto(rated: Iterable[Rated]) -> Iterator[str]:
    """Unpaired: every answer (or expert's own text) that somebody liked or disliked."""
    for one in rated:
        question = one.interaction.question
        for rating in one.ratings:
            text = _text_of(one.interaction, rating)
            if question and text and rating.liked is not None:
                row = {"prompt": _said("user", question), "completion": _said("assistant", text)}
                yield json.dumps(row | {"label": rating.liked}, ensure_ascii=False)


def _text_of(interaction: Interaction, rating: Rating) -> str | None:
    if rating.target == "answer":
        return interaction.answer
    return _expert_text(interaction, rating.expert) if rating.target == "expert" else None


def _expert_text(interaction: Interaction, expert: str | None) -> str | None:
    return next((o.text for o in interaction.outcomes if o.expert == expert and o.text), None)


def _dpo(rated: Iterable[Rated], find: Find) -> Iterator[str]:
    """Preferences: each comparison's preferred text against each rejected one."""
    for one in rated:
        for rating in one.ratings:
            chosen = _compared(one.interaction, rating.preferred, find)
            for name in rating.rejected:
                rejected = _compared(one.interaction, name, find)
                if one.interaction.question and chosen and rejected:
                    row = {
                        "prompt": _said("user", one.interaction.question),
                        "chosen": _said("assistant", chosen),
                        "rejected": _said("assistant", rejected),
                    }
                    yield json.dumps(row, ensure_ascii=False)


def _compared(interaction: Interaction, name: str | None, find: Find) -> str | None:
    """What an expert of this answer said, or another answer by its id."""
    if name is None or name in interaction.experts:
        return _expert_text(interaction, name)
    try:
        return find(name).answer
    except NotFound:
        return None


def _vw(rated: Iterable[Rated]) -> Iterator[str]:
    """One multi-line example a request: the action is the expert drawn first, its cost 1 - mean score.

    The probability is that of being drawn first, which the gate logs exactly. Pinned requests had no choice to learn.
    """
    for one in rated:
        decision = one.interaction.decision
        cost = _cost(one)
        if decision is None or cost is None or not decision.chosen:
            continue
        first = decision.chosen[0]
        yield f"shared {_features(one.interaction)}"
        for action in decision.considered:
            label = f"0:{cost:.6g}:{first.probability:.6g} " if action.expert == first.expert else ""
            yield f"{label}|a expert={action.expert}"
        yield ""


def _cost(one: Rated) -> float | None:
    scores = [rating.score for rating in one.ratings if rating.target == "answer" and rating.score is not None]
    return 1 - sum(scores) / len(scores) if scores else None


def _features(interaction: Interaction) -> str:
    if interaction.embedding is None:
        return "|m " + " ".join(interaction.decision.modalities if interaction.decision else ())
    vectors = Embedding.from_bytes(interaction.embedding).vectors
    spaces = (f"|{m} " + " ".join(f"{i}:{x:.4g}" for i, x in enumerate(v.features)) for m, v in vectors.items())
    return " ".join(spaces)
