"""The record of everything: models, reference samples, versions, aliases, jobs (SQL).

Knows the records and which changes belong into one transaction: each public method is one.
Does not know tensors, HTTP, Redis, what a blob holds, nor the tables: the modules of rows and leases do.
SQLite (WAL) and PostgreSQL behave the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from salem.records import (
    Alias,
    HostedModel,
    Job,
    JobError,
    JobKind,
    LayerScore,
    ModelReference,
    Name,
    ReferenceSample,
    RegisterRequest,
    Version,
)
from salem.storage.database import Database
from salem.storage.editors import Editors
from salem.storage.entries import Entries
from salem.storage.rows import editors as editor_rows
from salem.storage.rows import entries as entry_rows
from salem.storage.rows import jobs as job_rows
from salem.storage.rows import leases as job_leases
from salem.storage.rows import models as model_rows
from salem.storage.rows import versions as version_rows


class Registry:
    """Everything that is kept, one transaction per method, also of its parts. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.entries = Entries(database)
        self.editors = Editors(database)

    @classmethod
    def connect(cls, url: str) -> Registry:
        """Open the database behind a SQLAlchemy URL. Raises Misconfigured, Unavailable."""
        return cls(Database.connect(url))

    def migrate(self) -> None:
        """Bring the tables to the present form; safe when several processes start at once."""
        self._database.migrate()

    def ping(self) -> None:
        """Raise Unavailable unless the database answers."""
        self._database.ping()

    def close(self) -> None:
        self._database.close()

    def create_model(
        self,
        model: HostedModel,
        reference_blob: str,
        *,
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
    ) -> Job:
        """Take the name and queue the registration; a name whose registration failed may be taken again.
        Raises Conflict (the name is taken), InvalidRequest (the idempotency key was used with another body).
        """
        key = job_rows.IdempotencyKey(JobKind.REGISTER, idempotency_key, body_sha256)
        request = RegisterRequest(model=model.name, reference=reference_blob)
        with self._database.write() as connection:
            if made := job_rows.find_by_key(connection, key):
                return made
            model_rows.create(connection, model, reference_blob)
            return job_rows.create(connection, key, model.name, request.model_dump(mode="json"))

    def get_model(self, name: Name) -> HostedModel:
        """Read a model in whatever state it is. Raises NotFound."""
        with self._database.read() as connection:
            return model_rows.get(connection, name)

    def list_models(self) -> list[HostedModel]:
        """Every model in whatever state, by name."""
        with self._database.read() as connection:
            return model_rows.list_all(connection)

    def finish_registration(
        self,
        job_id: str,
        lease: str,
        model: HostedModel,
        reference: Sequence[ReferenceSample],
        result: dict[str, Any],
    ) -> None:
        """Make the model ready with its reference set, and end the job as succeeded. Raises LeaseLost."""
        with self._database.write() as connection:
            job_leases.succeed(connection, job_id, lease, result)
            model_rows.make_ready(connection, model, reference)

    def reference_samples(
        self, name: Name, *, held_out: bool | None = None, correct: bool | None = None
    ) -> list[ReferenceSample]:
        """The reference set, or one part of it, ordered by content hash. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, name)
            return model_rows.list_reference(connection, name, held_out=held_out, correct=correct)

    def resolve(self, reference: ModelReference) -> Version:
        """The version that a reference names now; version 0 is the base, there for every ready model.

        Raises:
            ModelNotReady: the model is being registered, or its registration failed.
            NotFound: no such model, version or alias; the message says what exists.
        """
        with self._database.read() as connection:
            return version_rows.resolve(connection, model_rows.get(connection, reference.model), reference)

    def list_versions(self, name: Name) -> list[Version]:
        """Newest first, without the base. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, name)
            return version_rows.list_all(connection, name)

    def finish_edit(
        self,
        job_id: str,
        lease: str,
        version: Version,
        alias: Name | None,
        result: dict[str, Any],
        entries: entry_rows.MadeEntries | None = None,
        *,
        alias_was: int | None = None,
    ) -> Version:
        """Publish a version with its entries, move the alias to it, and end the job as succeeded.

        `version.number`, `version.job_id`, its new deltas' numbers and `result["version"]` are set here.
        An alias that somebody else has set since it stood at `alias_was` (None: nowhere) may be left where it
        is, as `version_rows.move_alias` tells; `result["notes"]` then say so.
        Raises LeaseLost: another attempt has the job, or it has ended; nothing was changed.
        """
        with self._database.write() as connection:
            asked_at = job_leases.hold(connection, job_id, lease)
            model_rows.get(connection, version.model, lock=True)
            published = version_rows.append(connection, version, job_id)
            entry_rows.append(connection, published, entries or entry_rows.MadeEntries({}))
            left = alias and version_rows.move_alias(connection, published, alias, alias_was, asked_at)
            if left:
                result = result | {"notes": [*result.get("notes", ()), left]}
            job_leases.succeed(connection, job_id, lease, result | {"version": published.reference})
            return published

    def set_alias(self, model: Name, alias: Name, version: int) -> Alias:
        """Point an alias at a version, 0 being the base. Raises NotFound, ModelNotReady."""
        with self._database.write() as connection:
            version_rows.base_of(model_rows.get(connection, model, lock=True))
            return version_rows.set_alias(connection, model, alias, version)

    def list_aliases(self, model: Name) -> list[Alias]:
        """By name. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, model)
            return version_rows.list_aliases(connection, model)

    def get_alias(self, model: Name, alias: Name) -> Alias:
        """The version that an alias names now. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, model)
            return version_rows.get_alias(connection, model, alias)

    def alias_history(self, model: Name, alias: Name) -> list[Alias]:
        """Everywhere the alias has pointed, newest first. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, model)
            return version_rows.list_alias_history(connection, model, alias)

    def create_job(
        self,
        kind: JobKind,
        model: Name,
        request: dict[str, Any],
        *,
        idempotency_key: str | None = None,
        body_sha256: str | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job; with a key that has made one already, that one and False.
        Raises InvalidRequest (the idempotency key was used with another body), NotFound (no such model).
        """
        key = job_rows.IdempotencyKey(kind, idempotency_key, body_sha256)
        with self._database.write() as connection:
            model_rows.get(connection, model)
            if made := job_rows.find_by_key(connection, key):
                return made, False
            return job_rows.create(connection, key, model, request), True

    def find_job(self, kind: JobKind, idempotency_key: str | None, body_sha256: str) -> Job | None:
        """The job that a key has made already. Raises InvalidRequest (the key was used with another body)."""
        with self._database.read() as connection:
            key = job_rows.IdempotencyKey(kind, idempotency_key, body_sha256)
            return job_rows.find_by_key(connection, key)

    def get_job(self, job_id: str) -> Job:
        """Read a job. Raises NotFound."""
        with self._database.read() as connection:
            return job_rows.get(connection, job_id)

    def get_request(self, job_id: str) -> dict[str, Any]:
        """What a job was asked to do: a `JobRequest` as JSON. Raises NotFound."""
        with self._database.read() as connection:
            return job_rows.get_request(connection, job_id)

    def list_jobs(
        self,
        *,
        model: Name | None = None,
        state: str | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> tuple[list[Job], bool]:
        """One page, newest first, and whether there are more. Raises InvalidRequest, NotFound (`after`)."""
        with self._database.read() as connection:
            return job_rows.list_page(connection, model=model, state=state, limit=limit, after=after)

    def claim_job(self, job_id: str, lease_s: float) -> tuple[Job, str] | None:
        """Begin an attempt of a job that is queued, or running with an expired lease.

        Returns the job and the lease token; None where there is nothing to do: ended, leased or unknown.
        """
        with self._database.write() as connection:
            return job_leases.claim(connection, job_id, lease_s)

    def report(
        self,
        job_id: str,
        lease: str,
        *,
        lease_s: float,
        phase: str | None = None,
        progress: float | None = None,
        time_left_s: float | None = None,
        saliency: Sequence[LayerScore] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Say how far an attempt is, and renew its lease. Raises LeaseLost."""
        figures = job_leases.figures(phase, progress, time_left_s, saliency, metrics)
        with self._database.write() as connection:
            job_leases.renew(connection, job_id, lease, lease_s, figures)

    def fail_job(self, job_id: str, lease: str, error: JobError) -> None:
        """End a job as failed; a registration's model fails with it. Raises LeaseLost."""
        with self._database.write() as connection:
            job_leases.fail(connection, job_id, lease, error)
            model_rows.release_name(connection, job_rows.get(connection, job_id))

    def cancel_job(self, job_id: str) -> Job:
        """End a queued or running job at once; its lease dies with it. Raises Conflict (ended), NotFound."""
        with self._database.write() as connection:
            job = job_leases.cancel(connection, job_id)
            model_rows.release_name(connection, job)
            return job

    def lost_jobs(self, max_attempts: int) -> list[Job]:
        """The jobs that should be in the queue, oldest first.

        Running jobs whose lease expired are queued again, or failed once they have had `max_attempts`.
        """
        with self._database.write() as connection:
            for job in job_leases.give_up(connection, max_attempts):
                model_rows.release_name(connection, job)
            job_leases.requeue_abandoned(connection)
            return job_rows.list_queued(connection)

    def check_tables(self) -> None:
        """Refuse tables of another version of Salem. Raises Misconfigured."""
        self._database.check_tables()

    def installation(self) -> str:
        """The name of this installation, drawn when its tables were made."""
        return self._database.installation()

    def blobs_in_use(self) -> set[str]:
        """Digests of the blobs that a model, a version or an editor needs."""
        with self._database.read() as connection:
            models, versions = model_rows.blobs(connection), version_rows.blobs(connection)
            return models | versions | editor_rows.blobs(connection)
