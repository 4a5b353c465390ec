"""The route that turns corrections into a job. Must not know how an edit is made."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.jobs import JOB_ACCEPTED, SubmissionDep, body_sha256
from app.api.model_references import alias_target, check_alias_keeps_edits, parse, resolve
from app.api.problems import invalid_request
from app.api.schemas import EditJobOut, EditsIn
from app.api.services import ServicesDep
from app.validation.editors import with_editor
from app.validation.edits import EditLimits, check_edit_request, entry_overrides_edit, override_notes
from salem.messages import first_few
from salem.records import EditRequest, Job, JobKind

router = APIRouter(tags=["edits"])


@router.post("/edits", status_code=202, response_model=EditJobOut, responses=JOB_ACCEPTED)
def post_edits(request: EditsIn, services: ServicesDep, submission: SubmissionDep) -> Job:
    """Correct a model's answers. A job makes a new version on top of the named one and measures it."""
    body = body_sha256(request)
    if made := submission.repeated(JobKind.EDIT, body):
        return made
    reference = parse(request.model)
    alias_was = alias_target(services, reference.model, request.alias)
    check_alias_keeps_edits(reference, request.alias, alias_was)
    model, parent = resolve(services, request.model)
    reader = services.reader(model)
    errors = check_edit_request(
        model,
        request.edits,
        request.pass_samples,
        options=request.options,
        limits=EditLimits(max_edits=services.settings.max_edits),
        reader=reader,
    )
    options, problems = with_editor(
        model.name, request.options, request.edits, services.registry.editors.find, reader
    )
    if errors := [*errors, *problems]:
        raise invalid_request(errors)
    kept = request.pass_samples
    edits = tuple(edit.checked() for edit in request.edits)
    texts = [sample for edit in edits for sample in (edit.sample, *edit.paraphrase_samples)]
    notes = override_notes(edits, services.registry.entries.find(parent, texts), reader)
    if notes and not options.traits.scoped:
        raise invalid_request([entry_overrides_edit(notes[0], options.recipe)])
    work = EditRequest(
        model=model.name,
        parent=parent.number,
        edits=edits,
        pass_samples=None if kept is None else tuple(sample.checked() for sample in kept),
        alias=request.alias,
        alias_was=alias_was,
        options=options.stored(),
        require=request.require,
        notes=tuple(first_few(notes, "texts that override an entry")),
    )
    return submission.create(JobKind.EDIT, work, body)
