"""One run of the quality benchmark: works through the units that are not done yet, in order.

Several processes may work on the same result file. Does not know what a method does or how a row is measured.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from transformers.utils import logging

from benchmarks.command import Progress
from benchmarks.quality.data import DATASETS, material
from benchmarks.quality.jobs import Sizes, measured_pool
from benchmarks.quality.methods import METHODS
from benchmarks.quality.results import RESULTS, ResultFile, claimed
from benchmarks.quality.unit_run import Work, run_apart
from benchmarks.quality.units import (
    SHA_DIGITS,
    SIZES,
    Unit,
    expected_seconds,
    plan,
    resolved,
    units_of,
)

QUICK_SETS = ("nli", "questions", "gpt-facts")  # one for each task
QUICK_METHODS = ("fine-tune-kl", "mend-top3", "grace", "salem")  # one for each kind of method
QUICK_LIMIT = 600  # reference samples
QUICK_SIZES = Sizes(held_out=60, validation_held_out=60, pass_samples=100)
WAIT_S = 5.0  # between looks, while another process searches the settings of the remaining units


@dataclass(frozen=True)
class Choice:
    """What the command line asks for; an empty `sets` or `methods` means all of them."""

    sets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = SIZES
    minutes: float = float("inf")


@dataclass(frozen=True)
class Run:
    """The units of a run, and what they need."""

    units: tuple[Unit, ...]
    grids: dict[str, tuple[float, ...]]  # the values that the search tries, by method
    results: ResultFile
    sizes: Sizes
    limit: int | None  # of the material's reference samples
    until: float  # on the monotonic clock: no unit starts later
    progress: Progress


def prepared(choice: Choice, *, quick: bool) -> Run:
    """The run for a choice; trains the models that are missing. A quick run measures a small slice, anew."""
    limit = QUICK_LIMIT if quick else None
    sets = choice.sets or (QUICK_SETS if quick else DATASETS)
    names = choice.methods or (QUICK_METHODS if quick else [method.name for method in METHODS])
    methods = [method for method in METHODS if method.name in names]
    seeds, sizes = ((0,), (10,)) if quick else (choice.seeds, choice.sizes)
    progress = Progress()
    units = plan(_pools(sets, limit, progress), methods, seeds, sizes, quick=quick)
    results = ResultFile(RESULTS / ("quick.json" if quick else "quality.json"))
    if quick:
        results.path.unlink(missing_ok=True)
    return Run(
        units=tuple(units),
        grids={method.name: method.grid for method in methods},
        results=results,
        sizes=QUICK_SIZES if quick else Sizes(),
        limit=limit,
        until=time.monotonic() + 60 * choice.minutes,
        progress=progress,
    )


def run_units(run: Run) -> int:
    """Run every unit that no process has finished or claimed, in order. Returns how many failed."""
    failed = 0
    while time.monotonic() < run.until:
        taken = False
        waiting = False
        for unit in run.units:
            if time.monotonic() >= run.until:
                break
            rows = run.results.rows()
            known = resolved(unit, run.grids[unit.method], rows)
            if known is None:
                waiting = True
                continue
            if known in units_of(rows):
                continue
            with claimed(known.key, run.results.path.parent) as mine:
                # Another process may have finished it between the look and the claim.
                if mine and known not in units_of(run.results.rows()):
                    run.progress(_name(known))
                    row = run_apart(Work(known, run.sizes, run.limit))
                    run.results.add(row)
                    print(_line(row), flush=True)
                    taken, failed = True, failed + ("error" in row)
        if not taken and not waiting:
            break
        if not taken:
            time.sleep(WAIT_S)
    return failed


def run_and_exit(run: Run) -> None:
    """`run_units` as the job of a process: the exit status is 1 when a unit failed."""
    sys.exit(1 if run_units(run) else 0)


def planned_time(run: Run) -> str:
    """A table of the missing rows and the seconds that they will take, by data set and number of edits."""
    rows = run.results.rows()
    done = units_of(rows)
    groups: dict[tuple[str, str, int], list[float | None]] = defaultdict(list)
    for unit in run.units:
        known = resolved(unit, run.grids[unit.method], rows)
        if known is None or known not in done:
            groups[unit.kind, unit.dataset, unit.num_edits].append(expected_seconds(unit, rows))
    lines = ["| rows of | data set | edits | rows | seconds each | seconds |", "|---|---|---|---|---|---|"]
    total, unknown = 0.0, 0
    for (kind, dataset, size), times in groups.items():
        known_times = [value for value in times if value is not None]
        unknown += len(times) if not known_times else 0
        mean = sum(known_times) / len(known_times) if known_times else None
        # A method without a row yet counts with the mean of the others.
        expected = None if mean is None else mean * len(times)
        total += expected or 0.0
        shown = "unknown | unknown" if mean is None else f"{mean:.1f} | {expected:.0f}"
        lines.append(f"| {kind} | {dataset} | {size} | {len(times)} | {shown} |")
    num_rows = sum(len(times) for times in groups.values())
    lines.append(f"\n{num_rows} rows, {total / 3600:.1f} hours on one core; {unknown} rows have no time yet.")
    return "\n".join(lines)


def _pools(sets: Sequence[str], limit: int | None, progress: Progress) -> dict[str, tuple[str, int]]:
    """For each data set: the weights' sha256 and how many edits a measured job can draw from.

    Trains missing models. Works in a process of its own, because a process that has run tensor operations
    must not fork the ones that measure.
    """
    pools: dict[str, tuple[str, int]] = {}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        for name in sets:
            progress(f"{name}: preparing the model and its samples")
            pools[name] = apart.submit(_pool, name, limit).result()
    return pools


def _pool(name: str, limit: int | None) -> tuple[str, int]:
    hide_progress_bars()
    found = material(name, limit)
    return found.model_sha256[:SHA_DIGITS], len(measured_pool(found, max(SIZES)))


def hide_progress_bars() -> None:
    """Turn off the progress bars and warnings of transformers."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def num_missing(run: Run) -> int:
    """How many units of the run have no row yet."""
    rows = run.results.rows()
    done = units_of(rows)
    known = [resolved(unit, run.grids[unit.method], rows) for unit in run.units]
    return sum(unit is None or unit not in done for unit in known)


def _name(unit: Unit) -> str:
    many = "one edit at a time" if unit.num_edits == 1 else f"{unit.num_edits} edits"
    return f"{unit.dataset}: {unit.method}, {many}, seed {unit.seed}, setting {unit.setting:g} ({unit.kind})"


def _line(row: dict[str, object]) -> str:
    shown = ["kind", "dataset", "method", "setting", "num_edits", "seed", "edit_accuracy", "generalization"]
    shown += ["drawdown", "neighborhood", "cpu_seconds", "unit_seconds", "error"]
    return " ".join(f"{name}={_short(row[name])}" for name in shown if name in row and row[name] is not None)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
