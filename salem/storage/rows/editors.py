"""Editors that were trained ahead as rows: each function works inside its caller's transaction.

Knows the table `editors`. Does not know jobs, nor when to commit, nor what an editor's blob holds.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from salem.records import Editor, Name
from salem.storage.schema import columns_of, editors, row_values

_COLUMNS = columns_of(editors, Editor)


def insert_new(connection: Connection, editor: Editor) -> None:
    """Write an editor; it is never changed."""
    connection.execute(insert(editors).values(row_values(editor)))


def find(connection: Connection, editor_id: str) -> Editor | None:
    row = connection.execute(select(*_COLUMNS).where(editors.c.id == editor_id)).mappings().first()
    return None if row is None else Editor.model_validate(dict(row))


def list_all(connection: Connection, model: Name | None) -> list[Editor]:
    """Newest first, of one model or of all."""
    query = select(*_COLUMNS).order_by(editors.c.created_at.desc(), editors.c.id.desc())
    if model is not None:
        query = query.where(editors.c.model == model)
    return [Editor.model_validate(dict(row)) for row in connection.execute(query).mappings()]


def blobs(connection: Connection) -> set[str]:
    """Blobs of every editor."""
    return set(connection.scalars(select(editors.c.blob)))
