"""Chains of deltas: a version stores only what it changes in the chain of its parent.

A delta is found by the version that introduced its edits: a chain has at most one of each. A child has a
higher number than its parent, so the order of these numbers is the order of application.
Knows the tables `versions` and `deltas`. Must not know what a delta does, nor when to commit.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import CTE, Connection, insert, select

from salem.records import Delta, Name
from salem.storage.schema import columns_of, deltas, row_values, versions

_DELTA_COLUMNS = columns_of(deltas, Delta)


def read(connection: Connection, model: Name, number: int) -> tuple[Delta, ...]:
    """The deltas of a version, in the order of application. One query, however long the chain is."""
    chain = _ancestry(model, number)
    own = (deltas.c.model == model) & (deltas.c.number == chain.c.number)
    query = (
        select(chain.c.number, chain.c.dropped, *_DELTA_COLUMNS)
        .outerjoin_from(chain, deltas, own)
        .order_by(chain.c.number)
    )
    found: dict[int, Any] = {}
    for row in connection.execute(query).mappings():
        for introduced_by in row["dropped"]:
            found.pop(introduced_by, None)
        if row["version"] is not None:
            found[row["version"]] = row
    return tuple(
        Delta.model_validate({name: found[version][name] for name in Delta.model_fields})
        for version in sorted(found)
    )


def ancestors(connection: Connection, model: Name, number: int) -> set[int]:
    """The numbers of a version, its parent, and so on, down to the base."""
    chain = _ancestry(model, number)
    parents = connection.execute(select(chain.c.number, chain.c.parent)).all()
    return {number for row in parents for number in row}


def dropped_from(parent: tuple[Delta, ...], chain: tuple[Delta, ...]) -> list[int]:
    """Which deltas of the parent's chain are not in this one: the versions that introduced them."""
    return sorted({delta.version or 0 for delta in parent} - {delta.version or 0 for delta in chain})


def append(
    connection: Connection, model: Name, number: int, parent: tuple[Delta, ...], chain: tuple[Delta, ...]
) -> None:
    """Store the deltas that a version does not share with its parent."""
    introduced_by = [delta.version or 0 for delta in chain]
    assert introduced_by == sorted(set(introduced_by)), "a chain has one delta of a version, in their order"
    inherited = {delta.version: delta for delta in parent}
    own = [delta for delta in chain if inherited.get(delta.version) != delta]
    if own:
        connection.execute(
            insert(deltas), [{"model": model, "number": number, **row_values(delta)} for delta in own]
        )


def blobs(connection: Connection) -> set[str]:
    """The blobs of all deltas and of their scope metrics."""
    return {
        blob for row in connection.execute(select(deltas.c.blob, deltas.c.metric)) for blob in row if blob
    }


def _ancestry(model: Name, number: int) -> CTE:
    """A version, its parent, and so on. The base has no row."""
    columns = (versions.c.number, versions.c.parent, versions.c.dropped)
    first = select(*columns).where(versions.c.model == model, versions.c.number == number)
    chain = first.cte("chain", recursive=True)
    parent = versions.c.number == chain.c.parent
    return chain.union_all(select(*columns).join(chain, parent).where(versions.c.model == model))
