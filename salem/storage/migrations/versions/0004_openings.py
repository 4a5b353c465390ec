"""Scopes that ask the base how it begins. What was made before did not ask, and says so."""

from __future__ import annotations

import sqlalchemy as sa

from salem.storage.migrations.documents import Document, add_options, change_documents, remove_options

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_entries = sa.table(
    "entries",
    sa.column("model", sa.String),
    sa.column("made_in", sa.Integer),
    sa.column("version", sa.Integer),
    sa.column("position", sa.Integer),
    sa.column("record", sa.JSON),
)
_NEW_OPTIONS = {"first_token_weight": 0.0, "rest_when_held": True}  # as everything was made before


def upgrade() -> None:
    """Write into stored options that the base was not asked, so that a replay does not ask it either."""
    add_options(_NEW_OPTIONS)


def downgrade() -> None:
    """Take the options out again; entries that ask the base are files that older code refuses to read."""
    remove_options(_NEW_OPTIONS)
    change_documents(_entries, "record", _with_cosines)


def _with_cosines(entry: Document) -> Document:
    return entry | {"keys": [_with_cosine(key) for key in entry.get("keys", ())]}


def _with_cosine(key: Document) -> Document:
    return {"nearest_cosine" if name == "nearest_likeness" else name: value for name, value in key.items()}
