"""What an exchanged word costs is told in units of what equivalents exchange, no longer by itself.

A metric that does not say how much that is counts as one where it is a quarter, so that a replay of what was
made before comes to the same.
"""

from __future__ import annotations

from salem.migrations.documents import scale_option

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OPTION, _FACTOR = "exchange_weight", 0.25


def upgrade() -> None:
    """Say stored weights in the new unit."""
    scale_option(_OPTION, _FACTOR)


def downgrade() -> None:
    """Say them in the old unit again."""
    scale_option(_OPTION, 1 / _FACTOR)
