"""Quotes client texts in messages, and shortens long lists of notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_QUOTED = 60  # characters
_WORDS_BEFORE = 2  # the difference, so that it can be understood
MAX_NOTES = 20  # of one kind; another note counts the rest


def first_few(notes: Iterable[str], kind: str) -> Iterator[str]:
    """The first notes of a kind, then a note that counts the rest."""
    found = list(notes)
    yield from found[:MAX_NOTES]
    if len(found) > MAX_NOTES:
        yield f"and {len(found) - MAX_NOTES} more {kind}"


def quote_difference(text: str, other: str) -> str:
    """The text in quotation marks; of a long one, the part from where it differs from the other."""
    words, others = text.split(), other.split()
    if len(" ".join(words)) <= MAX_QUOTED:
        return quote(text)
    same = next((at for at, pair in enumerate(zip(words, others, strict=False)) if len(set(pair)) > 1), 0)
    start = max(0, same - _WORDS_BEFORE)
    return quote("\N{HORIZONTAL ELLIPSIS}" * (start > 0) + " ".join(words[start:]))


def quote(text: str) -> str:
    """The text in quotation marks, with single spaces; shortened if it is long."""
    line = " ".join(text.split())
    if len(line) > MAX_QUOTED:
        line = line[: MAX_QUOTED - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return f'"{line}"'
