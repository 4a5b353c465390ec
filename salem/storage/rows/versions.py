"""Rows of versions: each function works inside its caller's transaction.

Knows the tables `versions`, `outcomes`, `flips`, and `broken_neighbors`, and the requests of the jobs that
made the versions. Must not know when to commit. `chains` stores the deltas, and `aliases` the names.
Version 0, the base, has no row: `base_of` makes it from its model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from sqlalchemy import Connection, Table, func, insert, select, update

from salem.errors import ModelNotReady, NotFound
from salem.records import (
    Delta,
    Edit,
    EditRequest,
    HostedModel,
    JobKind,
    ListedBrokenNeighbor,
    ListedFlip,
    ListedOutcome,
    ModelState,
    Name,
    Record,
    Version,
    VersionHeader,
)
from salem.storage.publication import Publication
from salem.storage.rows import chains
from salem.storage.rows.pages import cut
from salem.storage.schema import (
    broken_neighbors,
    columns_of,
    flips,
    jobs,
    models,
    outcomes,
    row_values,
    versions,
)

_HEADER_COLUMNS = columns_of(versions, VersionHeader)

ResultT = TypeVar("ResultT", ListedOutcome, ListedFlip, ListedBrokenNeighbor)
_RESULTS: dict[type[Record], Table] = {
    ListedOutcome: outcomes,
    ListedFlip: flips,
    ListedBrokenNeighbor: broken_neighbors,
}


def base_of(model: HostedModel) -> VersionHeader:
    """Version 0: the hosted model itself.

    Raises:
        ModelNotReady: its registration has not ended, or it failed.
    """
    if model.state is ModelState.REGISTERING:
        raise ModelNotReady(
            f'model "{model.name}" is still being registered',
            remedy="wait for its registration job, then try again",
        )
    if model.state is ModelState.FAILED:
        raise ModelNotReady(
            f'the registration of model "{model.name}" failed',
            remedy="its job says why; register it again under this name",
        )
    return VersionHeader(
        model=model.name,
        number=0,
        parent=None,
        metrics=None,
        options=None,
        layer=None,
        job_id=None,
        created_at=model.created_at,
    )


def get(connection: Connection, model: Name, number: int) -> VersionHeader:
    """Read the header of a version above 0.

    Raises:
        NotFound: the model has no such version.
    """
    query = select(*_HEADER_COLUMNS).where(versions.c.model == model, versions.c.number == number)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise _no_such_version(connection, model, number)
    return VersionHeader.model_validate(dict(row))


def _no_such_version(connection: Connection, model: Name, number: int) -> NotFound:
    newest = connection.scalar(select(func.max(versions.c.number)).where(versions.c.model == model))
    what_exists = f"its newest version is {newest}" if newest else "it has only version 0, the base"
    return NotFound(
        f'model "{model}" has no version {number}; {what_exists}',
        remedy=f"GET /models/{model}/versions lists its versions",
    )


def list_page(
    connection: Connection, model: Name, *, limit: int, after: int | None
) -> tuple[list[VersionHeader], bool]:
    """Headers without the base, newest first, below the number `after`; True if there are more."""
    query = select(*_HEADER_COLUMNS).where(versions.c.model == model)
    if after is not None:
        query = query.where(versions.c.number < after)
    ordered = query.order_by(versions.c.number.desc()).limit(limit + 1)
    found = [VersionHeader.model_validate(dict(row)) for row in connection.execute(ordered).mappings()]
    return cut(found, limit)


def append(connection: Connection, version: Version, job_id: str, made: Publication) -> Version:
    """Insert a version under the next number, with its deltas and the results of its samples.

    Its new deltas get the same number. The caller holds the model's lock, so no number is given twice.

    Raises:
        NotFound: its parent does not exist.
    """
    parent: tuple[Delta, ...] = ()
    if version.parent:
        get(connection, version.model, version.parent)
        parent = chains.read(connection, version.model, version.parent)
    number = _next_number(connection, version.model)
    deltas = tuple(_numbered(delta, number) for delta in version.deltas)
    published = version.model_copy(update={"number": number, "job_id": job_id, "deltas": deltas})
    values = row_values(
        VersionHeader(**{name: getattr(published, name) for name in VersionHeader.model_fields})
    )
    dropped = chains.dropped_from(parent, deltas)
    connection.execute(insert(versions).values(values | {"dropped": dropped}))
    chains.append(connection, version.model, number, parent, deltas)
    of_samples: tuple[tuple[Table, Sequence[Record]], ...] = (
        (outcomes, made.outcomes),
        (flips, made.flips),
        (broken_neighbors, made.broken_neighbors),
    )
    for table, results in of_samples:
        rows = [
            {
                "model": version.model,
                "number": number,
                "position": position,
                "record": each.model_dump(mode="json"),
            }
            for position, each in enumerate(results)
        ]
        if rows:
            connection.execute(insert(table), rows)
    return published


def _next_number(connection: Connection, model: Name) -> int:
    """A number that no version of the model has had, not even one that was deleted."""
    this = models.c.name == model
    connection.execute(update(models).where(this).values(last_version=models.c.last_version + 1))
    return int(connection.execute(select(models.c.last_version).where(this)).scalar_one())


def _numbered(delta: Delta, number: int) -> Delta:
    """A new delta gets the number of its version; one that was replayed keeps its first number."""
    if delta.made_in is not None:
        return delta
    introduced_by = number if delta.version is None else delta.version
    return delta.model_copy(update={"version": introduced_by, "made_in": number})


def list_results(
    connection: Connection, kind: type[ResultT], model: Name, number: int, *, limit: int, after: int | None
) -> tuple[list[ResultT], bool]:
    """Results of a version in the order in which they were published; True if there are more."""
    table = _RESULTS[kind]
    query = select(table.c.record, table.c.position).where(table.c.model == model, table.c.number == number)
    if after is not None:
        query = query.where(table.c.position > after)
    rows = connection.execute(query.order_by(table.c.position).limit(limit + 1))
    return cut([kind.model_validate({**record, "position": position}) for record, position in rows], limit)


def edit_requests(connection: Connection, model: Name, numbers: Collection[int]) -> dict[int, EditRequest]:
    """The requests of the edit jobs that made these versions, by the version's number."""
    query = (
        select(versions.c.number, jobs.c.request)
        .join(jobs, jobs.c.id == versions.c.job_id)
        .where(versions.c.model == model, versions.c.number.in_(set(numbers)), jobs.c.kind == JobKind.EDIT)
    )
    rows = connection.execute(query.order_by(versions.c.number)).all()
    return {number: EditRequest.model_validate(request) for number, request in rows}


def edits(
    connection: Connection, model: Name, numbers: Collection[int] | None = None
) -> dict[int, tuple[Edit, ...]]:
    """Only the edits of these requests, or of all: their pass samples may be megabytes.

    PostgreSQL cannot extract a part of a document with U+0000 in it; the checks of a request refuse U+0000.
    """
    query = (
        select(versions.c.number, jobs.c.request["edits"])
        .join(jobs, jobs.c.id == versions.c.job_id)
        .where(versions.c.model == model, jobs.c.kind == JobKind.EDIT)
    )
    if numbers is not None:
        query = query.where(versions.c.number.in_(set(numbers)))
    rows = connection.execute(query.order_by(versions.c.number)).all()
    return {number: tuple(map(Edit.model_validate, edits_of)) for number, edits_of in rows}
