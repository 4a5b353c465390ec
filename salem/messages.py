"""Quotes client texts in messages, and shortens long lists of notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MOST_QUOTED = 60  # characters
MOST_NOTES = 20  # of one kind; another note counts the rest


def a_few(notes: Iterable[str], kind: str) -> Iterator[str]:
    """The first notes of a kind, then a note that counts the rest."""
    found = list(notes)
    yield from found[:MOST_NOTES]
    if len(found) > MOST_NOTES:
        yield f"and {len(found) - MOST_NOTES} more {kind}"


def quoted(text: str) -> str:
    """The text in quotation marks, with single spaces; shortened if it is long."""
    line = " ".join(text.split())
    if len(line) > MOST_QUOTED:
        line = line[: MOST_QUOTED - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return f'"{line}"'
