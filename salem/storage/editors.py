"""The editors that were trained ahead (SQL).

Knows which changes belong into one transaction: each public method is one. Does not know tensors, HTTP, nor
the tables: editor_rows and job_leases do.
"""

from __future__ import annotations

import re
from typing import Any

from salem.errors import NotFound
from salem.records import EDITOR_ID_PATTERN, Editor, Name
from salem.storage.database import Database
from salem.storage.rows import editors as editor_rows
from salem.storage.rows import leases as job_leases
from salem.storage.rows import models as model_rows


def editor_id(job_id: str) -> str:
    """The id of the editor that a job trains: a job trains one at most."""
    return f"editor-{job_id.removeprefix('job-')}"


class Editors:
    """All editors. Threads may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def finish(self, job_id: str, lease: str, editor: Editor, result: dict[str, Any]) -> None:
        """Publish an editor and end the job that trained it as succeeded.

        Raises:
            LeaseLost: another attempt has the job, or it has ended; nothing was changed.
        """
        with self._database.write() as connection:
            job_leases.succeed(connection, job_id, lease, result)
            editor_rows.insert_new(connection, editor)

    def find(self, editor: str) -> Editor | None:
        """The editor with this id, if there is one."""
        if not re.fullmatch(EDITOR_ID_PATTERN, editor):
            return None
        with self._database.read() as connection:
            return editor_rows.find(connection, editor)

    def get(self, editor: str) -> Editor:
        """Read an editor.

        Raises:
            NotFound: there is none with this id.
        """
        found = self.find(editor)
        if found is None:
            raise NotFound(f'there is no editor "{editor}"', remedy="GET /editors lists them")
        return found

    def list(self, model: Name | None = None) -> list[Editor]:
        """Newest first, of one model or of all.

        Raises:
            NotFound: there is no such model.
        """
        with self._database.read() as connection:
            if model is not None:
                model_rows.get(connection, model)
            return editor_rows.list_all(connection, model)
