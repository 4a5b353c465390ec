"""Made-up names of people, places, works, and things, by type.

Must not know relations or questions. Draws come from the generator that the caller passes.
"""

from __future__ import annotations

import random
import re
import tomllib
from functools import cache
from pathlib import Path

_SLOT = re.compile(r"\{(\w+)\}")


@cache
def _lists() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    data = tomllib.loads(Path(__file__).with_name("names.toml").read_text())
    return data["parts"], data["types"]


def draw_name(kind: str, rng: random.Random) -> str:
    """A name of this type, e.g. `person` -> "Nora Lindqvist"."""
    parts, types = _lists()
    return _SLOT.sub(lambda slot: rng.choice(parts[slot[1]]), rng.choice(types[kind]))


def similar_name(name: str, kind: str, rng: random.Random) -> str:
    """Another name of this type; half the time it shares a word with `name`."""
    other = draw_name(kind, rng)
    while other == name:
        other = draw_name(kind, rng)
    mine, theirs = name.split(), other.split()
    if len(mine) < 2 or len(theirs) < 2 or rng.random() < 0.5:
        return other
    mixed = " ".join([mine[0], *theirs[1:]] if rng.random() < 0.5 else [*theirs[:-1], mine[-1]])
    return other if mixed == name else mixed
