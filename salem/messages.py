"""How a message quotes a text of the client's, on one line, and how many of a kind a reader needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MOST_QUOTED = 60  # characters
MOST_NOTES = 20  # of one kind; one more counts the others


def a_few(notes: Iterable[str], kind: str) -> Iterator[str]:
    """The first notes of a kind, and how many more there are."""
    found = list(notes)
    yield from found[:MOST_NOTES]
    if len(found) > MOST_NOTES:
        yield f"and {len(found) - MOST_NOTES} more {kind}"


def quoted(text: str) -> str:
    """The text between quotation marks, with single spaces, cut where it is long."""
    line = " ".join(text.split())
    if len(line) > MOST_QUOTED:
        line = line[: MOST_QUOTED - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return f'"{line}"'
