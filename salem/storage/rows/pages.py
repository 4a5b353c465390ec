"""One page of a list: a query asks for one row more than the page has room for."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

PAGE = 100  # items, unless a caller asks for another number


def cut(found: list[T], limit: int) -> tuple[list[T], bool]:
    """At most `limit` items, and whether there are more."""
    return found[:limit], len(found) > limit
