"""What still needs a resource, and the removal of its rows.

Each function works inside its caller's transaction and locks nothing. Must not know when to commit, or where
blobs are stored: a caller learns which blobs the removed rows named.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, select

from salem.records import JobState, Name
from salem.storage.schema import (
    alias_history,
    aliases,
    broken_neighbors,
    deltas,
    editors,
    entries,
    entry_texts,
    flips,
    jobs,
    models,
    outcomes,
    reference_samples,
    versions,
)

_NUM_SHOWN = 5
_NOT_ENDED = jobs.c.state.in_([JobState.QUEUED, JobState.RUNNING])
# Rows with the number of a version; entries have it as `made_in`.
_OF_A_VERSION = (outcomes, flips, broken_neighbors, deltas)
_OF_A_MODEL = (
    *(outcomes, flips, broken_neighbors, deltas, entry_texts, entries, versions, editors),
    *(alias_history, aliases, jobs, reference_samples),
)


def needs_job(connection: Connection, job_id: str) -> list[str]:
    """The version or the editor that the job made."""
    made = select(versions.c.model, versions.c.number).where(versions.c.job_id == job_id)
    trained = select(editors.c.id).where(editors.c.job_id == job_id)
    found = [f"version {model}:{number}" for model, number in connection.execute(made)]
    return found + [f"editor {editor}" for editor in connection.scalars(trained)]


def needs_version(connection: Connection, model: Name, number: int) -> list[str]:
    """Children and aliases of a version, and unfinished jobs that build on it."""
    children = select(versions.c.number).where(versions.c.model == model, versions.c.parent == number)
    named = select(aliases.c.name).where(aliases.c.model == model, aliases.c.version == number)
    parent = jobs.c.request["parent"].as_integer() == number
    return [
        *_shown(connection, children, versions.c.number, f"version {model}:"),
        *_shown(connection, named, aliases.c.name, f"alias {model}@"),
        *unfinished_jobs(connection, model, parent),
    ]


def needs_editor(connection: Connection, model: Name, editor_id: str) -> list[str]:
    """Versions that the editor made, which a removal may make again, and unfinished jobs that use it."""
    used = versions.c.options["editor"].as_string() == editor_id
    made = select(versions.c.number).where(versions.c.model == model, used)
    asked = jobs.c.request["options"]["editor"].as_string() == editor_id
    return [
        *_shown(connection, made, versions.c.number, f"version {model}:"),
        *unfinished_jobs(connection, model, asked),
    ]


def needs_model(connection: Connection, model: Name) -> list[str]:
    """What `cascade` removes with a model: its versions, aliases, and editors."""
    found = []
    for table, noun in ((versions, "version"), (aliases, "alias"), (editors, "editor")):
        count = connection.scalar(select(func.count()).select_from(table).where(table.c.model == model))
        if count:
            found.append(f"{count} {noun}{'' if count == 1 else 'es' if noun == 'alias' else 's'}")
    return found


def unfinished_jobs(
    connection: Connection, model: Name, which: ColumnElement[bool] | None = None
) -> list[str]:
    """Queued and running jobs of a model, or those of them for which `which` is true."""
    query = select(jobs.c.id).where(jobs.c.model == model, _NOT_ENDED)
    return _shown(connection, query if which is None else query.where(which), jobs.c.id, "job ")


def any_running(connection: Connection) -> bool:
    """Whether any job of any model runs."""
    return connection.scalar(select(jobs.c.id).where(jobs.c.state == JobState.RUNNING).limit(1)) is not None


def remove_job(connection: Connection, job_id: str) -> None:
    connection.execute(delete(jobs).where(jobs.c.id == job_id))


def remove_version(connection: Connection, model: Name, number: int) -> set[str]:
    """Remove a version with its deltas, entries, and results. Returns the blobs that its deltas named."""
    own = (deltas.c.model == model, deltas.c.number == number)
    rows = connection.execute(select(deltas.c.blob, deltas.c.metric).where(*own)).all()
    for table in (entry_texts, entries):
        connection.execute(delete(table).where(table.c.model == model, table.c.made_in == number))
    for table in (*_OF_A_VERSION, versions):
        connection.execute(delete(table).where(table.c.model == model, table.c.number == number))
    return {blob for row in rows for blob in row if blob}


def remove_editor(connection: Connection, editor_id: str) -> None:
    connection.execute(delete(editors).where(editors.c.id == editor_id))


def remove_alias(connection: Connection, model: Name, name: Name) -> None:
    """Remove an alias. Its history stays."""
    connection.execute(delete(aliases).where(aliases.c.model == model, aliases.c.name == name))


def remove_model(connection: Connection, model: Name) -> set[str]:
    """Remove a model and everything that belongs to it. Returns the blobs that the rows named."""
    found: set[str] = set()
    for table, names in (
        (models, ("reference_blob", "scope_metric")),
        (deltas, ("blob", "metric")),
        (editors, ("blob",)),
    ):
        key = _key_of(table)
        rows = connection.execute(select(*(table.c[name] for name in names)).where(key == model))
        found |= {blob for row in rows for blob in row if blob}
    for table in (*_OF_A_MODEL, models):
        connection.execute(delete(table).where(_key_of(table) == model))
    return found


def _key_of(table: Table) -> ColumnElement[str]:
    return table.c.name if table is models else table.c.model


def _shown(connection: Connection, query: Any, order: ColumnElement[Any], prefix: str) -> list[str]:
    """The first names that a query finds, and "more" if there are more."""
    found = [f"{prefix}{name}" for name in connection.scalars(query.order_by(order).limit(_NUM_SHOWN + 1))]
    return [*found[:_NUM_SHOWN], "more"] if len(found) > _NUM_SHOWN else found
