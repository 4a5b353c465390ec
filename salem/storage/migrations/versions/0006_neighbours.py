"""Counterfactual neighbors of edits: what was made before was made without any."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from salem.storage.migrations.documents import add_options, remove_options

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_models = sa.table("models", sa.column("name", sa.String), sa.column("scope_metric", sa.String))
_NEW_OPTIONS = {"neighbors": 0}


def upgrade() -> None:
    """Write into stored options that there were none."""
    add_options(_NEW_OPTIONS)


def downgrade() -> None:
    """Take the option out again, and let each model's next job train a metric.

    Older code refuses to read metrics that know words, and versions whose entries live in one.
    """
    op.execute(sa.update(_models).values(scope_metric=None))
    remove_options(_NEW_OPTIONS)
