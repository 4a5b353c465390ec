"""Editors that were trained ahead of time, in SQL. Each public method is one transaction.

Must not know tensors, HTTP, or the tables: the modules in `rows/` do.
"""

from __future__ import annotations

from typing import Any

from salem.records import Editor, Name
from salem.storage.database import Database
from salem.storage.rows import editors as editor_rows
from salem.storage.rows import leases as job_leases
from salem.storage.rows import models as model_rows
from salem.storage.rows.pages import PAGE


def editor_id(job_id: str) -> str:
    """The id of the editor that a job trains. A job trains one editor at most."""
    return f"editor-{job_id.removeprefix('job-')}"


class Editors:
    """All editors. Threads may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def finish(self, job_id: str, lease: str, editor: Editor, result: dict[str, Any]) -> None:
        """Publish an editor, and end the job that trained it as succeeded.

        Raises:
            LeaseLost: another attempt has the job, or the job has ended; nothing changed.
        """
        with self._database.write() as connection:
            job_leases.succeed(connection, job_id, lease, result)
            editor_rows.insert_new(connection, editor)

    def find(self, editor: str) -> Editor | None:
        """The editor with this id, if there is one."""
        with self._database.read() as connection:
            return editor_rows.find(connection, editor)

    def get(self, editor: str) -> Editor:
        """Read an editor. Raises NotFound."""
        with self._database.read() as connection:
            return editor_rows.get(connection, editor)

    def list_page(
        self, model: Name | None = None, *, limit: int = PAGE, after: str | None = None
    ) -> tuple[list[Editor], bool]:
        """One page of the editors of a model or of all, newest first, and whether there are more.

        Raises:
            NotFound: there is no such model, or no editor `after`.
        """
        with self._database.read() as connection:
            if model is not None:
                model_rows.get(connection, model)
            return editor_rows.list_page(connection, model, limit=limit, after=after)
