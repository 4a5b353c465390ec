"""Routes for editors that are trained ahead of time. Must not know how editors are trained or applied."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.jobs import JOB_ACCEPTED, SubmissionDep, body_sha256
from app.api.model_references import resolve
from app.api.problems import invalid_request
from app.api.schemas import (
    DEFAULT_PAGE,
    EditorId,
    EditorIn,
    EditorJobOut,
    Page,
    PageSize,
    page_of,
)
from app.api.services import ServicesDep
from app.validation.editors import check_corpus, check_editor_names
from salem.records import EDITOR_ID_PATTERN, NAME_PATTERN, Editor, EditorRequest, Job, JobKind

router = APIRouter(prefix="/editors", tags=["editors"])


@router.post("", status_code=202, response_model=EditorJobOut, responses=JOB_ACCEPTED)
def post_editors(request: EditorIn, services: ServicesDep, submission: SubmissionDep) -> Job:
    """Train an editor on a corpus of edits. Similar edits then take a single pass (`options.editor`)."""
    body = body_sha256(request)
    if made := submission.repeated(JobKind.TRAIN_EDITOR, body):
        return made
    model, _ = resolve(services, request.model)
    errors = [*check_editor_names(model, request.model, request.name)]
    errors += check_corpus(
        model,
        request.edits,
        request.pass_samples,
        options=request.options,
        max_edits=services.settings.max_edits,
        reader=services.reader(model),
    )
    if errors:
        raise invalid_request(errors)
    kept = request.pass_samples
    work = EditorRequest(
        model=model.name,
        name=request.name,
        edits=tuple(edit.checked() for edit in request.edits),
        pass_samples=None if kept is None else tuple(sample.checked() for sample in kept),
        options=request.options,
    )
    return submission.create(JobKind.TRAIN_EDITOR, work, body)


@router.get("")
def list_editors(
    services: ServicesDep,
    model: Annotated[str | None, Query(pattern=NAME_PATTERN, description="Name of a hosted model")] = None,
    limit: PageSize = DEFAULT_PAGE,
    after: Annotated[
        str | None, Query(pattern=EDITOR_ID_PATTERN, description="The last id of the previous page")
    ] = None,
) -> Page[Editor]:
    """Editors of one model, or of all models, newest first."""
    return page_of(services.registry.editors.list_page(model, limit=limit, after=after))


@router.get("/{editor_id}")
def show_editor(editor_id: EditorId, services: ServicesDep) -> Editor:
    """One editor: its layer, its file, and its metrics on held-out edits of its corpus."""
    return services.registry.editors.get(editor_id)
