"""Routes of jobs, and how a new job is told to the client and to the worker.

Knows the registry and the queue. Does not know what a job does.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from app.api.schemas import JOB_ID, JobId, Page
from app.api.services import Machines, Services
from salem.errors import Unavailable
from salem.records import NAME_PATTERN, Job, JobRequest, JobState

router = APIRouter(tags=["jobs"])

POLL_S = 1  # what clients are asked to wait between two looks

JOB_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "headers": {
            "Location": {"description": "Where the job is seen", "schema": {"type": "string"}},
            "Retry-After": {"description": "Seconds to wait before looking", "schema": {"type": "integer"}},
        }
    }
}


def body_sha256(request: BaseModel) -> str:
    """Identity of a request's content, whatever its white space and the order of its keys."""
    content = json.dumps(request.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def announce(job: Job, machines: Services, response: Response) -> Job:
    """Give a queued job to the worker and tell the client where to look."""
    if job.state is JobState.QUEUED:
        machines.send_to_worker(job)
    response.headers["Location"] = f"/jobs/{job.id}"
    response.headers["Retry-After"] = str(POLL_S)
    return job


@router.get("/jobs")
def list_jobs(
    machines: Machines,
    model: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(pattern=JOB_ID, description="Last id of the page before")] = None,
) -> Page[Job]:
    """Jobs, newest first."""
    jobs, has_more = machines.registry.list_jobs(
        model=model, state=state.value if state else None, limit=limit, after=after
    )
    return Page(data=tuple(jobs), has_more=has_more)


@router.get("/jobs/{job_id}")
def show_job(job_id: JobId, machines: Machines, response: Response) -> Job:
    """A job: phase, progress, time left, the saliency of every layer, figures so far, result or error."""
    job = machines.registry.get_job(job_id)
    if not job.state.ended:
        response.headers["Retry-After"] = str(POLL_S)
    return job


@router.get("/jobs/{job_id}/request", response_model=JobRequest)
def show_request(job_id: JobId, machines: Machines) -> dict[str, Any]:
    """What a job was asked to do: the edits and samples of the request after every check. May be large."""
    return machines.registry.get_request(job_id)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: JobId, machines: Machines) -> Job:
    """End a job that is queued or running. Nothing of it is kept."""
    job = machines.registry.cancel_job(job_id)
    try:
        machines.queue.stop(job_id)
    except Unavailable as error:
        # the row has ended: an attempt that still runs loses its lease at its next report
        structlog.get_logger().warning("job was not stopped", job_id=job_id, reason=error.reason)
    return job
