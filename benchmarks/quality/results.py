"""The result file of the quality benchmark, benchmarks/results/quality.json: a JSON list, one row on a line.

A row holds only what the tables need:

    protocol, kind, dataset, model_sha256, method, num_edits, seed, setting
              the unit; a run recognizes finished units by these fields
    edit_accuracy, generalization, drawdown, neighborhood, portability, and three *_forced
              the figures that were measured
    counts    what the bootstrap needs (see the module `counts`); absent from rows of the search
    curve     for sequences, the figures after each batch
    model, held_out, paraphrase_source, cpu_seconds, peak_bytes, delta_bytes, unit_seconds
              for captions, costs, and plans
    error     why the unit failed; such a row has no figures

Several processes share the work. A process claims a unit by a lock, which the kernel releases when the
process ends, and adds a row under a lock by replacing the file. Does not know what a row means.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results"
PROTOCOL = "1"  # raise it when the same unit would be measured in another way

Row = dict[str, Any]


class ResultFile:
    """The rows of a benchmark on disk; several processes may add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None  # time and inode of the file that was read last
        self._rows: list[Row] = []

    def rows(self) -> list[Row]:
        """All rows so far. Reads the file again only if another process replaced it."""
        if not self.path.is_file():
            return []
        found = self.path.stat()
        if self._seen != (found.st_mtime_ns, found.st_ino):
            self._rows = json.loads(self.path.read_text())
            self._seen = (found.st_mtime_ns, found.st_ino)
        return self._rows

    def add(self, row: Row) -> None:
        """Add a row atomically.

        A measured row replaces one of the same unit with another setting or protocol.
        """
        with _locked(self.path.with_suffix(".lock"), wait=True):
            self._write([*(known for known in self.rows() if not _overtaken(known, row)), row])

    def forget(self, methods: Iterable[str], datasets: Iterable[str], sizes: Iterable[int]) -> int:
        """Drop the rows of these methods, data sets, and sizes, so that they are measured again."""
        gone = set(product(methods, datasets, sizes))
        with _locked(self.path.with_suffix(".lock"), wait=True):
            rows = self.rows()
            kept = [row for row in rows if (row["method"], row["dataset"], row["num_edits"]) not in gone]
            self._write(kept)
        return len(rows) - len(kept)

    def _write(self, rows: Sequence[Row]) -> None:
        unfinished = self.path.with_suffix(f".{os.getpid()}.part")
        lines = ",\n".join(json.dumps(row, allow_nan=False, separators=(",", ":")) for row in rows)
        unfinished.write_text(f"[\n{lines}\n]\n" if rows else "[]\n")
        unfinished.rename(self.path)


def _overtaken(known: Row, row: Row) -> bool:
    """Whether two rows measure the same unit, apart from its setting and the protocol."""
    same = ("kind", "dataset", "model_sha256", "method", "num_edits", "seed")
    return row.get("kind") == "measure" and all(known.get(name) == row[name] for name in same)


def of_newest_weights(rows: Sequence[Row]) -> list[Row]:
    """The rows that you can compare: for each data set, those of the weights that were measured last.

    A base model that the benchmark trains may come out differently on another machine, and its rows then
    start anew. Rows of other weights are dropped at the first measured row, not while a search has only
    begun.
    """
    newest = {row["dataset"]: row["model_sha256"] for row in rows}
    newest |= {row["dataset"]: row["model_sha256"] for row in rows if row["kind"] == "measure"}
    return [row for row in rows if row["model_sha256"] == newest[row["dataset"]]]


@contextmanager
def claimed(key: str, folder: Path) -> Iterator[bool]:
    """Whether this process may run the unit, because no other process holds it."""
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
