"""Checks the language of pages, docstrings, comments, and messages: plain American English."""

from __future__ import annotations

import re
from pathlib import Path

from source_modules import ROOT

HISTORY = ROOT / "docs" / "log-history.md"  # kept as it was written

ODD = (
    *("rightly", "foretells?", "whilst", "wherein", "thereof", "whom an?", "hitherto", "nobody expected"),
    *("(?:is|are) had", "(?:is|are) to be", "holds? no more", "the way of", "there is no such thing"),
)
BRITISH = (
    *("neighbour(?:s|ing)?", "colour(?:s|ed)?", "behaviours?", "favour(?:s|ite)?", "honours?"),
    *("labell(?:ed|ing)", "modell(?:ed|ing)", "licences?", "artefacts?", "learnt", "(?:mis)?spelt"),
    r"(?:normal|general|initial|optim|token|summar|serial|organ|recogn)is(?:e[drs]?|ing|ations?)",
)
UNWANTED = re.compile(rf"\b(?:{'|'.join((*ODD, *BRITISH))})\b", re.IGNORECASE)


def unwanted(text: str) -> list[tuple[int, str]]:
    """Unwanted words with their line numbers. Code spans may quote names that no longer exist."""
    lines = enumerate(re.sub("`[^`\n]*`", "``", text).splitlines(), start=1)
    return [(number, found[0]) for number, line in lines for found in UNWANTED.finditer(line)]


def places(paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {word}"
        for path in sorted(paths)
        for number, word in unwanted(path.read_text())
    ]


def test_pages_are_in_plain_american_english() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    assert places([page for page in pages if page != HISTORY]) == []


def test_code_is_documented_in_plain_american_english() -> None:
    packages = ("salem", "app", "worker", "demo", "benchmarks")
    assert places([path for package in packages for path in (ROOT / package).rglob("*.py")]) == []


def test_unwanted_words_are_found() -> None:
    text = "It answers rightly.\nNot `labelled` here, but\nNormalised colours are to be had"
    assert unwanted(text) == [(1, "rightly"), (3, "Normalised"), (3, "colours"), (3, "are to be")]
