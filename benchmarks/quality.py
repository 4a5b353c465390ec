"""The quality benchmark: every method on the same base weights, samples and held-out sets, row by row.

    python -m benchmarks.quality [--sets nli ...] [--methods salem ...] [--seeds 0 1 2] [--edits 10 100 1]
                                 [--minutes 60] [--processes 2] [--plan] [--forget salem ...]

Resumable: a finished row is never made again, and any number of these processes may run at once. QUICK=1 in
the environment measures a slice, without search, into a file of its own. Does not know what a method does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from transformers.utils import logging

from benchmarks.methods import METHODS, Method
from benchmarks.quality_data import DATASETS, material
from benchmarks.quality_jobs import Sizes, measured_pool
from benchmarks.quality_unit_run import Work, run_apart
from benchmarks.quality_units import (
    FRESH_SEEDS,
    RESULTS,
    SIZES,
    ResultFile,
    Unit,
    claimed,
    expected_seconds,
    plan,
    resolved,
)
from benchmarks.shared_data import shared_folder
from salem.errors import SalemError

QUICK_SETS = ("nli", "questions", "gpt-facts")  # one for each task
QUICK_LIMIT = 1_200  # reference samples that are looked at
QUICK_SIZES = Sizes(held_out=200, validation_held_out=100, pass_samples=400)
WAIT_S = 5.0  # while others search what the remaining units wait for


@dataclass(frozen=True)
class Course:
    """What a run of the benchmark is to do."""

    units: tuple[Unit, ...]
    grids: dict[str, tuple[float, ...]]  # of each method
    results: ResultFile
    sizes: Sizes
    limit: int | None
    until: float  # on the monotonic clock: no unit is taken after that


def main(argv: Sequence[str] | None = None) -> int:
    """Run or plan; returns the exit status: 1 when a unit of this run failed."""
    options = _options(argv)
    _keep_quiet()
    try:
        shared_folder()
    except SalemError as error:
        print(error.message, error.remedy or "", file=sys.stderr)
        return 1
    course = _course(options)
    if options.forget:
        gone = course.results.forget(options.forget, options.sets or DATASETS, options.edits)
        print(f"{gone} rows are forgotten.")
    if options.plan:
        print(planned_time(course))
        return 0
    others = [
        multiprocessing.get_context("fork").Process(target=_work_off_apart, args=(course,))
        for _ in range(options.processes - 1)
    ]
    for process in others:
        process.start()
    failed = work_off(course)
    for process in others:
        process.join()
    print(f"{_num_missing(course)} of {len(course.units)} units are still to be done.")
    return 1 if failed or any(process.exitcode for process in others) else 0


def work_off(course: Course) -> int:
    """Take units, in order, that nobody has done or taken, until none is left; gives how many failed."""
    failed = 0
    while time.monotonic() < course.until:
        taken = False
        waiting = False
        for unit in course.units:
            if time.monotonic() >= course.until:
                break
            rows = course.results.rows()
            known = resolved(unit, course.grids[unit.method], rows)
            if known is None:
                waiting = True
                continue
            if any(row["key"] == known.key for row in rows):
                continue
            with claimed(known.key, course.results.path.parent) as mine:
                # Another process may have finished it between the look and the claim.
                if mine and not any(row["key"] == known.key for row in course.results.rows()):
                    row = run_apart(Work(known, course.sizes, course.limit))
                    course.results.add(row)
                    print(_line(row), flush=True)
                    taken, failed = True, failed + ("error" in row)
        if not taken and not waiting:
            break
        if not taken:
            time.sleep(WAIT_S)
    return failed


def _work_off_apart(course: Course) -> None:
    sys.exit(1 if work_off(course) else 0)


def planned_time(course: Course) -> str:
    """Rows still to be made and the seconds they will take, by data set and number of edits."""
    rows = course.results.rows()
    done = {row["key"] for row in rows}
    groups: dict[tuple[str, str, int], list[float | None]] = defaultdict(list)
    for unit in course.units:
        known = resolved(unit, course.grids[unit.method], rows)
        if known is None or known.key not in done:
            groups[unit.kind, unit.dataset, unit.num_edits].append(expected_seconds(unit, rows))
    lines = ["| rows of | data set | edits | rows | seconds each | seconds |", "|---|---|---|---|---|---|"]
    total, unknown = 0.0, 0
    for (kind, dataset, size), times in groups.items():
        known_times = [value for value in times if value is not None]
        unknown += len(times) if not known_times else 0
        mean = sum(known_times) / len(known_times) if known_times else None
        # A method without a row yet is taken to need the mean of the others.
        expected = None if mean is None else mean * len(times)
        total += expected or 0.0
        shown = "unknown | unknown" if mean is None else f"{mean:.1f} | {expected:.0f}"
        lines.append(f"| {kind} | {dataset} | {size} | {len(times)} | {shown} |")
    num_rows = sum(len(times) for times in groups.values())
    lines.append(f"\n{num_rows} rows, {total / 3600:.1f} hours on one core; {unknown} rows have no time yet.")
    return "\n".join(lines)


def _course(options: argparse.Namespace) -> Course:
    quick = bool(os.environ.get("QUICK"))
    limit = QUICK_LIMIT if quick else None
    sets = options.sets or (QUICK_SETS if quick else DATASETS)
    methods: list[Method] = [m for m in METHODS if not options.methods or m.name in options.methods]
    seeds, sizes = ([0], [10]) if quick else (options.seeds, options.edits)
    units = plan(_pools(sets, limit), methods, seeds, sizes, quick=quick)
    return Course(
        units=tuple(units),
        grids={method.name: method.grid for method in methods},
        results=ResultFile(RESULTS / ("quick.json" if quick else "quality.json")),
        sizes=QUICK_SIZES if quick else Sizes(),
        limit=limit,
        until=time.monotonic() + 60 * options.minutes,
    )


def _pools(sets: Sequence[str], limit: int | None) -> dict[str, tuple[str, int]]:
    """Of each data set the weights' sha256 and how many edits may be measured; trains missing models.

    Done in a process of its own: a process that has run tensor operations must not fork those that measure.
    """
    pools: dict[str, tuple[str, int]] = {}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        for name in sets:
            began = time.monotonic()
            pools[name] = apart.submit(_pool, name, limit).result()
            print(
                f"{name}: {pools[name][1]} edits to draw from ({time.monotonic() - began:.0f} s)", flush=True
            )
    return pools


def _pool(name: str, limit: int | None) -> tuple[str, int]:
    _keep_quiet()
    found = material(name, limit)
    return found.model_sha256, len(measured_pool(found, max(SIZES)))


def _keep_quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _num_missing(course: Course) -> int:
    rows = course.results.rows()
    done = {row["key"] for row in rows}
    known = [resolved(unit, course.grids[unit.method], rows) for unit in course.units]
    return sum(unit is None or unit.key not in done for unit in known)


def _line(row: dict[str, object]) -> str:
    shown = ["kind", "dataset", "method", "setting", "num_edits", "seed", "edit_accuracy", "generalization"]
    shown += ["drawdown", "neighborhood", "seconds", "unit_seconds", "error"]
    return " ".join(f"{name}={_short(row[name])}" for name in shown if name in row and row[name] is not None)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [method.name for method in METHODS]
    parser.add_argument("--sets", nargs="+", choices=DATASETS)
    parser.add_argument("--methods", nargs="+", choices=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, *FRESH_SEEDS])
    parser.add_argument("--edits", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="take no unit after so many")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="print rows and expected seconds, run nothing")
    parser.add_argument(
        "--forget", nargs="+", choices=names, help="drop these methods' rows first, of --sets and --edits"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
