"""How a message quotes a text of the client's: on one line, and no longer than a reader needs."""

from __future__ import annotations

MOST_QUOTED = 60  # characters


def quoted(text: str) -> str:
    """The text between quotation marks, with single spaces, cut where it is long."""
    line = " ".join(text.split())
    if len(line) > MOST_QUOTED:
        line = line[: MOST_QUOTED - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return f'"{line}"'
