"""Run or plan the quality benchmark.

    python -m benchmarks.quality [--sets nli ...] [--methods salem ...] [--seeds 0 1 2] [--edits 10 100 1]
                                 [--minutes 60] [--processes 2] [--plan] [--forget salem ...]

You can stop a run and start it again: a finished row is never made twice. Any number of these processes may
run at once. With QUICK=1 in the environment, it measures a small slice, without a search, into a file of
its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence

from benchmarks.command import exit_status, quick
from benchmarks.quality.data import DATASETS
from benchmarks.quality.methods import METHODS
from benchmarks.quality.runs import (
    Choice,
    hide_progress_bars,
    num_missing,
    planned_time,
    prepared,
    run_and_exit,
    run_units,
)
from benchmarks.quality.units import FRESH_SEEDS, SIZES
from benchmarks.shared_data import shared_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run or plan; returns the exit status: 1 when a unit of this run failed."""
    options = _options(argv)
    shared_folder()
    hide_progress_bars()
    choice = Choice(
        sets=tuple(options.sets or ()),
        methods=tuple(options.methods or ()),
        seeds=tuple(options.seeds),
        sizes=tuple(options.edits),
        minutes=options.minutes,
    )
    work = prepared(choice, quick=quick())
    if options.forget:
        gone = work.results.forget(options.forget, options.sets or DATASETS, options.edits)
        print(f"{gone} rows are forgotten.")
    if options.plan:
        print(planned_time(work))
        return 0
    others = [
        multiprocessing.get_context("fork").Process(target=run_and_exit, args=(work,))
        for _ in range(options.processes - 1)
    ]
    for process in others:
        process.start()
    failed = run_units(work)
    for process in others:
        process.join()
    print(f"{num_missing(work)} of {len(work.units)} units are still to be done.")
    return 1 if failed or any(process.exitcode for process in others) else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [method.name for method in METHODS]
    parser.add_argument("--sets", nargs="+", choices=DATASETS)
    parser.add_argument("--methods", nargs="+", choices=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, *FRESH_SEEDS])
    parser.add_argument("--edits", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no unit after this time")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="print rows and expected seconds, run nothing")
    parser.add_argument(
        "--forget", nargs="+", choices=names, help="first drop these methods' rows, of --sets and --edits"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_status(main))
