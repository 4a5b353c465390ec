"""Rows of editors that were trained ahead of time: each function works inside its caller's transaction.

Knows the table `editors`. Must not know jobs, when to commit, or what an editor's blob contains.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, insert, select, tuple_

from salem.errors import NotFound
from salem.records import EDITOR_ID_PATTERN, Editor, Name
from salem.storage.rows.pages import cut
from salem.storage.schema import columns_of, editors, row_values

_COLUMNS = columns_of(editors, Editor)


def insert_new(connection: Connection, editor: Editor) -> None:
    """Store an editor. It never changes."""
    connection.execute(insert(editors).values(row_values(editor)))


def find(connection: Connection, editor_id: str) -> Editor | None:
    """The editor with this id, if there is one."""
    if not re.fullmatch(EDITOR_ID_PATTERN, editor_id):
        return None
    row = connection.execute(select(*_COLUMNS).where(editors.c.id == editor_id)).mappings().first()
    return None if row is None else Editor.model_validate(dict(row))


def get(connection: Connection, editor_id: str) -> Editor:
    """Read an editor.

    Raises:
        NotFound: there is no editor with this id.
    """
    found = find(connection, editor_id)
    if found is None:
        raise NotFound(f'there is no editor "{editor_id}"', remedy="GET /editors lists the editors")
    return found


def list_page(
    connection: Connection, model: Name | None, *, limit: int, after: str | None
) -> tuple[list[Editor], bool]:
    """Editors of one model or of all, newest first; True if there are more.

    Raises:
        NotFound: there is no editor `after`.
    """
    query = select(*_COLUMNS)
    if model is not None:
        query = query.where(editors.c.model == model)
    if after is not None:
        last = get(connection, after)
        query = query.where(tuple_(editors.c.created_at, editors.c.id) < (last.created_at, last.id))
    query = query.order_by(editors.c.created_at.desc(), editors.c.id.desc()).limit(limit + 1)
    rows = connection.execute(query).mappings()
    return cut([Editor.model_validate(dict(row)) for row in rows], limit)


def blobs(connection: Connection) -> set[str]:
    """The blobs of all editors."""
    return set(connection.scalars(select(editors.c.blob)))
