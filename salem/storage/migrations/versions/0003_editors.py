"""Editors that are trained ahead. What is there is kept as it is."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_jobs = sa.table(
    "jobs", sa.column("id", sa.String), sa.column("kind", sa.String), sa.column("request", sa.JSON)
)
_versions = sa.table(
    "versions",
    sa.column("model", sa.String),
    sa.column("number", sa.Integer),
    sa.column("hyperparameters", sa.JSON),
    sa.column("metrics", sa.JSON),
)
_entries = sa.table(
    "entries",
    sa.column("model", sa.String),
    sa.column("made_in", sa.Integer),
    sa.column("version", sa.Integer),
    sa.column("position", sa.Integer),
    sa.column("record", sa.JSON),
)
_DOCUMENTS = {_jobs: ("request",), _versions: ("hyperparameters", "metrics"), _entries: ("record",)}
_ADDED = ("forget", "extent", "forgetting")


def upgrade() -> None:
    """Add the table of editors that were trained ahead."""
    op.create_table(
        "editors",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64)),
        sa.Column("layer", sa.String(255), nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("num_trained_on", sa.Integer(), nullable=False),
        sa.Column("num_held_out", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_editors_job_id"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_editors_model"),
        sa.PrimaryKeyConstraint("id", name="pk_editors"),
        sa.UniqueConstraint("job_id", name="uq_editors_job_id"),
    )
    op.create_index("ix_editors_model", "editors", ["model"])


def downgrade() -> None:
    """Forget editors, the jobs that trained them, and which versions they made; these answer as before.

    What forgets an answer stays as it is, and older code refuses to read it.
    """
    op.drop_table("editors")
    connection = op.get_bind()
    connection.execute(sa.delete(_jobs).where(_jobs.c.kind == "train_editor"))
    for table, documents in _DOCUMENTS.items():
        for row in connection.execute(sa.select(table)).mappings().all():
            here = [column == row[column.name] for column in table.columns if column.name not in documents]
            kept = {name: _as_before(row[name]) for name in documents}
            if any(kept[name] != row[name] for name in documents):
                connection.execute(sa.update(table).where(*here).values(kept))


def _as_before(part: Any) -> Any:
    """A document without the fields that came with editors, and those of forgetting where they are empty."""
    if isinstance(part, list):
        return [_as_before(item) for item in part]
    if not isinstance(part, dict):
        return part
    kept = {name: value for name, value in part.items() if name != "editor"}
    return {n: _as_before(value) for n, value in kept.items() if value is not None or n not in _ADDED}
