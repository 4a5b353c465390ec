"""Versions and the aliases that point at them as rows: each function works inside its caller's transaction.

Knows the tables `versions`, `aliases` and `alias_history`. Does not know when to commit, nor of jobs more
than what was asked of the one that made a version.
Version 0, the base, is no row: `base_of` makes it from its model.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from itertools import pairwise

from sqlalchemy import Connection, func, insert, select, update

from salem.errors import ModelNotReady, NotFound
from salem.records import (
    Alias,
    Delta,
    Edit,
    EditRequest,
    HostedModel,
    JobKind,
    ModelReference,
    ModelState,
    Name,
    Version,
)
from salem.storage.schema import alias_history, aliases, columns_of, jobs, row_values, versions

_VERSION_COLUMNS = columns_of(versions, Version)
_ALIAS_COLUMNS = columns_of(aliases, Alias)
_HISTORY_COLUMNS = columns_of(alias_history, Alias)


def base_of(model: HostedModel) -> Version:
    """Version 0: the hosted model itself.

    Raises:
        ModelNotReady: its registration has not ended, or has failed.
    """
    if model.state is ModelState.REGISTERING:
        raise ModelNotReady(
            f'the model "{model.name}" is still being registered',
            remedy="follow its registration job, then try again",
        )
    if model.state is ModelState.FAILED:
        raise ModelNotReady(
            f'the registration of "{model.name}" failed',
            remedy="its job says why; register it again under this name",
        )
    return Version(
        model=model.name,
        number=0,
        parent=None,
        deltas=(),
        metrics=None,
        options=None,
        layer=None,
        job_id=None,
        created_at=model.created_at,
    )


def resolve(connection: Connection, model: HostedModel, reference: ModelReference) -> Version:
    """The version that a reference to this model names at this moment.

    Raises:
        ModelNotReady: the model has no base yet.
        NotFound: no such version or alias; the message says which there are.
    """
    base = base_of(model)
    number = reference.number or 0
    if reference.alias is not None:
        number = get_alias(connection, model.name, reference.alias).version
    return base if number == 0 else get(connection, model.name, number)


def get(connection: Connection, model: Name, number: int) -> Version:
    """Read one version above 0."""
    query = select(*_VERSION_COLUMNS).where(versions.c.model == model, versions.c.number == number)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise _no_such_version(connection, model, number)
    return Version.model_validate(dict(row))


def _no_such_version(connection: Connection, model: Name, number: int) -> NotFound:
    newest = newest_number(connection, model)
    what_exists = f"its newest is {newest}" if newest else "it has only its base, version 0"
    return NotFound(
        f'there is no version {number} of "{model}"; {what_exists}',
        remedy=f"GET /models/{model}/versions lists them",
    )


def newest_number(connection: Connection, model: Name) -> int:
    """The highest number given so far; 0 where there is only the base."""
    return connection.scalar(select(func.max(versions.c.number)).where(versions.c.model == model)) or 0


def list_all(connection: Connection, model: Name) -> list[Version]:
    """Newest first, without the base."""
    query = select(*_VERSION_COLUMNS).where(versions.c.model == model).order_by(versions.c.number.desc())
    return [Version.model_validate(dict(row)) for row in connection.execute(query).mappings()]


def append(connection: Connection, version: Version, job_id: str) -> Version:
    """Insert a version under the next number, which becomes that of its new deltas too.

    The caller holds the model's lock: no number is given twice.

    Raises:
        NotFound: its parent does not exist.
    """
    if version.parent:
        get(connection, version.model, version.parent)
    number = newest_number(connection, version.model) + 1
    deltas = tuple(_numbered(delta, number) for delta in version.deltas)
    numbered = version.model_copy(update={"number": number, "job_id": job_id, "deltas": deltas})
    connection.execute(insert(versions).values(row_values(numbered)))
    return numbered


def _numbered(delta: Delta, number: int) -> Delta:
    """A delta that is published for the first time gets its number; one that was replayed keeps its first."""
    if delta.made_in is not None:
        return delta
    brought_by = number if delta.version is None else delta.version
    return delta.model_copy(update={"version": brought_by, "made_in": number})


def edit_requests(connection: Connection, model: Name, numbers: Collection[int]) -> dict[int, EditRequest]:
    """What the edit jobs behind these versions were asked to do, by the version's number."""
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
    """The edits alone of these requests, or of all: the pass samples beside them may be megabytes.

    PostgreSQL takes no part out of a document that holds U+0000; the checks of a request let none in.
    """
    query = (
        select(versions.c.number, jobs.c.request["edits"])
        .join(jobs, jobs.c.id == versions.c.job_id)
        .where(versions.c.model == model, jobs.c.kind == JobKind.EDIT)
    )
    if numbers is not None:
        query = query.where(versions.c.number.in_(set(numbers)))
    rows = connection.execute(query.order_by(versions.c.number)).all()
    return {number: tuple(map(Edit.model_validate, asked)) for number, asked in rows}


def set_alias(connection: Connection, model: Name, name: Name, number: int) -> Alias:
    """Point an alias at a version and remember it; pointing it where it points already changes nothing.

    The caller holds the model's lock.

    Raises:
        NotFound: there is no such version.
    """
    if number:
        get(connection, model, number)
    where = (aliases.c.model == model, aliases.c.name == name)
    row = connection.execute(select(*_ALIAS_COLUMNS).where(*where)).mappings().first()
    if row is not None and row["version"] == number:
        return Alias.model_validate(dict(row))
    alias = Alias(model=model, name=name, version=number, updated_at=datetime.now(UTC))
    if row is None:
        connection.execute(insert(aliases).values(row_values(alias)))
    else:
        connection.execute(update(aliases).where(*where).values(row_values(alias)))
    connection.execute(insert(alias_history).values(row_values(alias)))
    return alias


def move_alias(
    connection: Connection, version: Version, name: Name, was: int | None, asked_at: datetime
) -> str | None:
    """Point an alias at a version that a job made, unless somebody else set it while the job ran.

    It moves from where it stood when the job was asked for (`was`; None: nowhere), and from any later version
    that the new one is built on. Elsewhere it stays: moving it would take back another job's corrections, or
    somebody's way back. One that went back since `asked_at` stays wherever that was. The caller holds the
    model's lock.

    Returns:
        None, or a note that says where the alias was left, or whose corrections it left behind, and what can
        be done.
    """
    now = next((a.version for a in list_aliases(connection, version.model) if a.name == name), None)
    onward = now is not None and now > (-1 if was is None else was)
    there, built_on_it = f"{version.model}:{now}", now in (None, *_built_on(connection, version))
    may_move = now in (None, was) or (onward and built_on_it)
    if may_move and not _went_back(connection, version.model, name, asked_at):
        set_alias(connection, version.model, name, version.number)
        if built_on_it:
            return None
        return (
            f'the alias "{name}" was moved from {there}, which {version.reference} is not built on, so that '
            f"its corrections are answered no more: PUT /models/{version.model}/aliases/{name} with "
            f'{{"version": {now}}} moves it back, and what is asked for on top of {there} keeps both'
        )
    return (
        f'the alias "{name}" was left at {there}, where it was set while the job ran, and does not name '
        f"{version.reference}: PUT /models/{version.model}/aliases/{name} with "
        f'{{"version": {version.number}}} moves it, or ask again on top of {there}'
    )


def _went_back(connection: Connection, model: Name, name: Name, since: datetime) -> bool:
    """Whether an alias was pointed at an older version than before: no job does that."""
    query = (
        select(alias_history.c.version, alias_history.c.updated_at)
        .where(alias_history.c.model == model, alias_history.c.name == name)
        .order_by(alias_history.c.id)
    )
    places = connection.execute(query).all()
    return any(
        then.updated_at >= since and then.version < before.version for before, then in pairwise(places)
    )


def _built_on(connection: Connection, version: Version) -> set[int]:
    """The parent of a version, its parent and so on, down to the base."""
    query = select(versions.c.number, versions.c.parent).where(versions.c.model == version.model)
    parents = {number: parent for number, parent in connection.execute(query)}
    found: set[int] = set()
    number = version.parent
    while number is not None:
        found.add(number)
        number = parents.get(number)
    return found


def get_alias(connection: Connection, model: Name, name: Name) -> Alias:
    known = list_aliases(connection, model)
    for alias in known:
        if alias.name == name:
            return alias
    what_exists = (
        "its aliases are " + ", ".join(f'"{alias.name}"' for alias in known) if known else "it has none yet"
    )
    raise NotFound(
        f'there is no alias "{name}" of "{model}"; {what_exists}',
        remedy=f"PUT /models/{model}/aliases/{name} makes it",
    )


def list_aliases(connection: Connection, model: Name) -> list[Alias]:
    query = select(*_ALIAS_COLUMNS).where(aliases.c.model == model).order_by(aliases.c.name)
    return [Alias.model_validate(dict(row)) for row in connection.execute(query).mappings()]


def list_alias_history(connection: Connection, model: Name, name: Name) -> list[Alias]:
    """Every place where an alias has pointed, newest first.

    Raises:
        NotFound: there never was such an alias.
    """
    query = (
        select(*_HISTORY_COLUMNS)
        .where(alias_history.c.model == model, alias_history.c.name == name)
        .order_by(alias_history.c.id.desc())
    )
    history = [Alias.model_validate(dict(row)) for row in connection.execute(query).mappings()]
    return history or [get_alias(connection, model, name)]


def blobs(connection: Connection) -> set[str]:
    """Blobs of every delta of every version, and of the metrics that they name."""
    every = [delta for deltas in connection.scalars(select(versions.c.deltas)) for delta in deltas]
    return {blob for delta in every for blob in (delta["blob"], delta.get("metric")) if blob}
