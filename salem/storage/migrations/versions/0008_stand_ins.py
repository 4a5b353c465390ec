"""Stand-ins, and blocks that a recipe chooses for itself; what was made before was made without either."""

from __future__ import annotations

from salem.storage.migrations.documents import add_options, remove_options, replace_option

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_NEW_OPTIONS = {"anchor_samples": 0}


def upgrade() -> None:
    """Write into stored options that there were none; which blocks were chosen from is there already."""
    add_options(_NEW_OPTIONS)


def downgrade() -> None:
    """Take the option out again, and let recipes choose from the middle, as older code knows it.

    A version keeps its layer. What is replayed without one of its edits may take another.
    """
    remove_options(_NEW_OPTIONS)
    replace_option("candidates", "recipe", "middle")
