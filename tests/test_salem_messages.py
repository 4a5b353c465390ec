"""Quoted texts in messages: one line, bounded, with a mark where text was cut."""

from __future__ import annotations

import pytest

from salem.messages import MAX_QUOTED, quote


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("where is my parcel", '"where is my parcel"'),
        (" a\n\tb  c ", '"a b c"'),
        ("", '""'),
        ("x" * MAX_QUOTED, f'"{"x" * MAX_QUOTED}"'),
        ("x" * (MAX_QUOTED + 1), f'"{"x" * (MAX_QUOTED - 1)}\N{HORIZONTAL ELLIPSIS}"'),
        ("word " * 30, '"' + ("word " * 30)[: MAX_QUOTED - 1].rstrip() + '\N{HORIZONTAL ELLIPSIS}"'),
    ],
)
def test_a_quoted_text_is_one_short_line(text: str, expected: str) -> None:
    assert quote(text) == expected
