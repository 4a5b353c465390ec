"""Routes for versions and their results. Must not know how a version is made."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.schemas import (
    DEFAULT_PAGE,
    AfterNumber,
    ModelName,
    Page,
    PageSize,
    VersionNumber,
    page_of,
)
from app.api.services import ServicesDep
from salem.records import (
    ListedBrokenNeighbor,
    ListedFlip,
    ListedOutcome,
    ModelReference,
    Version,
    VersionHeader,
)

router = APIRouter(tags=["versions"])


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
    return page_of(services.registry.list_results(ListedOutcome, name, number, limit=limit, after=after))


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
    return page_of(services.registry.list_results(ListedFlip, name, number, limit=limit, after=after))


@router.get("/models/{name}/versions/{number}/broken-neighbors")
def list_broken_neighbors(
    name: ModelName,
    number: VersionNumber,
    services: ServicesDep,
    limit: PageSize = DEFAULT_PAGE,
    after: AfterNumber = None,
) -> Page[ListedBrokenNeighbor]:
    """The near neighbors of the edits whose answers the version changed, with their kind and origin.

    `after` is the last `position` of the previous page.
    """
    return page_of(
        services.registry.list_results(ListedBrokenNeighbor, name, number, limit=limit, after=after)
    )
