"""Scopes that ask the base how it begins. What was made before did not ask, and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Document = dict[str, Any]

_jobs = sa.table("jobs", sa.column("id", sa.String), sa.column("request", sa.JSON))
_versions = sa.table(
    "versions",
    sa.column("model", sa.String),
    sa.column("number", sa.Integer),
    sa.column("hyperparameters", sa.JSON),
)
_entries = sa.table(
    "entries",
    sa.column("model", sa.String),
    sa.column("made_in", sa.Integer),
    sa.column("version", sa.Integer),
    sa.column("position", sa.Integer),
    sa.column("record", sa.JSON),
)
_NEW_OPTIONS = {"disagreement_weight": 0.0, "extent_aware": True}  # as everything was made before


def upgrade() -> None:
    """Write into stored options that the base was not asked, so that a replay does not ask it either."""
    _change(_jobs, "request", lambda request: _with_options(request, _told))
    _change(_versions, "hyperparameters", _told)


def downgrade() -> None:
    """Take the options out again; entries that ask the base are files that older code refuses to read."""
    _change(_jobs, "request", lambda request: _with_options(request, _untold))
    _change(_versions, "hyperparameters", _untold)
    _change(_entries, "record", _with_cosines)


def _change(table: sa.TableClause, document: str, change: Callable[[Document], Document]) -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(table)).mappings().all():
        found = row[document]
        if found and (changed := change(found)) != found:
            here = [column == row[column.name] for column in table.columns if column.name != document]
            connection.execute(sa.update(table).where(*here).values({document: changed}))


def _with_options(request: Document, change: Callable[[Document], Document]) -> Document:
    """A job's request with its options changed; jobs that edit nothing have none."""
    options = request.get("hyperparameters")
    return request if options is None else request | {"hyperparameters": change(options)}


def _told(options: Document) -> Document:
    return _NEW_OPTIONS | options


def _untold(options: Document) -> Document:
    return {name: value for name, value in options.items() if name not in _NEW_OPTIONS}


def _with_cosines(entry: Document) -> Document:
    return entry | {"keys": [_with_cosine(key) for key in entry.get("keys", ())]}


def _with_cosine(key: Document) -> Document:
    return {"nearest_cosine" if name == "nearest_likeness" else name: value for name, value in key.items()}
