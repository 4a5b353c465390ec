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
)


def upgrade() -> None:
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
    """Forget editors, the jobs that trained them, and which versions they made; these answer as before."""
    op.drop_table("editors")
    connection = op.get_bind()
    connection.execute(sa.delete(_jobs).where(_jobs.c.kind == "train_editor"))
    for row in connection.execute(sa.select(_jobs).where(_jobs.c.kind == "edit")).mappings().all():
        request = row["request"]
        if "editor" in (request.get("hyperparameters") or {}):
            request = request | {"hyperparameters": _without_editor(request["hyperparameters"])}
            connection.execute(sa.update(_jobs).where(_jobs.c.id == row["id"]).values(request=request))
    for row in connection.execute(sa.select(_versions)).mappings().all():
        if "editor" in (row["hyperparameters"] or {}):
            this = (_versions.c.model == row["model"]) & (_versions.c.number == row["number"])
            kept = _without_editor(row["hyperparameters"])
            connection.execute(sa.update(_versions).where(this).values(hyperparameters=kept))


def _without_editor(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in hyperparameters.items() if name != "editor"}
