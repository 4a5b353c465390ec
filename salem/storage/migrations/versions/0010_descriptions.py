"""A hosted model notes what its config, labels and tokenizer were; of older ones that is not known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make room for the digest."""
    op.add_column("models", sa.Column("descriptions_sha256", sa.String(64), nullable=True))


def downgrade() -> None:
    """Drop it: older code takes a folder as it is."""
    op.drop_column("models", "descriptions_sha256")
