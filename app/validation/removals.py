"""Checks a request to remove edits from a version: each id must name one of its edits. Pure functions.

Must not know HTTP or SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from salem.errors import Pointer
from salem.messages import quote
from salem.records import EditId, Version


def valid_ids(edits: Sequence[str]) -> list[EditId]:
    """The ids that have the form of an edit id."""
    found = []
    for text in edits:
        try:
            found.append(EditId.parse(text))
        except ValueError:
            continue
    return found


def check_removal(
    version: Version, edits: Sequence[str], num_edits: Mapping[int, int], *, max_edits: int
) -> list[Pointer]:
    """Every problem of a request.

    Args:
        edits: the ids as the client wrote them.
        num_edits: for each version that the ids name, the number of edits that it added.
    """
    if not edits:
        return [Pointer("/edits", 'the list is empty; name at least one edit, such as "3.0"')]
    if len(edits) > max_edits:
        return [Pointer("/edits", f"{len(edits)} ids, but the limit is {max_edits}; send several requests")]
    first: dict[str, int] = {}
    found: list[Pointer] = []
    for place, text in enumerate(edits):
        found += _check_id(f"/edits/{place}", version, text, num_edits)
        if first.setdefault(text, place) != place:
            found.append(
                Pointer(f"/edits/{place}", f"{quote(text)} is already at /edits/{first[text]}; leave it out")
            )
    return found


def _check_id(pointer: str, version: Version, text: str, num_edits: Mapping[int, int]) -> Iterator[Pointer]:
    """At most one problem: it is not an id, or not the id of one of this version's edits."""
    try:
        edit = EditId.parse(text)
    except ValueError:
        yield Pointer(pointer, f'{quote(text)} is not an edit id; write it like "3.0"')
        return
    delta = next((delta for delta in version.deltas if delta.version == edit.version), None)
    if delta is None:
        versions = sorted({each.version for each in version.deltas if each.version is not None})
        known = f"its edits are from {', '.join(map(str, versions))}" if versions else "it has no edits"
        yield Pointer(pointer, f"{version.reference} has no edit from version {edit.version}; {known}")
    elif edit.place in delta.removed:
        yield Pointer(pointer, f"{edit} was already removed from {version.reference}; leave it out")
    elif edit.place >= num_edits.get(edit.version, 0):
        last = EditId(edit.version, num_edits.get(edit.version, 0) - 1)
        yield Pointer(pointer, f"version {edit.version} has no edit {edit}; its last is {last}")
