"""The entries of scoped versions, the texts at which they fire, the numbers of deltas, the models' metrics.

What is there is kept: every delta learns which version brought it, and the entries of scoped versions are
filled in from the requests that made them. Their radii stand in the delta's file alone, so they have no keys.
"""

from __future__ import annotations

import hashlib
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_versions = sa.table(
    "versions",
    sa.column("model", sa.String),
    sa.column("number", sa.Integer),
    sa.column("parent", sa.Integer),
    sa.column("deltas", sa.JSON),
    sa.column("job_id", sa.String),
)
_jobs = sa.table(
    "jobs", sa.column("id", sa.String), sa.column("kind", sa.String), sa.column("request", sa.JSON)
)
_PLACE = ("model", "made_in", "version", "position")
_NUMBERS = ("metric", "version", "made_in", "removed")


def upgrade() -> None:
    """Make the tables, number the deltas of every version, and fill in the entries of scoped ones."""
    _create_tables()
    op.add_column("models", sa.Column("scope_metric", sa.String(64)))
    connection = op.get_bind()
    numbered: dict[tuple[str, int], list[dict[str, Any]]] = {}
    kept = connection.execute(sa.select(_versions).order_by(_versions.c.model, _versions.c.number)).mappings()
    for row in kept.all():
        deltas = _number(row["deltas"], numbered.get((row["model"], row["parent"] or 0), []), row["number"])
        numbered[row["model"], row["number"]] = deltas
        _write_deltas(connection, row, deltas)
        if deltas and deltas[-1]["kind"] == "scoped" and deltas[-1]["version"] == row["number"]:
            request = connection.scalar(
                sa.select(_jobs.c.request).where(_jobs.c.id == row["job_id"], _jobs.c.kind == "edit")
            )
            _insert_entries(connection, row["model"], row["number"], (request or {}).get("edits", []))


def downgrade() -> None:
    """Forget entries, metrics and the deltas' numbers; versions answer as before."""
    op.drop_table("entry_texts")
    op.drop_table("entries")
    op.drop_column("models", "scope_metric")
    connection = op.get_bind()
    for row in connection.execute(sa.select(_versions)).mappings().all():
        deltas = [{k: v for k, v in delta.items() if k not in _NUMBERS} for delta in row["deltas"]]
        _write_deltas(connection, row, deltas)


def _create_tables() -> None:
    version = (["model", "made_in"], ["versions.model", "versions.number"])
    op.create_table(
        "entries",
        sa.Column("model", sa.String(64), nullable=False),
        *_numbers(),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(*version, name="fk_entries_model_made_in"),
        sa.PrimaryKeyConstraint(*_PLACE, name="pk_entries"),
    )
    op.create_table(
        "entry_texts",
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("text_hash", sa.String(64), nullable=False),
        *_numbers(),
        sa.ForeignKeyConstraint(*version, name="fk_entry_texts_model_made_in"),
        sa.PrimaryKeyConstraint("model", "text_hash", *_PLACE[1:], name="pk_entry_texts"),
    )


def _numbers() -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Integer(), autoincrement=False, nullable=False) for name in _PLACE[1:]]


def _number(
    deltas: list[dict[str, Any]], inherited: list[dict[str, Any]], number: int
) -> list[dict[str, Any]]:
    """The deltas of a version: the parent's as they were numbered there, its own with its number."""
    known = {delta["blob"]: delta for delta in inherited}
    own = {"version": number, "made_in": number, "removed": []}
    return [known.get(delta["blob"], delta | own) for delta in deltas]


def _write_deltas(connection: sa.Connection, row: Any, deltas: list[dict[str, Any]]) -> None:
    this = (_versions.c.model == row["model"]) & (_versions.c.number == row["number"])
    connection.execute(sa.update(_versions).where(this).values(deltas=deltas))


def _insert_entries(connection: sa.Connection, model: str, number: int, edits: list[dict[str, Any]]) -> None:
    """One row per edit, found by its own text and by its paraphrases'."""
    entries = sa.table("entries", *map(sa.column, _PLACE), sa.column("record", sa.JSON))
    texts = sa.table("entry_texts", *map(sa.column, _PLACE), sa.column("text_hash"))
    for position, edit in enumerate(edits):
        place = {"model": model, "made_in": number, "version": number, "position": position}
        record = {name: edit.get(name) for name in ("input", "text_pair", "target")} | {"keys": []}
        connection.execute(sa.insert(entries).values(place | {"record": record}))
        words = [edit["input"], *edit.get("paraphrases", [])]
        digests = sorted({_text_hash(text, edit.get("text_pair")) for text in words})
        connection.execute(sa.insert(texts), [place | {"text_hash": digest} for digest in digests])


def _text_hash(text: str, pair: str | None) -> str:
    words = (" ".join(part.split()) for part in (text, pair or ""))
    return hashlib.sha256("\x1f".join(words).encode()).hexdigest()
