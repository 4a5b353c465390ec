"""Routes for hosted models, their versions and aliases, and reference sets.

Knows the registry and the blob store. Must not know tensors or what a registration job does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Request, Response

from app.api.jobs import JOB_ACCEPTED, accept_job, body_sha256
from app.api.schemas import (
    DEFAULT_PAGE,
    AfterName,
    AfterNumber,
    AliasIn,
    AliasName,
    IdempotencyKey,
    ModelIn,
    ModelName,
    Page,
    PageSize,
    ReferenceOut,
    RegistrationJobOut,
    VersionNumber,
    page_of,
)
from app.api.services import Services, ServicesDep
from app.validation.references import (
    BadSamples,
    as_jsonl,
    check_reference,
    count_samples,
    invalid_reference,
    parse_jsonl,
)
from salem.errors import BlobMissing, InvalidRequest, Pointer, UnsupportedModel
from salem.records import (
    Alias,
    AliasChange,
    HostedModel,
    Job,
    JobKind,
    ListedFlip,
    ListedOutcome,
    ModelReference,
    ModelState,
    Sha256,
    Version,
    VersionHeader,
)

router = APIRouter(tags=["models"])

REFERENCE_MISSING = "give either `reference`, a list of labeled samples, or `reference_sha256` of an upload"


JSONL_BODY = {
    "requestBody": {"required": True, "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
}


async def raw_body(request: Request) -> bytes:
    """The raw body, whatever its content type."""
    return await request.body()


@router.post("/references", status_code=201, openapi_extra=JSONL_BODY)
def upload_reference(services: ServicesDep, body: Annotated[bytes, Depends(raw_body)]) -> ReferenceOut:
    """Upload a reference set, one sample per line. `POST /models` names it by the sha256 returned here."""
    drafts = parse_jsonl(body)
    if bad := BadSamples(check_reference(drafts)):
        raise invalid_reference(bad)
    data = as_jsonl(drafts)
    return ReferenceOut(sha256=services.blobs.put(data), num_samples=count_samples(data))


@router.post("/models", status_code=202, response_model=RegistrationJobOut, responses=JOB_ACCEPTED)
def add_model(
    request: ModelIn, services: ServicesDep, response: Response, idempotency_key: IdempotencyKey = None
) -> Job:
    """Host a model. A job loads it, checks it, and measures it on the reference set."""
    body = body_sha256(request)
    if made := services.registry.find_job(JobKind.REGISTER, idempotency_key, body):
        return accept_job(made, services, response)
    reference = _reference_set(request, services)
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
    job = services.registry.create_model(model, stored, idempotency_key=idempotency_key, body_sha256=body)
    services.blobs.put(reference)  # a deletion may have removed it before the row existed
    return accept_job(job, services, response)


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


@router.get("/models/{name}/versions")
def list_versions(
    name: ModelName, services: ServicesDep, limit: PageSize = DEFAULT_PAGE, after: AfterNumber = None
) -> Page[VersionHeader]:
    """Versions of a model, newest first, without their deltas. Version 0, the base, is not listed.

    `after` is the last `number` of the previous page.
    """
    return page_of(services.registry.list_versions(name, limit=limit, after=after))


@router.get("/models/{name}/versions/{number}")
def show_version(name: ModelName, number: VersionNumber, services: ServicesDep) -> Version:
    """One version: its parent, deltas, metrics, and the job that made it."""
    return services.registry.resolve(ModelReference(model=name, number=number))


@router.get("/models/{name}/versions/{number}/outcomes")
def list_outcomes(
    name: ModelName,
    number: VersionNumber,
    services: ServicesDep,
    limit: PageSize = DEFAULT_PAGE,
    after: AfterNumber = None,
) -> Page[ListedOutcome]:
    """The answers to each edit and paraphrase, before and after the version was made.

    `after` is the last `position` of the previous page.
    """
    return page_of(services.registry.list_outcomes(name, number, limit=limit, after=after))


@router.get("/models/{name}/versions/{number}/flips")
def list_flips(
    name: ModelName,
    number: VersionNumber,
    services: ServicesDep,
    limit: PageSize = DEFAULT_PAGE,
    after: AfterNumber = None,
) -> Page[ListedFlip]:
    """The held-out pass samples whose answers the version changed.

    `after` is the last `position` of the previous page.
    """
    return page_of(services.registry.list_flips(name, number, limit=limit, after=after))


@router.get("/models/{name}/aliases")
def list_aliases(
    name: ModelName, services: ServicesDep, limit: PageSize = DEFAULT_PAGE, after: AfterName = None
) -> Page[Alias]:
    """Aliases of a model, sorted by name, with their versions."""
    return page_of(services.registry.list_aliases(name, limit=limit, after=after))


@router.get("/models/{name}/aliases/{alias}")
def show_alias(name: ModelName, alias: AliasName, services: ServicesDep) -> Alias:
    """The version that an alias points to now."""
    return services.registry.get_alias(name, alias)


@router.get("/models/{name}/aliases/{alias}/history")
def alias_history(
    name: ModelName,
    alias: AliasName,
    services: ServicesDep,
    limit: PageSize = DEFAULT_PAGE,
    after: AfterNumber = None,
) -> Page[AliasChange]:
    """The history of an alias, newest first. `after` is the last `id` of the previous page."""
    return page_of(services.registry.alias_history(name, alias, limit=limit, after=after))


@router.put("/models/{name}/aliases/{alias}")
def set_alias(name: ModelName, alias: AliasName, request: AliasIn, services: ServicesDep) -> Alias:
    """Create an alias, or move it to another version."""
    moved = services.registry.set_alias(name, alias, request.version)
    structlog.get_logger().info("alias set", model=name, alias=alias, version=moved.version)
    return moved


def _reference_set(request: ModelIn, services: Services) -> bytes:
    """The request's reference set, in the form that is stored."""
    if (request.reference is None) == (request.reference_sha256 is None):
        place = Pointer("/reference", REFERENCE_MISSING)
        raise InvalidRequest(f"/reference: {REFERENCE_MISSING}", errors=[place])
    if request.reference is not None:
        if bad := BadSamples(check_reference(request.reference, "/reference")):
            raise invalid_reference(bad)
        return as_jsonl(request.reference)
    assert request.reference_sha256 is not None
    return _uploaded(request.reference_sha256, services)


def _uploaded(sha256: Sha256, services: Services) -> bytes:
    """An uploaded reference set, checked again: the store also holds other files."""
    try:
        drafts = parse_jsonl(services.blobs.get(sha256))
        if bad := BadSamples(check_reference(drafts)):
            raise invalid_reference(bad)
        return as_jsonl(drafts)
    except (BlobMissing, InvalidRequest) as error:
        absent = "no uploaded file has this sha256; unused uploads are deleted after a while"
        wrong_file = f"the file with this sha256 is not a reference set: {error.message}"
        place = Pointer("/reference_sha256", absent if isinstance(error, BlobMissing) else wrong_file)
        raise InvalidRequest(
            f"{place.pointer}: {place.detail}",
            remedy="Upload a reference set with POST /references",
            errors=[place],
        ) from error
