"""Routes of editors that are trained ahead: a corpus makes a job, a job makes an editor.

Knows the registry and the checks. Does not know how an editor is trained or applied.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.jobs import JOB_ACCEPTED, announce, body_sha256
from app.api.names import resolve
from app.api.problems import invalid_request
from app.api.schemas import EditorId, EditorIn, IdempotencyKey, Page
from app.api.services import Machines
from app.validation.editors import check_corpus
from salem.records import NAME_PATTERN, Editor, EditorRequest, Job, JobKind

router = APIRouter(prefix="/editors", tags=["editors"])


@router.post("", status_code=202, responses=JOB_ACCEPTED)
def post_editors(
    request: EditorIn, machines: Machines, response: Response, idempotency_key: IdempotencyKey = None
) -> Job:
    """Train an editor on a corpus of edits: new edits like these then take one pass (`options.editor`)."""
    body = body_sha256(request)
    if made := machines.registry.find_job(JobKind.TRAIN_EDITOR, idempotency_key, body):
        return announce(made, machines, response)  # whatever has changed since
    model, _ = resolve(machines, request.model)
    errors = check_corpus(
        model,
        request.model,
        request.name,
        request.edits,
        request.pass_samples,
        options=request.options,
        max_edits=machines.settings.max_edits,
        count_tokens=lambda inputs: machines.engine.count_tokens(model, inputs),
    )
    if errors:
        raise invalid_request(errors)
    kept = request.pass_samples
    work = EditorRequest(
        model=model.name,
        name=request.name,
        edits=tuple(draft.checked() for draft in request.edits),
        pass_samples=None if kept is None else tuple(draft.checked() for draft in kept),
        options=request.options,
    )
    job, _ = machines.registry.create_job(
        JobKind.TRAIN_EDITOR,
        model.name,
        work.model_dump(mode="json"),
        idempotency_key=idempotency_key,
        body_sha256=body,
    )
    return announce(job, machines, response)


@router.get("")
def list_editors(
    machines: Machines,
    model: Annotated[str | None, Query(pattern=NAME_PATTERN, description="Name of a hosted model")] = None,
) -> Page[Editor]:
    """Editors, newest first, of one model or of all."""
    return Page(data=tuple(machines.registry.editors.list(model)))


@router.get("/{editor_id}")
def show_editor(editor_id: EditorId, machines: Machines) -> Editor:
    """One editor: its layer, its file, and what it was measured at on edits held out of its corpus."""
    return machines.registry.editors.get(editor_id)
