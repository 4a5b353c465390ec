"""Routes for aliases: read, list, and move. Must not know what a version contains."""

from __future__ import annotations

import structlog
from fastapi import APIRouter

from app.api.schemas import (
    DEFAULT_PAGE,
    AfterName,
    AfterNumber,
    AliasIn,
    AliasName,
    ModelName,
    Page,
    PageSize,
    page_of,
)
from app.api.services import ServicesDep
from salem.records import Alias, AliasChange

router = APIRouter(tags=["aliases"])


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
