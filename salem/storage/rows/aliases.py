"""Rows of aliases and of their history: each function works inside its caller's transaction.

Knows the tables `aliases` and `alias_history`. Must not know jobs, nor when to commit.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

from sqlalchemy import Connection, insert, select, update

from salem.errors import NotFound
from salem.records import Alias, AliasChange, Name, VersionHeader
from salem.storage.publication import AliasMove
from salem.storage.rows import chains
from salem.storage.rows import versions as version_rows
from salem.storage.rows.pages import cut
from salem.storage.schema import alias_history, aliases, columns_of, row_values

_ALIAS_COLUMNS = columns_of(aliases, Alias)
_HISTORY_COLUMNS = columns_of(alias_history, AliasChange)
_NUM_NAMES_SHOWN = 5


def set_version(connection: Connection, model: Name, name: Name, number: int) -> Alias:
    """Point an alias at a version and record it. An alias that names the version already stays as it is.

    The caller holds the model's lock.

    Raises:
        NotFound: there is no such version.
    """
    if number:
        version_rows.get(connection, model, number)
    now = find(connection, model, name)
    if now is not None and now.version == number:
        return now
    alias = Alias(model=model, name=name, version=number, updated_at=datetime.now(UTC))
    if now is None:
        connection.execute(insert(aliases).values(row_values(alias)))
    else:
        here = (aliases.c.model == model, aliases.c.name == name)
        connection.execute(update(aliases).where(*here).values(row_values(alias)))
    connection.execute(insert(alias_history).values(row_values(alias)))
    return alias


def move(connection: Connection, version: VersionHeader, move: AliasMove, created_at: datetime) -> str | None:
    """Point an alias at a version that a job made, unless somebody else moved it while the job ran.

    The alias moves from the version that it named when the job was created (`move.was`), and from any later
    ancestor of the new version. From other places it does not move: that would undo another job's corrections
    or somebody's rollback. After a rollback since `created_at`, the alias stays where it is. The caller holds
    the model's lock.

    Returns:
        None, or a note that says where the alias stayed, or whose corrections it left behind, and what to do.
    """
    current = find(connection, version.model, move.name)
    now = None if current is None else current.version
    moved_forward = now is not None and now > (-1 if move.was is None else move.was)
    is_ancestor = now is None or now in chains.ancestors(connection, version.model, version.parent or 0) | {0}
    may_move = now in (None, move.was) or (moved_forward and is_ancestor)
    if may_move and not _was_rolled_back(connection, version.model, move.name, created_at):
        set_version(connection, version.model, move.name, version.number)
        return None if is_ancestor or now is None else _moved_off(version, move.name, now)
    return (
        f'alias "{move.name}" still names {version.model}:{now}, because it was moved while the job ran. To '
        f"make it name {version.reference}, send PUT /models/{version.model}/aliases/{move.name} with "
        f'{{"version": {version.number}}}, or send the edits again on top of {version.model}:{now}'
    )


def _moved_off(version: VersionHeader, name: Name, left: int) -> str:
    return (
        f'alias "{name}" moved from {version.model}:{left} to {version.reference}, which is not built on it, '
        f"so the corrections of {version.model}:{left} no longer apply. To move it back, send PUT "
        f'/models/{version.model}/aliases/{name} with {{"version": {left}}}; to keep both, send the edits '
        f"again on top of {version.model}:{left}"
    )


def _was_rolled_back(connection: Connection, model: Name, name: Name, since: datetime) -> bool:
    """Whether an alias was pointed at an older version than before. Jobs never do that."""
    query = (
        select(alias_history.c.version, alias_history.c.updated_at)
        .where(alias_history.c.model == model, alias_history.c.name == name)
        .order_by(alias_history.c.id)
    )
    changes = connection.execute(query).all()
    return any(
        after.updated_at >= since and after.version < before.version for before, after in pairwise(changes)
    )


def find(connection: Connection, model: Name, name: Name) -> Alias | None:
    """The alias of this name, if there is one."""
    query = select(*_ALIAS_COLUMNS).where(aliases.c.model == model, aliases.c.name == name)
    row = connection.execute(query).mappings().first()
    return None if row is None else Alias.model_validate(dict(row))


def get(connection: Connection, model: Name, name: Name) -> Alias:
    """Read an alias.

    Raises:
        NotFound: the model has no such alias; the message names some that it has.
    """
    found = find(connection, model, name)
    if found is not None:
        return found
    known, more = list_page(connection, model, limit=_NUM_NAMES_SHOWN, after=None)
    names = ", ".join(f'"{alias.name}"' for alias in known) + (" and more" if more else "")
    raise NotFound(
        f'model "{model}" has no alias "{name}"; ' + (f"it has {names}" if known else "it has no aliases"),
        remedy=f"PUT /models/{model}/aliases/{name} creates it",
    )


def list_page(
    connection: Connection, model: Name, *, limit: int, after: Name | None
) -> tuple[list[Alias], bool]:
    """Aliases of a model by name; True if there are more."""
    query = select(*_ALIAS_COLUMNS).where(aliases.c.model == model)
    if after is not None:
        query = query.where(aliases.c.name > after)
    rows = connection.execute(query.order_by(aliases.c.name).limit(limit + 1)).mappings()
    return cut([Alias.model_validate(dict(row)) for row in rows], limit)


def list_history(
    connection: Connection, model: Name, name: Name, *, limit: int, after: int | None
) -> tuple[list[AliasChange], bool]:
    """Every version that an alias has named, newest first; True if there are more.

    Raises:
        NotFound: there never was such an alias.
    """
    here = (alias_history.c.model == model, alias_history.c.name == name)
    query = select(*_HISTORY_COLUMNS).where(*here)
    if after is not None:
        query = query.where(alias_history.c.id < after)
    rows = connection.execute(query.order_by(alias_history.c.id.desc()).limit(limit + 1)).mappings()
    found = [AliasChange.model_validate(dict(row)) for row in rows]
    if not found and after is None:
        get(connection, model, name)
    return cut(found, limit)
