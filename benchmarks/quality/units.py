"""Units of the quality benchmark: which rows there are to be, in which order, and where they are kept.

One unit is one row, named by a hash of its inputs. Several processes share the work: a unit is claimed by a
lock that the kernel releases when its holder ends, and a row is added under a lock by replacing the file.
Does not know models, tensors or what a method does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from benchmarks.baselines.contract import Method

PROTOCOL = "1"  # raised when the same inputs would be measured in another way
RESULTS = Path(__file__).resolve().parent.parent / "results"
TIE = 0.02  # of what a setting is chosen by
SEARCH_EDITS = 10
SIZES = (10, 100, 1, 1_000)  # numbers of edits, in the order of work
SEQUENCE = 1_000  # edits made one batch after another
FRESH_SEEDS = (3, 4, 5)  # the product's defaults were chosen on draws of the seeds below

Row = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """What one row is measured on. `setting` is None until the search has chosen it."""

    kind: Literal["search", "measure", "quick"]
    dataset: str
    model_sha256: str
    method: str
    num_edits: int
    seed: int
    setting: float | None = None

    @property
    def key(self) -> str:
        """sha256 of what shapes the row but the code: who changes a method or material forgets its rows."""
        assert self.setting is not None, "a unit is named once its setting is known"
        return hashlib.sha256(json.dumps([PROTOCOL, asdict(self)], sort_keys=True).encode()).hexdigest()


class ResultFile:
    """A JSON list of rows, one a line, that grows by whole rows only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None  # time and inode of the file that was read last
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """All rows so far; the file is read again only when it was replaced."""
        if not self.path.is_file():
            return []
        found = self.path.stat()
        if self._seen != (found.st_mtime_ns, found.st_ino):
            self._rows = json.loads(self.path.read_text())
            self._seen = (found.st_mtime_ns, found.st_ino)
        return self._rows

    def add(self, row: Row) -> None:
        """Add a row; a reader sees the file with it or without it, never in between.

        A measurement takes the place of one with a setting that a larger search no longer chooses.
        """
        with _locked(self.path.with_suffix(".lock"), wait=True):
            self._write([*(known for known in self.rows() if not _overtaken(known, row)), row])

    def forget(self, methods: Iterable[str], datasets: Iterable[str], sizes: Iterable[int]) -> int:
        """Drop the rows of methods on data sets with numbers of edits, to measure what has changed again."""
        gone = set(product(methods, datasets, sizes))
        with _locked(self.path.with_suffix(".lock"), wait=True):
            rows = self.rows()
            kept = [row for row in rows if (row["method"], row["dataset"], row["num_edits"]) not in gone]
            self._write(kept)
        return len(rows) - len(kept)

    def _write(self, rows: Sequence[Row]) -> None:
        unfinished = self.path.with_suffix(f".{os.getpid()}.part")
        lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        unfinished.write_text(f"[\n{lines}\n]\n" if rows else "[]\n")
        unfinished.rename(self.path)


def _overtaken(known: Row, row: Row) -> bool:
    """Whether a row measured the same as another, with another setting or protocol."""
    same = ("kind", "dataset", "model_sha256", "method", "num_edits", "seed")
    return row.get("kind") == "measure" and all(known.get(name) == row[name] for name in same)


def of_newest_weights(rows: Sequence[Row]) -> list[Row]:
    """The rows that may be compared: of each data set those of the weights that were measured last.

    A base that the benchmark trains itself may come out otherwise on another machine; its rows begin anew,
    and those of other weights give way with the first measurement, not while a search has only begun.
    """
    newest = {row["dataset"]: row["model_sha256"] for row in rows}
    newest |= {row["dataset"]: row["model_sha256"] for row in rows if row["kind"] == "measure"}
    return [row for row in rows if row["model_sha256"] == newest[row["dataset"]]]


@contextmanager
def claimed(key: str, folder: Path) -> Iterator[bool]:
    """Whether this process may take the unit: no other holds it."""
    with _locked(folder / "claims" / f"{key}.lock", wait=False) as held:
        yield held


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def plan(
    pools: Mapping[str, tuple[str, int]],
    methods: Sequence[Method],
    seeds: Sequence[int],
    sizes: Sequence[int],
    *,
    quick: bool = False,
) -> list[Unit]:
    """All units in the order of work: the search of every data set, then seed by seed, size by size.

    A method is measured with its first seeds; the product, at ten and a hundred edits, with fresh ones, too.

    `pools` names the data sets: the weights' sha256 of each, and how many edits a measured job may draw from.
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
    """Whether a method is measured with a seed; single edits (twenty of them) and sequences have one."""
    if not 1 < num_edits < SEQUENCE:
        return seed == 0
    return seed < method.num_seeds or (method.fresh and seed in FRESH_SEEDS)


def takes(method: Method, num_edits: int) -> bool:
    """Whether a method is run with so many edits; a thousand come one batch after another."""
    return num_edits <= method.largest and (num_edits < SEQUENCE or method.sequential)


def resolved(unit: Unit, grid: Sequence[float], rows: Sequence[Row]) -> Unit | None:
    """The unit with its setting: the grid's middle on a quick run, else what a finished search chose."""
    if unit.setting is not None:
        return unit
    setting = sorted(grid)[1] if unit.kind == "quick" else chosen_setting(unit, grid, rows)
    return None if setting is None else replace(unit, setting=setting)


def chosen_setting(unit: Unit, grid: Sequence[float], rows: Sequence[Row]) -> float | None:
    """The grid's value that edits best; of those within a tie, the one of the least drawdown.

    How well it edits is the mean of edit accuracy and generalization. None while a row of the search is
    missing; the middle where every one of them failed.
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
    tried = [found[setting] for setting in grid if found[setting]["edit_accuracy"] is not None]
    if not tried:
        return sorted(grid)[1]
    best = max(map(_edits, tried))
    tied = [row for row in tried if _edits(row) >= best - TIE]
    setting: float = min(tied, key=_drawdown)["setting"]
    return setting


def _edits(row: Row) -> float:
    """Edit accuracy, averaged with generalization where that was measured."""
    found = [row[name] for name in ("edit_accuracy", "generalization") if row.get(name) is not None]
    return float(sum(found) / len(found))


def _drawdown(row: Row) -> float:
    return float("inf") if row["drawdown"] is None else row["drawdown"]


def expected_seconds(unit: Unit, rows: Sequence[Row]) -> float | None:
    """The mean time of finished units like this one; None where there is none."""
    like = [
        row["unit_seconds"]
        for row in rows
        if (row["dataset"], row["method"], row["num_edits"]) == (unit.dataset, unit.method, unit.num_edits)
        and row["kind"] == unit.kind
    ]
    return sum(like) / len(like) if like else None
