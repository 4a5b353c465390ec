"""The route that lists a version's entries. Must not know how an entry matches an input."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.schemas import EntriesOut, ModelName, VersionNumber
from app.api.services import ServicesDep
from salem.records import EDIT_ID_PATTERN, EditId, ModelReference, Version

router = APIRouter(tags=["versions"])


@router.get("/models/{name}/versions/{number}/entries")
def list_entries(
    name: ModelName,
    number: VersionNumber,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[
        str | None, Query(pattern=EDIT_ID_PATTERN, description="The last id of the previous page")
    ] = None,
) -> EntriesOut:
    """The active entries of a version, oldest first. If several match an input, the newest one answers."""
    version = services.registry.resolve(ModelReference(model=name, number=number))
    entries, has_more = services.registry.entries.list_page(
        version, limit=limit, after=EditId.parse(after) if after else None
    )
    return EntriesOut(data=tuple(entries), has_more=has_more, note=_note(version))


def _note(version: Version) -> str | None:
    """Why the list lacks some or all edits; None if it has all of them."""
    plain = [f"{version.model}:{delta.version}" for delta in version.deltas if delta.kind != "scoped"]
    if not version.deltas:
        return f"{version.reference} has no deltas; it answers like the base"
    if not plain:
        return None
    few = ", ".join(plain[:5]) + (f" and {len(plain) - 5} more" if len(plain) > 5 else "")
    return f"a plain recipe made the edits of {few}; they act on every input and have no entries"
