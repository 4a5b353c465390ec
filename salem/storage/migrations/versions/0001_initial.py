"""All tables, and the id of this installation."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

RESULTS = ("outcomes", "flips", "broken_neighbors")


def upgrade() -> None:
    _create_installation()
    _create_models()
    _create_alias_history()
    _create_aliases()
    _create_jobs()
    _create_reference_samples()
    _create_editors()
    _create_versions()
    _create_deltas()
    _create_entries()
    _create_entry_texts()
    for table in RESULTS:
        _create_results(table)


def downgrade() -> None:
    for table in (
        *RESULTS,
        "entry_texts",
        "entries",
        "deltas",
        "versions",
        "editors",
        "reference_samples",
        "jobs",
        "aliases",
        "alias_history",
        "models",
        "installation",
    ):
        op.drop_table(table)


def _create_installation() -> None:
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_installation"),
    )
    op.bulk_insert(installation, [{"id": secrets.token_hex(16)}])


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("task", sa.String(32), nullable=False),
        sa.Column("source", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("descriptions_sha256", sa.String(64)),
        sa.Column("architecture", sa.String(255)),
        sa.Column("num_parameters", sa.BigInteger()),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("max_input_tokens", sa.Integer()),
        sa.Column("layers", sa.JSON(), nullable=False),
        sa.Column("reference_accuracy", sa.JSON()),
        sa.Column("scope_metric", sa.String(64)),
        sa.Column("num_pass_samples", sa.Integer(), nullable=False),
        sa.Column("num_held_out", sa.Integer(), nullable=False),
        sa.Column("reference_blob", sa.String(64), nullable=False),
        sa.Column("last_version", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_models"),
    )


def _create_alias_history() -> None:
    op.create_table(
        "alias_history",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_alias_history_model"),
        sa.PrimaryKeyConstraint("id", name="pk_alias_history"),
    )
    op.create_index("ix_alias_history_model_name", "alias_history", ["model", "name"])


def _create_aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_aliases_model"),
        sa.PrimaryKeyConstraint("model", "name", name="pk_aliases"),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("time_left_s", sa.Float()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("saliency", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON()),
        sa.Column("error", sa.JSON()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("lease", sa.String(64)),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("body_sha256", sa.String(64)),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_jobs_model"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
    )
    op.create_index("ix_jobs_model", "jobs", ["model"])
    op.create_index("ix_jobs_state_lease_expires_at", "jobs", ["state", "lease_expires_at"])


def _create_reference_samples() -> None:
    op.create_table(
        "reference_samples",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("correct", sa.Boolean(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_reference_samples_model"),
        sa.PrimaryKeyConstraint("model", "content_hash", "position", name="pk_reference_samples"),
    )


def _create_editors() -> None:
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


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("parent", sa.Integer()),
        sa.Column("dropped", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON()),
        sa.Column("options", sa.JSON()),
        sa.Column("layer", sa.String(255)),
        sa.Column("job_id", sa.String(64)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("number >= 1", name="ck_versions_base_has_no_row"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_versions_job_id"),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_versions_model"),
        sa.PrimaryKeyConstraint("model", "number", name="pk_versions"),
        sa.UniqueConstraint("job_id", name="uq_versions_job_id"),
    )


def _create_deltas() -> None:
    op.create_table(
        "deltas",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("made_in", sa.Integer(), nullable=False),
        sa.Column("layer", sa.String(255), nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("rank", sa.Integer()),
        sa.Column("metric", sa.String(64)),
        sa.Column("encoder", sa.String(64)),
        sa.Column("removed", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "number"], ["versions.model", "versions.number"], name="fk_deltas_model_number"
        ),
        sa.PrimaryKeyConstraint("model", "number", "version", name="pk_deltas"),
    )


def _create_entries() -> None:
    op.create_table(
        "entries",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("made_in", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "made_in"], ["versions.model", "versions.number"], name="fk_entries_model_made_in"
        ),
        sa.PrimaryKeyConstraint("model", "made_in", "version", "position", name="pk_entries"),
    )


def _create_entry_texts() -> None:
    op.create_table(
        "entry_texts",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("text_hash", sa.String(64), nullable=False),
        sa.Column("made_in", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "made_in"], ["versions.model", "versions.number"], name="fk_entry_texts_model_made_in"
        ),
        sa.PrimaryKeyConstraint(
            "model", "text_hash", "made_in", "version", "position", name="pk_entry_texts"
        ),
    )


def _create_results(table: str) -> None:
    """Create a table with one row per sample that was measured with a version."""
    op.create_table(
        table,
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "number"], ["versions.model", "versions.number"], name=f"fk_{table}_model_number"
        ),
        sa.PrimaryKeyConstraint("model", "number", "position", name=f"pk_{table}"),
    )
