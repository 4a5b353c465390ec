"""Routes into a version: the entries that act in it, and a version without some of its edits.

Knows the registry and the checks. Does not know how an entry fires, nor how an edit is removed.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.jobs import JOB_ACCEPTED, announce, body_sha256
from app.api.names import alias_stands_at
from app.api.problems import invalid_request
from app.api.schemas import EntriesOut, IdempotencyKey, ModelName, RemovalIn, VersionNumber
from app.api.services import Machines, Services
from app.validation.removals import check_removal, edit_ids
from salem.errors import InvalidRequest
from salem.records import EDIT_ID_PATTERN, EditId, Job, JobKind, ModelReference, Name, RemoveRequest, Version

router = APIRouter(tags=["versions"])

MAX_REMOVED = 10_000  # ids in one request


@router.get("/models/{name}/versions/{number}/entries")
def list_entries(
    name: ModelName,
    number: VersionNumber,
    machines: Machines,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[
        str | None, Query(pattern=EDIT_ID_PATTERN, description="Last id of the page before")
    ] = None,
) -> EntriesOut:
    """The entries that act in a version, oldest first; where several fire, the newest prevails."""
    version = _version(machines, name, number)
    entries, has_more = machines.registry.entries.list_page(
        version, limit=limit, after=EditId.parse(after) if after else None
    )
    return EntriesOut(data=tuple(entries), has_more=has_more, note=_note(version))


@router.post("/models/{name}/versions/{number}/removals", status_code=202, responses=JOB_ACCEPTED)
def post_removals(
    name: ModelName,
    number: VersionNumber,
    request: RemovalIn,
    machines: Machines,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Remove edits: a job drops their entries, and makes plain deltas again without them."""
    work = RemoveRequest(model=name, parent=number, edits=request.edits, alias=request.alias)
    # the same body under another version is another request, and one sent again is not
    body = body_sha256(work)
    if made := machines.registry.find_job(JobKind.REMOVE, idempotency_key, body):
        return announce(made, machines, response)  # whatever has changed since
    alias_was = alias_stands_at(machines, name, request.alias)
    version = _version(machines, name, number)
    if not version.number:
        raise InvalidRequest(
            f"{version.reference} is the base: there is no edit in it to remove",
            remedy=f"GET /models/{name}/versions lists the versions",
        )
    in_it = {delta.version for delta in version.deltas if delta.version is not None}
    named = in_it & {edit.version for edit in edit_ids(request.edits)}
    brought = machines.registry.entries.edits(name, named)
    num_edits = {brought_by: len(edits) for brought_by, edits in brought.items()}
    if errors := check_removal(version, request.edits, num_edits, max_edits=MAX_REMOVED):
        raise invalid_request(errors)
    job, _ = machines.registry.create_job(
        JobKind.REMOVE,
        name,
        work.model_copy(update={"alias_was": alias_was}).model_dump(mode="json"),
        idempotency_key=idempotency_key,
        body_sha256=body,
    )
    return announce(job, machines, response)


def _version(machines: Services, name: Name, number: int) -> Version:
    return machines.registry.resolve(ModelReference(model=name, number=number))


def _note(version: Version) -> str | None:
    """Why the list is empty, or does not hold every edit; None where it does."""
    plain = [f"{version.model}:{delta.version}" for delta in version.deltas if delta.kind != "scoped"]
    if not version.deltas:
        return f"{version.reference} has no deltas: it answers as the base"
    if not plain:
        return None
    few = ", ".join(plain[:5]) + (f" and {len(plain) - 5} more" if len(plain) > 5 else "")
    return f"the edits of {few} were made by a plain recipe: they act on every input and have no entries"
