"""What a fact is about: its relation, and the frames of questions for it.

The tables are relations.toml and frames.toml. Must not know edits, models, or how frames are filled.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.chat_quality.facts import Fact

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Relation:
    """A relation with its frames. `noun` is None for facts that the table does not know."""

    noun: str | None
    subject: str  # kind of the subject, see [subjects] of frames.toml
    answer: str  # kind of the answer, see [answers]
    yes_no: tuple[str, ...]
    reversed: tuple[str, ...]
    negated: tuple[str, ...]


@cache
def relation_of(fact: Fact) -> Relation:
    """The first relation of the table that the fact's question matches."""
    frame = fact.frame.lower()
    return next(relation for pattern, relation in _table() if pattern.search(frame))


def subject_frames(fact: Fact) -> list[str]:
    """Frames of other questions about the fact's subject."""
    rows = table("frames")["subjects"][relation_of(fact).subject]
    question = fact.frame.lower()
    return [row["ask"] for row in rows if not re.search(row["unless"], question)]


def answer_frames(relation: Relation) -> list[str]:
    """Frames of questions about what the fact leads to, and about the target itself."""
    found = table("frames")["answers"][relation.answer]
    hops: list[str] = found["hops"] if relation.noun else []
    return [*hops, *found["direct"]]


@cache
def table(name: str) -> dict[str, Any]:
    """One of the tables of this folder."""
    return tomllib.loads((FOLDER / f"{name}.toml").read_text())


@cache
def _table() -> Sequence[tuple[re.Pattern[str], Relation]]:
    """Patterns and their relations in order. The last one matches every question."""
    general, unknown = table("frames")["any_noun"], table("frames")["any_relation"]
    rows = [
        (
            re.compile("|".join(row["match"])),
            Relation(
                row["noun"],
                row["subject"],
                row["answer"],
                tuple(row["yes_no"] + general["yes_no"] + unknown["yes_no"][:1]),
                tuple(row["reversed"] + general["reversed"]),
                tuple(row["negated"] + general["negated"]),
            ),
        )
        for row in table("relations")["relation"]
    ]
    fallback = Relation(
        None,
        "unknown",
        "thing",
        tuple(unknown["yes_no"]),
        tuple(unknown["reversed"]),
        tuple(unknown["negated"]),
    )
    return [*rows, (re.compile(""), fallback)]
