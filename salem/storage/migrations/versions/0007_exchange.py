"""What an exchanged word costs is told in units of what equivalents exchange, no longer by itself.

A metric that does not say how much that is counts as one in whose unit nothing changes. A job that trained or
refined its metric, or that had paraphrases, is told anew where it is replayed.
"""

from __future__ import annotations

from salem.storage.migrations.documents import scale_option

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OPTION, _FACTOR, _MOST = "lexical_weight", 0.25, 2.0


def upgrade() -> None:
    """Say stored weights in the new unit."""
    scale_option(_OPTION, _FACTOR, most=_MOST)


def downgrade() -> None:
    """Say them in the old unit again."""
    scale_option(_OPTION, 1 / _FACTOR, most=_MOST)
