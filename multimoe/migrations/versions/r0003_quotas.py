"""How much a key may ask for."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"


def upgrade() -> None:
    op.add_column("keys", sa.Column("quota", sa.Text))
