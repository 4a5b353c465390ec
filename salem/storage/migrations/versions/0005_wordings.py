"""Scopes that mind single words, and how values are found. What was made before says how it was made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from salem.storage.migrations.documents import add_options, remove_options

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_models = sa.table("models", sa.column("name", sa.String), sa.column("scope_metric", sa.String))
_NEW_OPTIONS = {"lexical_weight": 0.0, "entry_values": "trained"}  # as everything was made before


def upgrade() -> None:
    """Write into stored options that words did not count, so that a replay does not count them either."""
    add_options(_NEW_OPTIONS)


def downgrade() -> None:
    """Take the options out again, and let each model's next job train a metric.

    Older code refuses to read metrics that know steady words, and versions whose entries live in one.
    """
    op.execute(sa.update(_models).values(scope_metric=None))
    remove_options(_NEW_OPTIONS)
