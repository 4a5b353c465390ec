"""The tables. Columns have the names of the fields of the record that a row stores.

A value that is searched or sorted by is a column; a value that is only stored and returned is JSON. The type
is the textual JSON, not PostgreSQL's JSONB, because texts of users may contain U+0000, which JSONB refuses.
Knows how a record becomes a row. Must not know queries. `migrations/` keeps the history of this file.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
)

from salem.records import Record


class UtcDateTime(TypeDecorator[datetime]):
    """A datetime with a time zone, returned in UTC even if the database stores no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Document = JSON(none_as_null=True)

installation = Table(
    "installation",  # of one row
    metadata,
    Column("id", String(32), primary_key=True),
)

models = Table(
    "models",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("task", String(32), nullable=False),
    Column("source", _Document, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("sha256", String(64)),
    Column("descriptions_sha256", String(64)),
    Column("architecture", String(255)),
    Column("num_parameters", BigInteger),
    Column("labels", _Document, nullable=False),
    Column("max_input_tokens", Integer),
    Column("layers", _Document, nullable=False),
    Column("reference_accuracy", _Document),
    Column("scope_metric", String(64)),
    Column("num_pass_samples", Integer, nullable=False),
    Column("num_held_out", Integer, nullable=False),
    Column("reference_blob", String(64), nullable=False),
    Column("last_version", Integer, nullable=False, server_default="0"),  # no number is given twice
)

reference_samples = Table(
    "reference_samples",
    metadata,
    Column("model", ForeignKey("models.name"), primary_key=True),
    Column("content_hash", String(64), primary_key=True),
    Column("position", Integer, primary_key=True),  # an input may occur twice in a reference set
    Column("correct", Boolean, nullable=False),
    Column("record", _Document, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("model", ForeignKey("models.name"), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("phase", String(32), nullable=False),
    Column("progress", Float, nullable=False),
    Column("time_left_s", Float),
    Column("attempt", Integer, nullable=False),
    Column("request", _Document, nullable=False),
    Column("saliency", _Document, nullable=False),
    Column("metrics", _Document, nullable=False),
    Column("result", _Document),
    Column("error", _Document),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("lease", String(64)),
    Column("lease_expires_at", UtcDateTime),
    Column("idempotency_key", String(255), unique=True),
    Column("body_sha256", String(64)),
    Index(None, "state", "lease_expires_at"),
)

versions = Table(
    "versions",
    metadata,
    Column("model", ForeignKey("models.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("parent", Integer),
    Column("dropped", _Document, nullable=False),  # which deltas of the parent's chain are not in this one
    Column("metrics", _Document),
    Column("options", _Document),
    Column("layer", String(255)),
    Column("job_id", ForeignKey("jobs.id"), unique=True),  # one job makes one version at most
    Column("created_at", UtcDateTime, nullable=False),
    CheckConstraint("number >= 1", name="base_has_no_row"),
)

deltas = Table(
    "deltas",  # only those that a version adds to the chain of its parent, or replaces in it
    metadata,
    Column("model", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # of the version that adds it
    Column("version", Integer, primary_key=True, autoincrement=False),  # that introduced its edits
    Column("made_in", Integer, nullable=False),
    Column("layer", String(255), nullable=False),
    Column("blob", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("rank", Integer),
    Column("metric", String(64)),
    Column("encoder", String(64)),
    Column("removed", _Document, nullable=False),
    ForeignKeyConstraint(["model", "number"], ["versions.model", "versions.number"]),
)


def _results_of_samples(name: str) -> Table:
    """A table of the results that were measured with a version, one row per sample."""
    return Table(
        name,
        metadata,
        Column("model", String(64), primary_key=True),
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("position", Integer, primary_key=True, autoincrement=False),
        Column("record", _Document, nullable=False),
        ForeignKeyConstraint(["model", "number"], ["versions.model", "versions.number"]),
    )


outcomes = _results_of_samples("outcomes")
flips = _results_of_samples("flips")
broken_neighbors = _results_of_samples("broken_neighbors")

entries = Table(
    "entries",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("made_in", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),  # of the edit in its request
    Column("record", _Document, nullable=False),
    ForeignKeyConstraint(["model", "made_in"], ["versions.model", "versions.number"]),
)

entry_texts = Table(
    "entry_texts",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("text_hash", String(64), primary_key=True),  # of the edit's text, or of a paraphrase's
    Column("made_in", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    ForeignKeyConstraint(["model", "made_in"], ["versions.model", "versions.number"]),
)

editors = Table(
    "editors",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("model", ForeignKey("models.name"), nullable=False, index=True),
    Column("name", String(64)),
    Column("layer", String(255), nullable=False),
    Column("blob", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("num_trained_on", Integer, nullable=False),
    Column("num_held_out", Integer, nullable=False),
    Column("metrics", _Document, nullable=False),
    Column("options", _Document, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model", ForeignKey("models.name"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", ForeignKey("models.name"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Index(None, "model", "name"),
)


def columns_of(table: Table, record: type[Record]) -> list[Column[Any]]:
    """The columns of a record. A table may have more columns for its own bookkeeping."""
    return [table.c[name] for name in record.model_fields]


def row_values(record: Record) -> dict[str, Any]:
    """A record as column values: its parts as JSON, and datetimes as datetimes."""
    values = record.model_dump(mode="json")
    datetimes = {name: value for name, value in record if isinstance(value, datetime)}
    return values | datetimes
