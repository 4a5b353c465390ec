"""Jobs in SQL: their requests, attempts, and ends. Each public method is one transaction.

The registry ends a job that succeeds, together with what the job made. Must not know HTTP, Redis, what a job
does, or the tables: the modules in `rows/` do.
"""

from __future__ import annotations

from typing import Any

from salem.records import EditResult, Job, JobError, JobKind, Name
from salem.storage.database import Database
from salem.storage.rows import jobs as job_rows
from salem.storage.rows import leases as job_leases
from salem.storage.rows import models as model_rows
from salem.storage.rows.jobs import IdempotencyKey
from salem.storage.rows.leases import Progress
from salem.storage.rows.pages import PAGE


class Jobs:
    """All jobs. Threads may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        kind: JobKind,
        model: Name,
        request: dict[str, Any],
        *,
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job. If a request with the same key created one already, return that job and False.

        Raises:
            InvalidRequest: the idempotency key was used with another body.
            NotFound: there is no such model.
        """
        key = IdempotencyKey(kind, idempotency_key, body_sha256)
        with self._database.write() as connection:
            model_rows.get(connection, model)
            if made := job_rows.find_by_key(connection, key):
                return made, False
            return job_rows.create(connection, key, model, request), True

    def find(self, kind: JobKind, idempotency_key: str | None, body_sha256: str) -> Job | None:
        """The job that a request with this key already created.

        Raises:
            InvalidRequest: the key was used with another body.
        """
        with self._database.read() as connection:
            return job_rows.find_by_key(connection, IdempotencyKey(kind, idempotency_key, body_sha256))

    def get(self, job_id: str) -> Job:
        """Read a job. Raises NotFound."""
        with self._database.read() as connection:
            return job_rows.get(connection, job_id)

    def get_request(self, job_id: str) -> dict[str, Any]:
        """What a job was asked to do: a `JobRequest` as JSON. Raises NotFound."""
        with self._database.read() as connection:
            return job_rows.get_request(connection, job_id)

    def list_page(
        self,
        *,
        model: Name | None = None,
        state: str | None = None,
        limit: int = PAGE,
        after: str | None = None,
    ) -> tuple[list[Job], bool]:
        """One page of jobs without their requests, newest first, and whether there are more.

        Raises:
            InvalidRequest: there is no such state.
            NotFound: there is no job `after`.
        """
        with self._database.read() as connection:
            return job_rows.list_page(connection, model=model, state=state, limit=limit, after=after)

    def last_edit(self, model: Name, recipe: str) -> EditResult | None:
        """The result of the newest edit job of a model that succeeded with a recipe."""
        with self._database.read() as connection:
            return job_rows.last_edit(connection, model, recipe)

    def claim(self, job_id: str, lease_s: float) -> tuple[Job, str] | None:
        """Start an attempt of a job that is queued, or running with an expired lease.

        Returns the job and the lease token. None: there is nothing to do, because the job has ended, is
        leased, or does not exist.
        """
        with self._database.write() as connection:
            return job_leases.claim(connection, job_id, lease_s)

    def report(self, job_id: str, lease: str, lease_s: float, progress: Progress | None = None) -> None:
        """Renew the lease of an attempt, and store its progress. Raises LeaseLost."""
        with self._database.write() as connection:
            job_leases.renew(connection, job_id, lease, lease_s, progress or Progress())

    def fail(self, job_id: str, lease: str, error: JobError) -> None:
        """End a job as failed. If it was a registration, its model fails too. Raises LeaseLost."""
        with self._database.write() as connection:
            job_leases.fail(connection, job_id, lease, error)
            model_rows.release_name(connection, job_rows.get(connection, job_id))

    def cancel(self, job_id: str) -> Job:
        """End a queued or running job at once. Its attempt loses the lease. Raises Conflict, NotFound."""
        with self._database.write() as connection:
            job = job_leases.cancel(connection, job_id)
            model_rows.release_name(connection, job)
            return job

    def lost(self, max_attempts: int) -> list[Job]:
        """The jobs that should be in the queue, oldest first.

        Running jobs whose lease expired are queued again. After `max_attempts` they fail instead.
        """
        with self._database.write() as connection:
            for job in job_leases.fail_exhausted(connection, max_attempts):
                model_rows.release_name(connection, job)
            job_leases.requeue_abandoned(connection)
            return job_rows.list_queued(connection)
