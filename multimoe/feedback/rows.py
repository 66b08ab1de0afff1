"""How a record becomes a row and back, and how interactions are read with all that hangs on them."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, select

from multimoe.decision import Decision
from multimoe.feedback.records import Interaction, Job, Key, Outcome, Rating
from multimoe.feedback.tables import outcomes, ratings
from multimoe.outputs import Usage


def load(connection: Connection, query: Select[Any]) -> list[Interaction]:
    rows = connection.execute(query).mappings().all()
    chosen = outcomes.c.interaction_id.in_([row["id"] for row in rows])
    ordered = select(outcomes).where(chosen).order_by(outcomes.c.interaction_id, outcomes.c.place)
    theirs = _grouped(connection.execute(ordered).mappings().all(), "interaction_id")
    return [interaction_of(row, theirs.get(row["id"], [])) for row in rows]


def ratings_of(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[Rating, ...]]:
    order = (ratings.c.completion_id, ratings.c.created, ratings.c.target, ratings.c.expert)
    query = select(ratings).where(ratings.c.completion_id.in_(ids)).order_by(*order)
    rows = _grouped(connection.execute(query).mappings().all(), "completion_id")
    return {id: tuple(rating_of(row) for row in its) for id, its in rows.items()}


def _grouped(rows: Sequence[RowMapping], key: str) -> dict[str, list[RowMapping]]:
    """`rows` are sorted by `key`."""
    return {id: list(its) for id, its in groupby(rows, key=lambda row: str(row[key]))}


def interaction_row(interaction: Interaction) -> dict[str, Any]:
    same = ("id", "created", "model", "tenant", "status", "request_id", "question", "answer", "embedding")
    return {
        **{name: getattr(interaction, name) for name in same},
        "user_id": interaction.user,
        "decision": interaction.decision and interaction.decision.model_dump_json(),
        "usage": interaction.usage.model_dump_json(),
        "timing_ms": json.dumps(interaction.timing_ms),
    }


def outcome_rows(interaction: Interaction) -> list[dict[str, Any]]:
    return [
        {"interaction_id": interaction.id, "place": place, **outcome.model_dump()}
        for place, outcome in enumerate(interaction.outcomes)
    ]


def interaction_of(row: RowMapping, its_outcomes: Sequence[RowMapping]) -> Interaction:
    fields = {name: row[name] for name in Interaction.model_fields if name in row}
    return Interaction(
        **fields
        | {
            "user": row["user_id"],
            "decision": row["decision"] and Decision.model_validate_json(row["decision"]),
            "usage": Usage.model_validate_json(row["usage"]),
            "timing_ms": json.loads(row["timing_ms"]),
            "outcomes": tuple(Outcome(**{name: o[name] for name in Outcome.model_fields}) for o in its_outcomes),
        }
    )


def rating_row(rating: Rating) -> dict[str, Any]:
    row = rating.model_dump(exclude={"user"})
    return row | {
        "expert": rating.expert or "",
        "user_id": rating.user or "",
        "rejected": json.dumps(rating.rejected),
    }


def rating_of(row: RowMapping) -> Rating:
    fields = {name: row[name] for name in Rating.model_fields if name in row}
    return Rating(
        **fields
        | {
            "expert": row["expert"] or None,
            "user": row["user_id"] or None,
            "rejected": tuple(json.loads(row["rejected"])),
        }
    )


def job_of(row: RowMapping) -> Job:
    fields = {name: row[name] for name in Job.model_fields}
    return Job(**fields | {"result": row["result"] and json.loads(row["result"])})


def key_row(key: Key) -> dict[str, Any]:
    written = {"scopes": json.dumps(sorted(key.scopes)), "quota": key.quota.model_dump_json(exclude_none=True)}
    return key.model_dump() | written


def key_of(row: RowMapping) -> Key:
    return Key(**{**row, "scopes": json.loads(row["scopes"]), "quota": json.loads(row["quota"] or "{}")})
