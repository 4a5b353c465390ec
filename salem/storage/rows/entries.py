"""Rows of the entries of scoped versions: written with their version, read in pages, and found by a text.

Knows the tables `entries` and `entry_texts`; each function works inside its caller's transaction. Must not
know jobs, when to commit, or what an entry does: its tensors are in the delta's blob.
An entry is stored once, under the version that its delta was trained for. Later versions find it through
their deltas, and `Delta.removed` says which entries were removed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from salem.errors import NotFound
from salem.records import Delta, EditId, Entry, ListedEntry, Name, TextInput, Version
from salem.storage.schema import entries, entry_texts, versions

_TEXTS_PER_QUERY = 500  # databases limit the parameters of one statement


def append(connection: Connection, version: Version, made: Mapping[int, Sequence[tuple[int, Entry]]]) -> None:
    """Insert the entries of a version that has its number (`Publication.entries`)."""
    rows: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for place, numbered in made.items():
        delta = version.deltas[place]
        for position, entry in numbered:
            where = {
                "model": version.model,
                "made_in": delta.made_in,
                "version": delta.version,
                "position": position,
            }
            rows.append(where | {"record": entry.model_dump(mode="json")})
            texts += [where | {"text_hash": digest} for digest in _hashes(entry)]
    if rows:
        connection.execute(insert(entries), rows)
        connection.execute(insert(entry_texts), texts)


def _hashes(entry: Entry) -> set[str]:
    """Hashes of the edit's text and of its keys. A paraphrase has the text pair of its edit."""
    texts = [entry.input, *(key.text for key in entry.keys)]
    return {TextInput(input=text, text_pair=entry.text_pair).words_hash for text in texts}


def list_page(
    connection: Connection, version: Version, *, limit: int, after: EditId | None
) -> tuple[list[ListedEntry], bool]:
    """The active entries of a version after the entry `after`, oldest first; True if there are more.

    Raises:
        NotFound: the version has no entry `after`.
    """
    chain = [delta for delta in version.deltas if delta.kind == "scoped"]
    last = -1
    if after is not None:
        places = [place for place, delta in enumerate(chain) if delta.version == after.version]
        if not places or not _read(connection, version.model, chain[places[0]], after.place - 1, 1, after):
            raise NotFound(f'{version.reference} has no entry "{after}"', remedy="leave `after` out")
        chain, last = chain[places[0] :], after.place
    found: list[ListedEntry] = []
    for delta in chain:
        found += _read(connection, version.model, delta, last, limit + 1 - len(found))
        last = -1
        if len(found) > limit:
            break
    return found[:limit], len(found) > limit


def _read(
    connection: Connection, model: Name, delta: Delta, last: int, limit: int, only: EditId | None = None
) -> list[ListedEntry]:
    """Entries of one delta after the place `last`, with the job that made them."""
    query = (
        select(entries, versions.c.job_id)
        .join(versions, (versions.c.model == entries.c.model) & (versions.c.number == entries.c.version))
        .where(
            entries.c.model == model,
            entries.c.made_in == delta.made_in,
            entries.c.version == delta.version,
            entries.c.position > last,
            entries.c.position.not_in(delta.removed),
        )
        .order_by(entries.c.position)
        .limit(limit)
    )
    if only is not None:
        query = query.where(entries.c.position == only.place)
    return [_entry(row, delta) for row in connection.execute(query).mappings()]


def find(connection: Connection, version: Version, inputs: Sequence[TextInput]) -> list[ListedEntry]:
    """The entries of a version with one of these texts, newest first."""
    chain = {(delta.made_in, delta.version): delta for delta in version.deltas}
    hashes = sorted({item.words_hash for item in inputs})
    same = (
        (entry_texts.c.model == entries.c.model)
        & (entry_texts.c.made_in == entries.c.made_in)
        & (entry_texts.c.version == entries.c.version)
        & (entry_texts.c.position == entries.c.position)
    )
    query = (
        select(entries, versions.c.job_id)
        .join(entry_texts, same)
        .join(versions, (versions.c.model == entries.c.model) & (versions.c.number == entries.c.version))
        .where(entry_texts.c.model == version.model)
    )
    found: dict[EditId, ListedEntry] = {}
    for start in range(0, len(hashes), _TEXTS_PER_QUERY):
        part = query.where(entry_texts.c.text_hash.in_(hashes[start : start + _TEXTS_PER_QUERY]))
        for row in connection.execute(part).mappings():
            delta = chain.get((row["made_in"], row["version"]))
            if delta is not None and row["position"] not in delta.removed:
                found[EditId(row["version"], row["position"])] = _entry(row, delta)
    return [found[number] for number in sorted(found, reverse=True)]


def _entry(row: Any, delta: Delta) -> ListedEntry:
    return ListedEntry(
        **row["record"],
        id=str(EditId(row["version"], row["position"])),
        layer=delta.layer,
        version=row["version"],
        job_id=row["job_id"],
    )
