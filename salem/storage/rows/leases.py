"""The lease that decides which attempt of a job may change anything.

A claim writes a fresh lease token and the moment when it expires; every later change of the running job names
it and is refused (LeaseLost) when it is no longer the current one. Ending or requeueing a job erases it.
Moments are those of the machine that asks: hosts must agree on the time to well within one lease.
Each function works inside its caller's transaction. Does not know models, versions, nor when to commit.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, or_, select, update

from salem.errors import AttemptsExhausted, Conflict, LeaseLost
from salem.records import Job, JobError, JobState, LayerScore
from salem.storage.rows import jobs as job_rows
from salem.storage.schema import jobs

_UNLEASED = {"lease": None, "lease_expires_at": None, "time_left_s": None}


def claim(connection: Connection, job_id: str, lease_s: float) -> tuple[Job, str] | None:
    """Begin an attempt with a fresh lease, the last one's figures gone. None: there is nothing to do."""
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


def figures(
    phase: str | None,
    progress: float | None,
    time_left_s: float | None,
    saliency: Sequence[LayerScore] | None,
    metrics: dict[str, float] | None,
) -> dict[str, Any]:
    """What an attempt says of itself, as column values; JSON has no place for a figure that is not finite."""
    values: dict[str, Any] = {}
    if phase is not None:
        values["phase"] = phase
    if progress is not None and math.isfinite(progress):
        values["progress"] = min(max(progress, 0.0), 1.0)
    if time_left_s is not None and math.isfinite(time_left_s):
        values["time_left_s"] = max(time_left_s, 0.0)
    if saliency is not None:
        values["saliency"] = [score.model_dump(mode="json") for score in saliency]
    if metrics is not None:
        values["metrics"] = {name: figure for name, figure in metrics.items() if math.isfinite(figure)}
    return values


def renew(connection: Connection, job_id: str, lease: str, lease_s: float, figures: dict[str, Any]) -> None:
    """Lengthen the lease by `lease_s` from now on, and write what the attempt says of itself.

    Raises:
        LeaseLost: another attempt has the job, or it has ended.
    """
    expires_at = datetime.now(UTC) + timedelta(seconds=lease_s)
    _change_leased(connection, job_id, lease, {"lease_expires_at": expires_at} | figures)


def hold(connection: Connection, job_id: str, lease: str) -> datetime:
    """Make sure that this attempt is the current one, and that it stays so until the transaction ends.

    Returns:
        When the job was asked for.
    Raises:
        LeaseLost: another attempt has the job, or it has ended.
    """
    _change_leased(connection, job_id, lease, {"lease": lease})
    asked_at: datetime = connection.execute(select(jobs.c.created_at).where(jobs.c.id == job_id)).scalar_one()
    return asked_at


def succeed(connection: Connection, job_id: str, lease: str, result: dict[str, Any]) -> None:
    """End a job well.

    Raises:
        LeaseLost: another attempt has the job, or it has ended.
    """
    ended = {"state": JobState.SUCCEEDED, "phase": "done", "progress": 1, "result": result}
    _change_leased(connection, job_id, lease, _UNLEASED | ended | {"finished_at": datetime.now(UTC)})


def fail(connection: Connection, job_id: str, lease: str, error: JobError) -> None:
    """End a job with the reason why it failed.

    Raises:
        LeaseLost: another attempt has the job, or it has ended.
    """
    _change_leased(connection, job_id, lease, _failed(error))


def cancel(connection: Connection, job_id: str) -> Job:
    """End a job that has not ended: its attempt, if any, loses the lease.

    Raises:
        Conflict: it has ended already.
        NotFound: there is no such job.
    """
    cancelled = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_([JobState.QUEUED, JobState.RUNNING]))
        .values(_UNLEASED | {"state": JobState.CANCELLED, "finished_at": datetime.now(UTC)})
    )
    job = job_rows.get(connection, job_id)
    if not cancelled.rowcount:
        raise Conflict(f'the job "{job_id}" has ended already: it is {job.state}')
    return job


def give_up(connection: Connection, max_attempts: int) -> list[Job]:
    """Fail the jobs whose last attempt was left with an expired lease, and name them."""
    spent = and_(_expired(datetime.now(UTC)), jobs.c.attempt >= max_attempts)
    ids = list(connection.scalars(select(jobs.c.id).where(spent).with_for_update()))
    error = AttemptsExhausted(
        "every attempt was cut short, and the job was given up",
        remedy="the worker's log says how each ended: short memory, mostly, a store out of reach, or hosts "
        "whose clocks are far apart; then ask again, under a new Idempotency-Key where there was one",
    )
    connection.execute(update(jobs).where(jobs.c.id.in_(ids)).values(_failed(error.as_job_error())))
    return [job_rows.get(connection, job_id) for job_id in ids]


def requeue_abandoned(connection: Connection) -> None:
    """Put running jobs whose lease expired back to queued."""
    queued = {"state": JobState.QUEUED, "phase": "waiting", "progress": 0}
    connection.execute(update(jobs).where(_expired(datetime.now(UTC))).values(_UNLEASED | queued))


def _change_leased(connection: Connection, job_id: str, lease: str, values: dict[str, Any]) -> None:
    held = and_(jobs.c.id == job_id, jobs.c.state == JobState.RUNNING, jobs.c.lease == lease)
    if not connection.execute(update(jobs).where(held).values(values)).rowcount:
        raise LeaseLost(f'this attempt no longer holds the job "{job_id}"')


def _expired(now: datetime) -> ColumnElement[bool]:
    return and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_expires_at <= now)


def _failed(error: JobError) -> dict[str, Any]:
    ended = {
        "state": JobState.FAILED,
        "error": error.model_dump(mode="json"),
        "finished_at": datetime.now(UTC),
    }
    return _UNLEASED | ended
