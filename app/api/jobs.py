"""Routes for jobs, and code that all routes share that create jobs. Must not know what a job does."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from app.api.schemas import JOB_ID, IdempotencyKey, JobId, JobOut, JobsOut, Page, page_of
from app.api.services import Services, ServicesDep
from salem.errors import Unavailable
from salem.records import NAME_PATTERN, Job, JobKind, JobRequest, JobState

router = APIRouter(tags=["jobs"])

POLL_S = 1  # seconds that a client should wait between two polls

JOB_ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "headers": {
            "Location": {"description": "URL of the job", "schema": {"type": "string"}},
            "Retry-After": {"description": "Seconds to wait before you poll", "schema": {"type": "integer"}},
        }
    }
}


def body_sha256(request: BaseModel) -> str:
    """The hash of a request's content. It ignores white space and the order of keys."""
    content = json.dumps(request.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Submission:
    """A request for a job. A repeated request with the same key and body gets the same job."""

    services: Services
    response: Response
    key: str | None

    def repeated(self, kind: JobKind, body: str) -> Job | None:
        """The job that this request created before. `body`: its `body_sha256`."""
        made = self.services.registry.jobs.find(kind, self.key, body)
        return made and self.accept(made)

    def create(self, kind: JobKind, work: JobRequest, body: str) -> Job:
        """Store a job with this request, and accept it."""
        request = work.model_dump(mode="json")
        job, _ = self.services.registry.jobs.create(
            kind, work.model, request, idempotency_key=self.key, body_sha256=body
        )
        return self.accept(job)

    def accept(self, job: Job) -> Job:
        """Queue the job if it waits, and set the headers of the 202 response."""
        if job.state is JobState.QUEUED:
            self.services.enqueue(job)
        self.response.headers["Location"] = f"/jobs/{job.id}"
        self.response.headers["Retry-After"] = str(POLL_S)
        return job


async def submission_of(
    services: ServicesDep, response: Response, idempotency_key: IdempotencyKey = None
) -> Submission:
    """The submission of this request."""
    return Submission(services, response, idempotency_key)


SubmissionDep = Annotated[Submission, Depends(submission_of)]
"""Declare a parameter of this type in a route that creates a job."""


@router.get("/jobs", response_model=JobsOut)
def list_jobs(
    services: ServicesDep,
    model: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[
        str | None, Query(pattern=JOB_ID, description="The last id of the previous page")
    ] = None,
) -> Page[Job]:
    """Jobs, newest first."""
    return page_of(
        services.registry.jobs.list_page(
            model=model, state=state.value if state else None, limit=limit, after=after
        )
    )


@router.get("/jobs/{job_id}", response_model=JobOut)
def show_job(job_id: JobId, services: ServicesDep, response: Response) -> Job:
    """One job: phase, progress, time left, saliency of each layer, metrics so far, result or error."""
    job = services.registry.jobs.get(job_id)
    if not job.state.ended:
        response.headers["Retry-After"] = str(POLL_S)
    return job


@router.get("/jobs/{job_id}/request", response_model=JobRequest)
def show_request(job_id: JobId, services: ServicesDep) -> dict[str, Any]:
    """What a job was asked to do: its edits, samples, and options. This can be large."""
    return services.registry.jobs.get_request(job_id)


@router.post("/jobs/{job_id}/cancel", response_model=JobOut)
def cancel_job(job_id: JobId, services: ServicesDep) -> Job:
    """Cancel a queued or running job. It will not make a version, editor, or model."""
    job = services.registry.jobs.cancel(job_id)
    try:
        services.queue.stop(job_id)
    except Unavailable as error:
        # SQL already says that the job has ended: a running attempt loses its lease at its next report
        structlog.get_logger().warning(
            "worker was not told to stop the job", job_id=job_id, reason=error.reason
        )
    return job
