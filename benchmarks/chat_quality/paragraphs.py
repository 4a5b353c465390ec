"""Paragraphs of running text that stand in front of a question, from WikiText-2.

Must not know questions or edits.
"""

from __future__ import annotations

import re

from benchmarks.shared_data import shared_text

SHORTEST, LONGEST = 40, 90  # words
_JOINED = (
    (r" @([-,.])@ ", r"\1"),
    (r" ([,.;:?!)%])", r"\1"),
    (r"\( ", "("),
    (r" ('s|'t|'re|'ve|'d|'ll|') ", r"\1 "),
)


def paragraphs() -> list[str]:
    """All paragraphs of a suitable length without unknown words and quotes, spaced as people write."""
    lines = (line.strip() for line in shared_text("wikitext2_valid").splitlines())
    return [
        _joined(line)
        for line in lines
        if line and not line.startswith("=") and not re.search(r'<unk>|"', line) and _fits(line)
    ]


def _fits(line: str) -> bool:
    return SHORTEST <= len(line.split()) <= LONGEST and line.endswith(".")


def _joined(line: str) -> str:
    for pattern, replacement in _JOINED:
        line = re.sub(pattern, replacement, line)
    return line
