"""Deletes jobs, versions, aliases, editors, and models in SQL. Each public method is one transaction.

A resource that something else needs is not deleted: the error names what needs it. Must not know HTTP or
blobs: a method returns the blobs that the deleted rows named, and its caller removes the unneeded ones.
"""

from __future__ import annotations

from collections.abc import Set

from salem.errors import Conflict
from salem.records import Name
from salem.storage.database import Database
from salem.storage.rows import aliases as alias_rows
from salem.storage.rows import chains
from salem.storage.rows import deletions as rows
from salem.storage.rows import editors as editor_rows
from salem.storage.rows import jobs as job_rows
from salem.storage.rows import models as model_rows
from salem.storage.rows import versions as version_rows


class Deletions:
    """All deletions. Threads may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def delete_job(self, job_id: str) -> None:
        """Delete a job that has ended, with its request.

        Raises:
            Conflict: the job has not ended, or made a version or an editor that still exists.
            NotFound: there is no such job.
        """
        with self._database.write() as connection:
            job = job_rows.get(connection, job_id)
            if not job.state.ended:
                raise Conflict(f"job {job_id} is {job.state}", remedy="cancel it, or wait for its end")
            _refuse(f"job {job_id}", rows.needs_job(connection, job_id))
            rows.remove_job(connection, job_id)

    def delete_version(self, model: Name, number: int) -> Set[str]:
        """Delete a version with its entries and results. Returns the blobs that its deltas named.

        Raises:
            Conflict: it is the base, or a child, an alias, or an unfinished job needs it.
            NotFound: there is no such version.
        """
        with self._database.write() as connection:
            version_rows.base_of(model_rows.get(connection, model, lock=True))
            if number == 0:
                raise Conflict(f"{model}:0 is the base", remedy=f"DELETE /models/{model} deletes the model")
            version_rows.get(connection, model, number)
            _refuse(f"version {model}:{number}", rows.needs_version(connection, model, number))
            return rows.remove_version(connection, model, number)

    def delete_alias(self, model: Name, alias: Name) -> None:
        """Delete an alias. Its history stays. Raises NotFound."""
        with self._database.write() as connection:
            model_rows.get(connection, model, lock=True)
            alias_rows.get(connection, model, alias)
            rows.remove_alias(connection, model, alias)

    def delete_editor(self, editor_id: str) -> Set[str]:
        """Delete an editor. Returns its blob.

        Raises:
            Conflict: a version that it made, or an unfinished job, needs it.
            NotFound: there is no such editor.
        """
        with self._database.write() as connection:
            editor = editor_rows.get(connection, editor_id)
            _refuse(f"editor {editor_id}", rows.needs_editor(connection, editor.model, editor_id))
            rows.remove_editor(connection, editor_id)
            return {editor.blob}

    def delete_model(self, model: Name, *, cascade: bool) -> Set[str]:
        """Delete a model with its reference set and its ended jobs. Returns the blobs that the rows named.

        Args:
            cascade: also delete its versions, aliases, and editors.

        Raises:
            Conflict: a job of the model has not ended; or, without `cascade`, it has versions, aliases, or
                editors.
            NotFound: there is no such model.
        """
        with self._database.write() as connection:
            model_rows.get(connection, model, lock=True)
            _refuse(f"model {model}", rows.unfinished_jobs(connection, model))
            if not cascade:
                remedy = f"DELETE /models/{model}?cascade=true deletes them too"
                _refuse(f"model {model}", rows.needs_model(connection, model), remedy)
            return rows.remove_model(connection, model)

    def needed(self, digests: Set[str]) -> Set[str]:
        """Which blobs may not be removed: those that a row names, or all of them while a job runs.

        A running job may have stored a blob that no row names yet.
        """
        with self._database.read() as connection:
            if rows.any_running(connection):
                return digests
            deltas = chains.blobs(connection)
            return digests & (deltas | model_rows.blobs(connection) | editor_rows.blobs(connection))


def _refuse(what: str, needed_by: list[str], remedy: str = "delete or move those first") -> None:
    if needed_by:
        raise Conflict(f"{what} is still needed by {', '.join(needed_by)}", remedy=remedy)
