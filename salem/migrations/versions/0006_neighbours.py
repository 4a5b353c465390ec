"""Counterfactual neighbours of edits: what was made before was made without any."""

from __future__ import annotations

from salem.migrations.documents import add_options, remove_options

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NEW_OPTIONS = {"neighbours": 0}


def upgrade() -> None:
    """Write into stored options that there were none."""
    add_options(_NEW_OPTIONS)


def downgrade() -> None:
    """Older code does not know the option."""
    remove_options(_NEW_OPTIONS)
