"""The system of record in SQL: models, reference samples, versions, and aliases; jobs and more as its parts.

Knows the records, and which changes belong into one transaction: each public method is one. SQLite (WAL) and
PostgreSQL behave the same. Must not know tensors, HTTP, Redis, what a blob contains, or the tables: the
modules in `rows/` do.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection

from salem.records import (
    Alias,
    AliasChange,
    Delta,
    HostedModel,
    Job,
    JobKind,
    ModelReference,
    Name,
    ReferenceSample,
    RegisterRequest,
    Version,
    VersionHeader,
)
from salem.storage.database import Database
from salem.storage.deletions import Deletions
from salem.storage.editors import Editors
from salem.storage.entries import Entries
from salem.storage.jobs import Jobs
from salem.storage.publication import Publication
from salem.storage.rows import aliases as alias_rows
from salem.storage.rows import chains
from salem.storage.rows import editors as editor_rows
from salem.storage.rows import entries as entry_rows
from salem.storage.rows import jobs as job_rows
from salem.storage.rows import leases as job_leases
from salem.storage.rows import models as model_rows
from salem.storage.rows import versions as version_rows
from salem.storage.rows.jobs import IdempotencyKey
from salem.storage.rows.pages import PAGE
from salem.storage.rows.versions import ResultT

_MAX_RECENT_CHAINS = 64


class Registry:
    """All records. Each method, also of its parts, is one transaction. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent_chains: dict[tuple[Name, int, datetime], tuple[Delta, ...]] = {}
        self._lock = threading.Lock()  # guards the recent chains
        self.jobs = Jobs(database)
        self.entries = Entries(database)
        self.editors = Editors(database)
        self.deletions = Deletions(database)

    @classmethod
    def connect(cls, url: str) -> Registry:
        """Open the database behind a SQLAlchemy URL. Raises Misconfigured, Unavailable."""
        return cls(Database.connect(url))

    def migrate(self) -> None:
        """Bring the tables up to date. Several processes may do so at once."""
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
        """Reserve the name and queue the registration. A failed registration leaves its name free.

        Raises:
            Conflict: the name is taken.
            InvalidRequest: the idempotency key was used with another body.
        """
        key = IdempotencyKey(JobKind.REGISTER, idempotency_key, body_sha256)
        request = RegisterRequest(model=model.name, reference=reference_blob)
        with self._database.write() as connection:
            if made := job_rows.find_by_key(connection, key):
                return made
            model_rows.create(connection, model, reference_blob)
            return job_rows.create(connection, key, model.name, request.model_dump(mode="json"))

    def get_model(self, name: Name) -> HostedModel:
        """Read a model in any state. Raises NotFound."""
        with self._database.read() as connection:
            return model_rows.get(connection, name)

    def list_models(self, *, limit: int = PAGE, after: Name | None = None) -> tuple[list[HostedModel], bool]:
        """One page of the models in any state, by name, and whether there are more."""
        with self._database.read() as connection:
            return model_rows.list_page(connection, limit=limit, after=after)

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

    def reference_samples(self, name: Name, *, correct: bool | None = None) -> list[ReferenceSample]:
        """The reference set, or a part of it, ordered by content hash. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, name)
            return model_rows.list_reference(connection, name, correct=correct)

    def resolve(self, reference: ModelReference) -> Version:
        """The version that a reference names now. Version 0 is the base, which every ready model has.

        Raises:
            ModelNotReady: the model is being registered, or its registration failed.
            NotFound: there is no such model, version, or alias; the message says what exists.
        """
        with self._database.read() as connection:
            header = version_rows.base_of(model_rows.get(connection, reference.model))
            number = reference.number or 0
            if reference.alias is not None:
                number = alias_rows.get(connection, reference.model, reference.alias).version
            if number:
                header = version_rows.get(connection, reference.model, number)
            return Version(**dict(header), deltas=self._deltas_of(connection, header))

    def _deltas_of(self, connection: Connection, header: VersionHeader) -> tuple[Delta, ...]:
        """The chain of a version. A version never changes, so recent chains are kept in memory."""
        if header.number == 0:
            return ()
        key = (header.model, header.number, header.created_at)  # a deleted model's name may be used again
        with self._lock:
            found = self._recent_chains.get(key)
        if found is None:
            found = chains.read(connection, header.model, header.number)
            with self._lock:
                newest = next(reversed(self._recent_chains.values()), ())
                # One record for both chains where they are equal: a chain repeats most of its parent.
                pairs = zip_longest(newest[: len(found)], found)
                found = tuple(old if old == new else new for old, new in pairs)
                while len(self._recent_chains) >= _MAX_RECENT_CHAINS:
                    self._recent_chains.pop(next(iter(self._recent_chains)))
                self._recent_chains[key] = found
        return found

    def list_versions(
        self, name: Name, *, limit: int = PAGE, after: int | None = None
    ) -> tuple[list[VersionHeader], bool]:
        """One page of the versions below `after`, newest first, without the base. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, name)
            return version_rows.list_page(connection, name, limit=limit, after=after)

    def list_results(
        self, kind: type[ResultT], name: Name, number: int, *, limit: int = PAGE, after: int | None = None
    ) -> tuple[list[ResultT], bool]:
        """One page of the results of one kind that were measured with a version. Raises NotFound."""
        with self._database.read() as connection:
            _check_version(connection, name, number)
            return version_rows.list_results(connection, kind, name, number, limit=limit, after=after)

    def finish_edit(
        self,
        job_id: str,
        lease: str,
        version: Version,
        result: dict[str, Any],
        made: Publication | None = None,
    ) -> Version:
        """Publish a version with what was made for it, and end the job as succeeded.

        Sets `version.number`, `version.job_id`, the numbers of its new deltas, and `result["version"]`. If
        the alias did not move, or the hosted model keeps another scope metric, `result["notes"]` says so.

        Raises:
            LeaseLost: another attempt has the job, or the job has ended; nothing changed.
        """
        made = made or Publication()
        with self._database.write() as connection:
            created_at = job_leases.hold(connection, job_id, lease)
            model_rows.get(connection, version.model, lock=True)
            published = version_rows.append(connection, version, job_id, made)
            entry_rows.append(connection, published, made.entries)
            notes = [
                model_rows.update_metric(connection, published, made),
                made.alias and alias_rows.move(connection, published, made.alias, created_at),
            ]
            if any(notes):
                result = result | {"notes": [*result.get("notes", ()), *filter(None, notes)]}
            job_leases.succeed(connection, job_id, lease, result | {"version": published.reference})
            return published

    def set_alias(self, model: Name, alias: Name, version: int) -> Alias:
        """Point an alias at a version; 0 is the base. Raises NotFound, ModelNotReady."""
        with self._database.write() as connection:
            version_rows.base_of(model_rows.get(connection, model, lock=True))
            return alias_rows.set_version(connection, model, alias, version)

    def list_aliases(
        self, model: Name, *, limit: int = PAGE, after: Name | None = None
    ) -> tuple[list[Alias], bool]:
        """One page of the aliases of a model, by name, and whether there are more. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, model)
            return alias_rows.list_page(connection, model, limit=limit, after=after)

    def find_alias(self, model: Name, alias: Name) -> Alias | None:
        """The version that an alias names now; None: there is no such alias. Raises NotFound (the model)."""
        with self._database.read() as connection:
            model_rows.get(connection, model)
            return alias_rows.find(connection, model, alias)

    def get_alias(self, model: Name, alias: Name) -> Alias:
        """The version that an alias names now. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, model)
            return alias_rows.get(connection, model, alias)

    def alias_history(
        self, model: Name, alias: Name, *, limit: int = PAGE, after: int | None = None
    ) -> tuple[list[AliasChange], bool]:
        """One page of the changes of an alias, newest first, and whether there are more. Raises NotFound."""
        with self._database.read() as connection:
            model_rows.get(connection, model)
            return alias_rows.list_history(connection, model, alias, limit=limit, after=after)

    def check_tables(self) -> None:
        """Raise Misconfigured unless the tables are those of this version of Salem."""
        self._database.check_tables()

    def installation(self) -> str:
        """The id of this installation, chosen when the tables were created."""
        return self._database.installation()

    def blobs_in_use(self) -> set[str]:
        """Digests of the blobs that a model, a version, or an editor needs."""
        with self._database.read() as connection:
            models, deltas = model_rows.blobs(connection), chains.blobs(connection)
            return models | deltas | editor_rows.blobs(connection)


def _check_version(connection: Connection, model: Name, number: int) -> None:
    """Raise NotFound unless the model has the version."""
    version_rows.base_of(model_rows.get(connection, model))
    if number:
        version_rows.get(connection, model, number)
