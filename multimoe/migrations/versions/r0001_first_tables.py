"""Interactions with their outcomes, ratings with their history, jobs."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None

TEXT, REAL, MOMENT = sa.Text, sa.Double, sa.DateTime(timezone=True)


def upgrade() -> None:
    _interactions()
    _ratings()
    _jobs()


def _interactions() -> None:
    op.create_table(
        "interactions",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("user_id", TEXT),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("request_id", TEXT),
        sa.Column("question", TEXT),
        sa.Column("answer", TEXT),
        sa.Column("decision", TEXT),
        sa.Column("usage", TEXT, nullable=False),
        sa.Column("timing_ms", TEXT, nullable=False),
        sa.Column("embedding", sa.LargeBinary),
    )
    op.create_index("interactions_by_time", "interactions", ["created", "id"])
    op.create_table(
        "outcomes",
        sa.Column("interaction_id", TEXT, sa.ForeignKey("interactions.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("expert", TEXT, nullable=False),
        sa.Column("role", TEXT, nullable=False),
        sa.Column("weight", REAL, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("latency_ms", REAL, nullable=False),
        sa.Column("cost", REAL, nullable=False),
        sa.Column("text", TEXT),
    )
    op.create_index("outcomes_by_expert", "outcomes", ["expert", "interaction_id"])


def _rating_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("score", REAL),
        sa.Column("label", TEXT),
        sa.Column("comment", TEXT),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("preferred", TEXT),
        sa.Column("rejected", TEXT, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
    ]


def _ratings() -> None:
    key = ("completion_id", "target", "expert", "name", "user_id")
    op.create_table(
        "ratings",
        *(sa.Column(name, TEXT, primary_key=True) for name in key),
        *_rating_columns(),
        sa.ForeignKeyConstraint(["completion_id"], ["interactions.id"], ondelete="CASCADE"),
    )
    op.create_index("ratings_by_time", "ratings", ["created"])
    op.create_table(
        "rating_history",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("action", TEXT, nullable=False),
        *(sa.Column(name, TEXT, nullable=False) for name in key),
        *_rating_columns(),
    )
    op.create_index("rating_history_by_completion", "rating_history", ["completion_id"])


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("progress", REAL, nullable=False),
        sa.Column("message", TEXT, nullable=False),
        sa.Column("result", TEXT),
        sa.Column("error", TEXT),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("updated", MOMENT, nullable=False),
    )
    op.create_index("jobs_by_time", "jobs", ["created"])
    running = sa.text("status = 'running'")
    op.create_index(
        "one_running_job_of_a_kind",
        "jobs",
        ["kind"],
        unique=True,
        sqlite_where=running,
        postgresql_where=running,
    )
