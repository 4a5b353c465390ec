"""Rows of jobs: created once per idempotency key, read, and listed.

Knows the table `jobs`; each function works inside its caller's transaction. Must not know when to commit.
`leases` has what happens to a job after that.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select

from salem.errors import InvalidRequest, NotFound
from salem.records import EditResult, Job, JobKind, JobState, Name
from salem.storage.rows.pages import cut
from salem.storage.schema import columns_of, jobs, row_values

_JOB_COLUMNS = columns_of(jobs, Job)
_MAX_KEY_LENGTH = 255
_RECENT = 20  # jobs that are searched for one with a recipe


def new_id() -> str:
    """`job-` and 20 hex digits: 13 for the time in microseconds, so that ids sort by time, and 7 random."""
    return f"job-{time.time_ns() // 1_000:013x}{secrets.randbits(28):07x}"


class IdempotencyKey(NamedTuple):
    """A client sends a key so that a repeated request creates one job. `key` None: the client sent no key."""

    kind: JobKind
    key: str | None
    body_sha256: str | None


def find_by_key(connection: Connection, key: IdempotencyKey) -> Job | None:
    """The job that a request with this key already created, if any.

    Raises:
        InvalidRequest: the key was used with another request, or is too long.
    """
    if key.key is None:
        return None
    if len(key.key) > _MAX_KEY_LENGTH:
        raise InvalidRequest(f"an idempotency key has at most {_MAX_KEY_LENGTH} characters")
    query = select(*_JOB_COLUMNS, jobs.c.body_sha256).where(jobs.c.idempotency_key == key.key)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    if row["body_sha256"] != key.body_sha256 or row["kind"] != key.kind:
        raise InvalidRequest(
            "this idempotency key was used with another request", remedy="send a new key with a new request"
        )
    return _job(row)


def create(connection: Connection, key: IdempotencyKey, model: Name, request: dict[str, Any]) -> Job:
    """Insert a queued job; `find_by_key` has found none."""
    job = Job(
        id=new_id(),
        kind=key.kind,
        model=model,
        state=JobState.QUEUED,
        phase="waiting",
        progress=0,
        created_at=datetime.now(UTC),
    )
    apart = {"request": request, "idempotency_key": key.key, "body_sha256": key.body_sha256}
    connection.execute(insert(jobs).values(row_values(job) | apart))
    return job


def get(connection: Connection, job_id: str) -> Job:
    """Read a job.

    Raises:
        NotFound: there is no such job.
    """
    row = connection.execute(select(*_JOB_COLUMNS).where(jobs.c.id == job_id)).mappings().first()
    if row is None:
        raise _no_such_job(job_id)
    return _job(row)


def get_request(connection: Connection, job_id: str) -> dict[str, Any]:
    """What a job was asked to do; may be megabytes.

    Raises:
        NotFound: there is no such job.
    """
    request: dict[str, Any] | None = connection.scalar(select(jobs.c.request).where(jobs.c.id == job_id))
    if request is None:
        raise _no_such_job(job_id)
    return request


def _no_such_job(job_id: str) -> NotFound:
    return NotFound(f'there is no job "{job_id}"', remedy="GET /jobs lists them")


def list_page(
    connection: Connection, *, model: Name | None, state: str | None, limit: int, after: str | None
) -> tuple[list[Job], bool]:
    """Jobs after the job `after`, newest first; True if there are more.

    Raises:
        InvalidRequest: there is no such state.
        NotFound: there is no job `after`.
    """
    query = select(*_JOB_COLUMNS).order_by(jobs.c.id.desc()).limit(limit + 1)
    if model is not None:
        query = query.where(jobs.c.model == model)
    if state is not None:
        if state not in set(JobState):
            raise InvalidRequest(f'"{state}" is not a job state; the states are {", ".join(JobState)}')
        query = query.where(jobs.c.state == state)
    if after is not None:
        query = query.where(jobs.c.id < get(connection, after).id)
    found = [_job(row) for row in connection.execute(query).mappings()]
    return cut(found, limit)


def last_edit(connection: Connection, model: Name, recipe: str) -> EditResult | None:
    """The result of the newest edit job of a model that succeeded with a recipe."""
    query = select(jobs.c.result, jobs.c.request["options"]["recipe"].as_string())
    query = query.where(
        jobs.c.model == model, jobs.c.kind == JobKind.EDIT, jobs.c.state == JobState.SUCCEEDED
    )
    for result, used in connection.execute(query.order_by(jobs.c.id.desc()).limit(_RECENT)):
        if used == recipe:
            return EditResult.model_validate(result)
    return None


def list_queued(connection: Connection) -> list[Job]:
    """Oldest first."""
    query = select(*_JOB_COLUMNS).where(jobs.c.state == JobState.QUEUED).order_by(jobs.c.id)
    return [_job(row) for row in connection.execute(query).mappings()]


def _job(row: Any) -> Job:
    return Job.model_validate({name: row[name] for name in Job.model_fields})
