"""The lease that decides which attempt of a job may change anything.

A claim writes a new lease token and the time when it expires. Every later change of the running job must name
the current token, and is refused (LeaseLost) otherwise. Ending or requeueing a job erases the token.
Times are those of the calling host: the clocks of all hosts must agree to well within one lease.
Each function works inside its caller's transaction. Must not know models, versions, or when to commit.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, or_, select, update

from salem.errors import AttemptsExhausted, Conflict, LeaseLost
from salem.records import Job, JobError, JobState, LayerScore
from salem.storage.rows import jobs as job_rows
from salem.storage.schema import jobs


@dataclass(frozen=True)
class Progress:
    """What an attempt reports about itself. None: unchanged."""

    phase: str | None = None
    share: float | None = None  # of the work, in [0, 1]
    time_left_s: float | None = None
    saliency: Sequence[LayerScore] | None = None
    metrics: Mapping[str, float] | None = None


_UNLEASED = {"lease": None, "lease_expires_at": None, "time_left_s": None}


def claim(connection: Connection, job_id: str, lease_s: float) -> tuple[Job, str] | None:
    """Start an attempt with a new lease and no progress. None: there is nothing to do."""
    now, lease = datetime.now(UTC), secrets.token_hex(16)
    claimable = or_(jobs.c.state == JobState.QUEUED, _expired(now))
    claimed = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, claimable)
        .values(
            state=JobState.RUNNING,
            phase="loading",
            progress=0,
            time_left_s=None,
            saliency=[],
            metrics={},
            attempt=jobs.c.attempt + 1,
            started_at=now,
            lease=lease,
            lease_expires_at=now + timedelta(seconds=lease_s),
        )
    )
    return (job_rows.get(connection, job_id), lease) if claimed.rowcount else None


def _columns_of(progress: Progress) -> dict[str, Any]:
    """A report as column values. JSON cannot store a figure that is not finite."""
    values: dict[str, Any] = {}
    if progress.phase is not None:
        values["phase"] = progress.phase
    if progress.share is not None and math.isfinite(progress.share):
        values["progress"] = min(max(progress.share, 0.0), 1.0)
    if progress.time_left_s is not None and math.isfinite(progress.time_left_s):
        values["time_left_s"] = max(progress.time_left_s, 0.0)
    if progress.saliency is not None:
        values["saliency"] = [score.model_dump(mode="json") for score in progress.saliency]
    if progress.metrics is not None:
        values["metrics"] = {
            name: figure for name, figure in progress.metrics.items() if math.isfinite(figure)
        }
    return values


def renew(connection: Connection, job_id: str, lease: str, lease_s: float, progress: Progress) -> None:
    """Make the lease expire `lease_s` from now, and store the progress of the attempt.

    Raises:
        LeaseLost: another attempt has the job, or it has ended.
    """
    expires_at = datetime.now(UTC) + timedelta(seconds=lease_s)
    _change_leased(connection, job_id, lease, {"lease_expires_at": expires_at} | _columns_of(progress))


def hold(connection: Connection, job_id: str, lease: str) -> datetime:
    """Make sure that this attempt is the current one, and stays so until the transaction ends.

    Returns:
        When the job was created.
    Raises:
        LeaseLost: another attempt has the job, or it has ended.
    """
    _change_leased(connection, job_id, lease, {"lease": lease})
    created_at: datetime = connection.execute(
        select(jobs.c.created_at).where(jobs.c.id == job_id)
    ).scalar_one()
    return created_at


def succeed(connection: Connection, job_id: str, lease: str, result: dict[str, Any]) -> None:
    """End a job as succeeded.

    Raises:
        LeaseLost: another attempt has the job, or it has ended.
    """
    ended = {"state": JobState.SUCCEEDED, "phase": "done", "progress": 1, "result": result}
    _change_leased(connection, job_id, lease, _UNLEASED | ended | {"finished_at": datetime.now(UTC)})


def fail(connection: Connection, job_id: str, lease: str, error: JobError) -> None:
    """End a job as failed.

    Raises:
        LeaseLost: another attempt has the job, or it has ended.
    """
    _change_leased(connection, job_id, lease, _failed(error))


def cancel(connection: Connection, job_id: str) -> Job:
    """End a queued or running job. Its attempt, if any, loses the lease.

    Raises:
        Conflict: it has already ended.
        NotFound: there is no such job.
    """
    cancelled = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_([JobState.QUEUED, JobState.RUNNING]))
        .values(_UNLEASED | {"state": JobState.CANCELLED, "finished_at": datetime.now(UTC)})
    )
    job = job_rows.get(connection, job_id)
    if not cancelled.rowcount:
        raise Conflict(f'job "{job_id}" has already ended: it is {job.state}')
    return job


def fail_exhausted(connection: Connection, max_attempts: int) -> list[Job]:
    """Fail the jobs whose last attempt has an expired lease, and return them."""
    exhausted = and_(_expired(datetime.now(UTC)), jobs.c.attempt >= max_attempts)
    ids = list(connection.scalars(select(jobs.c.id).where(exhausted).with_for_update()))
    error = AttemptsExhausted(
        "every attempt of the job was interrupted",
        remedy="the worker's log says how each attempt ended. Common causes are too little memory, an "
        "unreachable store, and hosts whose clocks disagree. Then send the request again, with a new "
        "Idempotency-Key if it had one",
    )
    connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(_failed(error.as_job_error())))
    return [job_rows.get(connection, job_id) for job_id in ids]


def requeue_abandoned(connection: Connection) -> None:
    """Queue running jobs whose lease expired again."""
    queued = {"state": JobState.QUEUED, "phase": "waiting", "progress": 0}
    connection.execute(update(jobs).where(_expired(datetime.now(UTC))).values(_UNLEASED | queued))


def _change_leased(connection: Connection, job_id: str, lease: str, values: dict[str, Any]) -> None:
    held = and_(jobs.c.id == job_id, jobs.c.state == JobState.RUNNING, jobs.c.lease == lease)
    if not connection.execute(update(jobs).where(held).values(values)).rowcount:
        raise LeaseLost(f'this attempt no longer holds job "{job_id}"')


def _expired(now: datetime) -> ColumnElement[bool]:
    return and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_expires_at <= now)


def _failed(error: JobError) -> dict[str, Any]:
    ended = {
        "state": JobState.FAILED,
        "error": error.model_dump(mode="json"),
        "finished_at": datetime.now(UTC),
    }
    return _UNLEASED | ended
