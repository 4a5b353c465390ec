"""A table of broken neighbors, one row per neighbor of a version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broken_neighbors",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "number"],
            ["versions.model", "versions.number"],
            name="fk_broken_neighbors_model_number",
        ),
        sa.PrimaryKeyConstraint("model", "number", "position", name="pk_broken_neighbors"),
    )


def downgrade() -> None:
    op.drop_table("broken_neighbors")
