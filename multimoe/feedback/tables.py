"""The tables of the log, as the code sees them; the migrations make them.

Structured fields that nobody searches by (a decision, usage, timings) are JSON text, exactly as pydantic writes it.
An absent user or expert is the empty string in a rating's key, because NULLs are never equal in a key.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    text,
)


class Words(TypeDecorator[str]):
    """Text from strangers: what no database can hold (NUL, half a surrogate pair) becomes U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        whole = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return whole.replace("\0", "\ufffd")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware moment in UTC; SQLite itself keeps no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

interactions = Table(
    "interactions",
    metadata,
    Column("id", Words, primary_key=True),
    Column("created", UtcDateTime, nullable=False),
    Column("model", Words, nullable=False),
    Column("user_id", Words),  # `user` alone is the database's own login in PostgreSQL
    Column("tenant", Words),
    Column("status", Words, nullable=False),
    Column("request_id", Words),
    Column("question", Words),
    Column("answer", Words),
    Column("decision", Words),
    Column("usage", Words, nullable=False),
    Column("timing_ms", Words, nullable=False),
    Column("embedding", LargeBinary),
    Index("interactions_by_time", "created", "id"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("interaction_id", Words, ForeignKey("interactions.id", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("expert", Words, nullable=False),
    Column("role", Words, nullable=False),
    Column("weight", Double, nullable=False),
    Column("status", Words, nullable=False),
    Column("latency_ms", Double, nullable=False),
    Column("cost", Double, nullable=False),
    Column("text", Words),
    Index("outcomes_by_expert", "expert", "interaction_id"),
)


RATING_KEY = ("completion_id", "target", "expert", "name", "user_id")


def _rating_columns() -> list[Column[Any]]:
    return [
        Column("score", Double),
        Column("label", Words),
        Column("comment", Words),
        Column("source", Words, nullable=False),
        Column("preferred", Words),
        Column("rejected", Words, nullable=False),
        Column("created", UtcDateTime, nullable=False),
    ]


ratings = Table(
    "ratings",
    metadata,
    *(Column(name, Words, primary_key=True) for name in RATING_KEY),
    *_rating_columns(),
    ForeignKeyConstraint(["completion_id"], ["interactions.id"], ondelete="CASCADE"),
    Index("ratings_by_time", "created"),
)

history = Table(  # only ever added to: every value a rating has had, and every withdrawal
    "rating_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("action", Words, nullable=False),
    *(Column(name, Words, nullable=False) for name in RATING_KEY),
    *_rating_columns(),
    Index("rating_history_by_completion", "completion_id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Words, primary_key=True),
    Column("kind", Words, nullable=False),
    Column("status", Words, nullable=False),
    Column("progress", Double, nullable=False),
    Column("message", Words, nullable=False),
    Column("result", Words),
    Column("error", Words),
    Column("created", UtcDateTime, nullable=False),
    Column("updated", UtcDateTime, nullable=False),
    Index("jobs_by_time", "created"),
)
keys = Table(  # revoked, never deleted: who once could do what stays known
    "keys",
    metadata,
    Column("id", Words, primary_key=True),
    Column("name", Words, nullable=False),
    Column("tenant", Words, nullable=False),
    Column("scopes", Words, nullable=False),
    Column("digest", Words, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime),
    Column("revoked", UtcDateTime),
    Column("quota", Words),
)

Index(
    "one_running_job_of_a_kind",
    jobs.c.kind,
    unique=True,
    sqlite_where=text("status = 'running'"),
    postgresql_where=text("status = 'running'"),
)
