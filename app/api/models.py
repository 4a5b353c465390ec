"""Routes for hosted models. Must not know tensors or what a registration job does."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter

from app.api.jobs import JOB_ACCEPTED, SubmissionDep, body_sha256
from app.api.reference_sets import reference_set
from app.api.schemas import (
    DEFAULT_PAGE,
    AfterName,
    ModelIn,
    ModelName,
    Page,
    PageSize,
    RegistrationJobOut,
    page_of,
)
from app.api.services import ServicesDep
from salem.errors import Pointer, UnsupportedModel
from salem.records import HostedModel, Job, JobKind, ModelState

router = APIRouter(tags=["models"])


@router.post("/models", status_code=202, response_model=RegistrationJobOut, responses=JOB_ACCEPTED)
def add_model(request: ModelIn, services: ServicesDep, submission: SubmissionDep) -> Job:
    """Host a model. A job loads it, checks it, and measures it on the reference set."""
    body = body_sha256(request)
    if made := submission.repeated(JobKind.REGISTER, body):
        return made
    reference = reference_set(request, services)
    try:
        services.engine.check_source(request.source)
    except UnsupportedModel as error:
        place = Pointer("/source", error.message)
        raise UnsupportedModel(error.message, remedy=error.remedy, errors=[place]) from error
    model = HostedModel(
        name=request.name,
        task=request.task,
        source=request.source,
        state=ModelState.REGISTERING,
        created_at=datetime.now(UTC),
    )
    stored = services.blobs.put(reference)
    job = services.registry.create_model(model, stored, idempotency_key=submission.key, body_sha256=body)
    services.blobs.put(reference)  # a deletion may have removed it before the row existed
    return submission.accept(job)


@router.get("/models", response_model_exclude={"data": {"__all__": {"layers"}}})
def list_models(
    services: ServicesDep, limit: PageSize = DEFAULT_PAGE, after: AfterName = None
) -> Page[HostedModel]:
    """Hosted models, sorted by name, without their layers."""
    return page_of(services.registry.list_models(limit=limit, after=after))


@router.get("/models/{name}")
def show_model(name: ModelName, services: ServicesDep) -> HostedModel:
    """One hosted model: its labels, limits, editable layers, and accuracy on its reference set."""
    return services.registry.get_model(name)
