"""Scopes that mind single words, and how values are found. What was made before says how it was made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
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
_models = sa.table("models", sa.column("name", sa.String), sa.column("scope_metric", sa.String))
_NEW_OPTIONS = {"exchange_weight": 0.0, "entry_values": "trained"}  # as everything was made before


def upgrade() -> None:
    """Write into stored options that words did not count, so that a replay does not count them either."""
    _change_all(lambda options: _NEW_OPTIONS | options)


def downgrade() -> None:
    """Take the options out again, and let each model's next job train a metric.

    Older code refuses to read metrics that know steady words, and versions whose entries live in one.
    """
    op.execute(sa.update(_models).values(scope_metric=None))
    _change_all(lambda options: {name: value for name, value in options.items() if name not in _NEW_OPTIONS})


def _change_all(change: Callable[[Document], Document]) -> None:
    _change(_versions, "hyperparameters", change)
    _change(_jobs, "request", lambda request: _with_options(request, change))


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
