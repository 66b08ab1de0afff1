"""API keys, and whose key an answer was asked with."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"

TEXT = sa.Text
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("interactions", sa.Column("tenant", TEXT))
    op.create_table(
        "keys",
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("tenant", TEXT, nullable=False),
        sa.Column("scopes", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("created", MOMENT, nullable=False),
        sa.Column("expires", MOMENT),
        sa.Column("revoked", MOMENT),
    )
