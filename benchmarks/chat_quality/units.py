"""Units of the chat benchmark: what one row measures, and which rows a run wants.

A unit of kind `edits` is one job and all questions about it. Size 10 has several draws, which are parts of
the one job of size 100. A `chain` is three jobs of ten, each on top of the last. `small_reference` is
Salem's scope on a classifier with few reference samples. Must not know models or questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.chat_quality.methods import OURS

PROTOCOL = "chat-1"  # raise it when the same unit would be measured in another way
POOL = 100  # edits in all
CHAIN_JOBS, CHAIN_SIZE = 3, 10
REFERENCE_SIZES = (10, 30, 100)  # reference samples of the classifier
DATASET = "chat"

Row = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """What one row measures."""

    kind: Literal["edits", "chain", "small_reference"]
    method: str
    label: str  # tells apart several measurements of one method, such as before and after a change
    num_edits: int
    draw: int = 0
    per_edit: int = 0  # questions of a kind about each edit, at most

    @property
    def fields(self) -> Row:
        """The part of a row that names its unit."""
        return {"protocol": PROTOCOL, "dataset": DATASET, **asdict(self)}

    def is_measured(self, rows: Iterable[Row]) -> bool:
        """Whether a row of this unit exists."""
        mine = self.fields
        return any(mine.items() <= row.items() for row in rows)


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    methods: Sequence[str]
    label: str
    sizes: Sequence[int]
    draws: int  # of jobs with fewer than `POOL` edits
    per_edit: int  # with fewer than `POOL` edits; with `POOL` edits it is 1
    chain: bool = True
    small_reference: bool = True

    def units(self) -> list[Unit]:
        """The units in order, method by method."""
        return [unit for method in self.methods for unit in self._units_of(method)]

    def _units_of(self, method: str) -> list[Unit]:
        units = []
        for size in self.sizes:
            draws = min(self.draws, POOL // size)
            per_edit = 1 if size == POOL else self.per_edit
            units += [Unit("edits", method, self.label, size, draw, per_edit) for draw in range(draws)]
        if self.chain:
            units.append(Unit("chain", method, self.label, CHAIN_JOBS * CHAIN_SIZE))
        if self.small_reference and method == OURS:
            units.append(Unit("small_reference", method, self.label, 1))
        return units
