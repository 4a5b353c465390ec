"""Checks of a request to remove edits from a version: every id that is not one of its edits. Pure.

Knows the version and how many edits each job behind it brought. Does not know HTTP or SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from salem.errors import Pointer
from salem.messages import quoted
from salem.records import EditId, Version


def edit_ids(edits: Sequence[str]) -> list[EditId]:
    """Those of the ids that can be read."""
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
    """Everything that is wrong with a request.

    Args:
        edits: the ids as the client wrote them.
        num_edits: how many edits the versions that these ids name have brought.
    """
    if not edits:
        return [Pointer("/edits", 'there is no id; name at least one edit, such as "3.0"')]
    if len(edits) > max_edits:
        return [Pointer("/edits", f"{len(edits)} ids, the limit is {max_edits}; make several jobs")]
    first: dict[str, int] = {}
    found: list[Pointer] = []
    for place, text in enumerate(edits):
        found += _check_id(f"/edits/{place}", version, text, num_edits)
        if first.setdefault(text, place) != place:
            found.append(
                Pointer(f"/edits/{place}", f"{quoted(text)} is already given at /edits/{first[text]}")
            )
    return found


def _check_id(pointer: str, version: Version, text: str, num_edits: Mapping[int, int]) -> Iterator[Pointer]:
    """At most one problem: no id, or none of this version's edits."""
    try:
        edit = EditId.parse(text)
    except ValueError:
        yield Pointer(pointer, f'{quoted(text)} is not the id of an edit; write it like "3.0"')
        return
    delta = next((delta for delta in version.deltas if delta.version == edit.version), None)
    if delta is None:
        brought = sorted({each.version for each in version.deltas if each.version is not None})
        known = f"its edits are those of {', '.join(map(str, brought))}" if brought else "it has none"
        yield Pointer(pointer, f"no edit of {version.reference} came with version {edit.version}; {known}")
    elif edit.place in delta.removed:
        yield Pointer(pointer, f"{edit} was removed from {version.reference} before")
    elif edit.place >= num_edits.get(edit.version, 0):
        last = num_edits.get(edit.version, 0) - 1
        yield Pointer(
            pointer, f"version {edit.version} brought no edit {edit}; its last is {edit.version}.{last}"
        )
