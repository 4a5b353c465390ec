"""Routes that delete jobs, versions, aliases, editors, and models.

If something else still needs a resource, the answer is 409. Must not know tables or blobs.
"""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Query

from app.api.schemas import AliasName, EditorId, JobId, ModelName, VersionNumber
from app.api.services import ServicesDep

router = APIRouter(tags=["deletions"], responses={409: {"description": "Names what still needs it"}})


@router.delete("/jobs/{job_id}", status_code=204)
def delete_job(job_id: JobId, services: ServicesDep) -> None:
    """Delete a job that has ended, with its request. Delete the version or editor that it made first."""
    services.registry.deletions.delete_job(job_id)
    structlog.get_logger().info("job deleted", job_id=job_id)


@router.delete("/models/{name}/versions/{number}", status_code=204)
def delete_version(name: ModelName, number: VersionNumber, services: ServicesDep) -> None:
    """Delete a version that has no child and no alias. Its number is not used again."""
    services.remove_unneeded(services.registry.deletions.delete_version(name, number))
    structlog.get_logger().info("version deleted", model=name, number=number)


@router.delete("/models/{name}/aliases/{alias}", status_code=204)
def delete_alias(name: ModelName, alias: AliasName, services: ServicesDep) -> None:
    """Delete an alias. The version that it names stays, and so does the history of the alias."""
    services.registry.deletions.delete_alias(name, alias)
    structlog.get_logger().info("alias deleted", model=name, alias=alias)


@router.delete("/editors/{editor_id}", status_code=204)
def delete_editor(editor_id: EditorId, services: ServicesDep) -> None:
    """Delete an editor that made no version."""
    services.remove_unneeded(services.registry.deletions.delete_editor(editor_id))
    structlog.get_logger().info("editor deleted", editor=editor_id)


@router.delete("/models/{name}", status_code=204)
def delete_model(
    name: ModelName,
    services: ServicesDep,
    cascade: Annotated[bool, Query(description="Also delete its versions, aliases, and editors")] = False,
) -> None:
    """Delete a model with its reference set and its ended jobs. The files of the base model stay."""
    services.remove_unneeded(services.registry.deletions.delete_model(name, cascade=cascade))
    structlog.get_logger().info("model deleted", model=name, cascade=cascade)
