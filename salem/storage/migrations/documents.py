"""JSON documents that a migration rewrites: options in the requests of jobs and in versions.

Used by migrations alone. Knows the columns as they have been since the first tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

Document = dict[str, Any]
Change = Callable[[Document], Document]

_jobs = sa.table("jobs", sa.column("id", sa.String), sa.column("request", sa.JSON))
_versions = sa.table(
    "versions",
    sa.column("model", sa.String),
    sa.column("number", sa.Integer),
    sa.column("hyperparameters", sa.JSON),
)


def add_options(new: Document) -> None:
    """Write into all stored options what everything was made with before there was a choice."""
    _change_options(lambda options: new | options)


def remove_options(new: Document) -> None:
    """Take these options out of all stored ones."""
    _change_options(lambda options: {name: value for name, value in options.items() if name not in new})


def scale_option(name: str, factor: float, *, most: float) -> None:
    """Say a number among stored options in another unit; no more than `most`, all that is allowed there."""

    def changed(options: Document) -> Document:
        return options | {name: min(options[name] * factor, most)} if name in options else options

    _change_options(changed)


def replace_option(name: str, old: Any, new: Any) -> None:
    """Say one value of an option as another."""
    _change_options(lambda options: options | {name: new} if options.get(name) == old else options)


def change_documents(table: sa.TableClause, document: str, change: Change) -> None:
    """Change a JSON column in every row; the table's other columns name a row."""
    connection = op.get_bind()
    for row in connection.execute(sa.select(table)).mappings().all():
        found = row[document]
        if found and (changed := change(found)) != found:
            here = [column == row[column.name] for column in table.columns if column.name != document]
            connection.execute(sa.update(table).where(*here).values({document: changed}))


def _change_options(change: Change) -> None:
    """Of versions, and of the jobs that have options."""
    change_documents(_versions, "hyperparameters", change)
    change_documents(
        _jobs,
        "request",
        lambda request: (
            request
            if request.get("hyperparameters") is None
            else request | {"hyperparameters": change(request["hyperparameters"])}
        ),
    )
