"""Units of the quality benchmark: which rows it measures, in which order, and with which setting.

One unit is one row. A search unit tries one setting of a method; a measured unit uses the setting that the
search chose. Does not know models, tensors, or what a method does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from benchmarks.baselines.interface import Method
from benchmarks.quality.results import PROTOCOL, Row

SHA_DIGITS = 16  # of the weights' sha256, enough to tell models apart
TIE = 0.02  # of how well a setting edits: the search calls such settings equal
SEARCH_EDITS = 10
SIZES = (10, 100, 1, 1_000)  # numbers of edits, in the order in which they are measured
SEQUENCE = 1_000  # edits made one batch after another
FRESH_SEEDS = (3, 4, 5)  # the product's defaults were chosen on draws of lower seeds


@dataclass(frozen=True)
class Unit:
    """What one row measures. `setting` is None until the search has chosen it."""

    kind: Literal["search", "measure", "quick"]
    dataset: str
    model_sha256: str  # the first `SHA_DIGITS` digits
    method: str
    num_edits: int
    seed: int
    setting: float | None = None

    @property
    def key(self) -> str:
        """Names the unit's lock. Does not cover the code: if you change a method, forget its rows."""
        assert self.setting is not None, "a unit has a key once its setting is known"
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def units_of(rows: Iterable[Row]) -> set[Unit]:
    """The finished units among the rows."""
    names = [field.name for field in fields(Unit)]
    return {Unit(**{name: row[name] for name in names}) for row in rows if row["protocol"] == PROTOCOL}


def plan(
    pools: Mapping[str, tuple[str, int]],
    methods: Sequence[Method],
    seeds: Sequence[int],
    sizes: Sequence[int],
    *,
    quick: bool = False,
) -> list[Unit]:
    """All units in the order of work: first the search of every data set, then seed by seed and size by size.

    Every method is measured with its first seeds. With 10 and 100 edits, the product also gets fresh seeds.

    `pools` maps each data set to its weights' sha256 and to how many edits a measured job can draw from.
    """
    units = []
    if not quick:
        units = [
            Unit("search", dataset, sha256, method.name, SEARCH_EDITS, 0, setting)
            for dataset, (sha256, _) in pools.items()
            for method in methods
            for setting in method.grid
        ]
    for seed in sorted(seeds):
        for size in [size for size in SIZES if size in sizes]:
            for dataset, (sha256, num_corrections) in pools.items():
                units += [
                    Unit("quick" if quick else "measure", dataset, sha256, method.name, size, seed)
                    for method in methods
                    if num_corrections >= size and takes(method, size) and has_seed(method, size, seed)
                ]
    return units


def has_seed(method: Method, num_edits: int, seed: int) -> bool:
    """Whether a method is measured with a seed. Single edits and sequences have one seed."""
    if not 1 < num_edits < SEQUENCE:
        return seed == 0
    return seed < method.num_seeds or (method.fresh and seed in FRESH_SEEDS)


def takes(method: Method, num_edits: int) -> bool:
    """Whether a method is measured with this many edits; a thousand come as a sequence of batches."""
    return num_edits <= method.largest and (num_edits < SEQUENCE or method.sequential)


def resolved(unit: Unit, grid: Sequence[float], rows: Sequence[Row]) -> Unit | None:
    """The unit with its setting: the middle of the grid in a quick run, else the search's choice."""
    if unit.setting is not None:
        return unit
    setting = sorted(grid)[1] if unit.kind == "quick" else chosen_setting(unit, grid, rows)
    return None if setting is None else replace(unit, setting=setting)


def chosen_setting(unit: Unit, grid: Sequence[float], rows: Sequence[Row]) -> float | None:
    """The value of the grid that edits best; of those within a tie, the one with the least drawdown.

    How well a value edits is the mean of edit accuracy and generalization. None while a row of the search is
    missing; the middle of the grid if every row failed.
    """
    found = {
        row["setting"]: row
        for row in rows
        if row["kind"] == "search"
        and (row["dataset"], row["method"]) == (unit.dataset, unit.method)
        and row["model_sha256"] == unit.model_sha256
        and row["protocol"] == PROTOCOL
    }
    if not all(setting in found for setting in grid):
        return None
    tried = [found[setting] for setting in grid if found[setting].get("edit_accuracy") is not None]
    if not tried:
        return sorted(grid)[1]
    best = max(map(_edits, tried))
    tied = [row for row in tried if _edits(row) >= best - TIE]
    setting: float = min(tied, key=_drawdown)["setting"]
    return setting


def _edits(row: Row) -> float:
    """Edit accuracy, averaged with generalization if that was measured."""
    found = [row[name] for name in ("edit_accuracy", "generalization") if row.get(name) is not None]
    return float(sum(found) / len(found))


def _drawdown(row: Row) -> float:
    return float("inf") if row.get("drawdown") is None else float(row["drawdown"])


def expected_seconds(unit: Unit, rows: Sequence[Row]) -> float | None:
    """The mean time of finished units like this one, or None."""
    like = [
        row["unit_seconds"]
        for row in rows
        if (row["dataset"], row["method"], row["num_edits"]) == (unit.dataset, unit.method, unit.num_edits)
        and row["kind"] == unit.kind
    ]
    return sum(like) / len(like) if like else None
