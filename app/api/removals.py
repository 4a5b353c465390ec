"""The route that removes edits from a version. Must not know how an edit is removed."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.jobs import JOB_ACCEPTED, SubmissionDep, body_sha256
from app.api.model_references import alias_target
from app.api.problems import invalid_request
from app.api.schemas import ModelName, RemovalIn, RemovalJobOut, VersionNumber
from app.api.services import ServicesDep
from app.validation.removals import check_removal, valid_ids
from salem.errors import InvalidRequest
from salem.records import Job, JobKind, ModelReference, RemoveRequest

router = APIRouter(tags=["versions"])

MAX_REMOVED = 10_000  # ids in one request


@router.post(
    "/models/{name}/versions/{number}/removals",
    status_code=202,
    response_model=RemovalJobOut,
    responses=JOB_ACCEPTED,
)
def post_removals(
    name: ModelName,
    number: VersionNumber,
    request: RemovalIn,
    services: ServicesDep,
    submission: SubmissionDep,
) -> Job:
    """Remove edits: a job makes a version without their entries, and trains plain deltas again."""
    work = RemoveRequest(model=name, parent=number, edits=request.edits, alias=request.alias)
    body = body_sha256(work)  # includes the version: the same body for another version is another request
    if made := submission.repeated(JobKind.REMOVE, body):
        return made
    alias_was = alias_target(services, name, request.alias)
    version = services.registry.resolve(ModelReference(model=name, number=number))
    if not version.number:
        raise InvalidRequest(
            f"{version.reference} is the base, which has no edits to remove",
            remedy=f"GET /models/{name}/versions lists the versions with edits",
        )
    chain = {delta.version for delta in version.deltas if delta.version is not None}
    named = chain & {edit.version for edit in valid_ids(request.edits)}
    num_edits = {made: len(edits) for made, edits in services.registry.entries.edits(name, named).items()}
    if errors := check_removal(version, request.edits, num_edits, max_edits=MAX_REMOVED):
        raise invalid_request(errors)
    return submission.create(JobKind.REMOVE, work.model_copy(update={"alias_was": alias_was}), body)
