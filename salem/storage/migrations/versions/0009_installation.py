"""An installation has a name of its own, which a blob store can be marked with."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Give the installation a name."""
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_installation"),
    )
    op.bulk_insert(installation, [{"id": secrets.token_hex(16)}])


def downgrade() -> None:
    """Forget the name; a blob store that is marked with it stays so, and older code does not ask."""
    op.drop_table("installation")
