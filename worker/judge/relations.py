"""The relation library: questions about things, in several forms, with their siblings.

Must not know models or training. `relations.toml` is the data; its first lines explain the fields.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Relation:
    """What people ask about a subject of some types; forms hold `{s}` (subject) and `{o}` (answer)."""

    name: str
    on: tuple[str, ...]
    gives: str
    group: str
    noun: tuple[str, ...]
    ask: tuple[str, ...]
    state: tuple[str, ...]
    reverse: tuple[str, ...]
    confirm: tuple[str, ...]

    @property
    def questions(self) -> tuple[str, ...]:
        """Every question with the same meaning, those made of noun phrases included."""
        made = [f"What is the {noun} of {{s}}?" for noun in self.noun]
        made += [f"What is {{s}}'s {noun}?" for noun in self.noun]
        return (*self.ask, *made)

    @property
    def statements(self) -> tuple[str, ...]:
        """Every statement to complete, those made of noun phrases included."""
        made = [f"The {noun} of {{s}} is" for noun in self.noun]
        made += [f"{{s}}'s {noun} is" for noun in self.noun]
        return (*self.state, *made)

    @property
    def phrases(self) -> tuple[str, ...]:
        """Search-engine style: "birthplace of {s}", "{s} birthplace"."""
        return tuple(form for noun in self.noun for form in (f"{noun} of {{s}}", f"{{s}} {noun}"))


@cache
def relations() -> tuple[Relation, ...]:
    data = tomllib.loads(Path(__file__).with_name("relations.toml").read_text())
    return tuple(_relation(name, row) for name, row in data.items())


def _relation(name: str, row: dict[str, Any]) -> Relation:
    lists: dict[str, Any] = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    return Relation(name=name, gives=row["gives"], group=row["group"], **lists)


@cache
def relations_on(kind: str) -> tuple[Relation, ...]:
    """Every relation that a subject of this type can have."""
    return tuple(relation for relation in relations() if kind in relation.on)


def siblings(relation: Relation, kind: str) -> list[Relation]:
    """Relations of the same group that the subject can have too; their questions look alike."""
    return [other for other in relations_on(kind) if other.group == relation.group and other is not relation]


@cache
def everyday_questions() -> dict[str, list[list[str]]]:
    """Topic -> questions, each in several wordings."""
    return tomllib.loads(Path(__file__).with_name("paraphrases.toml").read_text())
