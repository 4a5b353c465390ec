"""Run the chat benchmark: edits of SmolLM2-135M-Instruct, asked freely in the chat template.

    python -m benchmarks.chat_quality [--methods salem retrieval ...] [--edits 10 100] [--draws 10]
                                      [--per-edit 1] [--label before] [--report] [--forget salem]

You can stop a run and start it again: a finished unit is never measured twice. QUICK=1 measures one job of
ten edits anew. The last line is JSON: the worst case of each figure over the numbers of edits, of the first
method.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from app.cli.client import ServiceError
from benchmarks.chat_quality.chat import user
from benchmarks.chat_quality.facts import edit_pool
from benchmarks.chat_quality.figures import figures, rows_of
from benchmarks.chat_quality.methods import METHODS, OURS
from benchmarks.chat_quality.model import chat_model
from benchmarks.chat_quality.report import page
from benchmarks.chat_quality.small_reference import fired_of_others
from benchmarks.chat_quality.unit_run import Ground, measured
from benchmarks.chat_quality.units import DATASET, POOL, REFERENCE_SIZES, Plan, Row, Unit
from benchmarks.command import Progress, exit_status, quick
from benchmarks.quality.results import RESULTS, ResultFile
from benchmarks.quality.runs import hide_progress_bars
from benchmarks.shared_data import shared_folder
from salem.errors import SalemError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "chat.md"
SIZES = (10, 100, 1)
QUICK_PER_EDIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the figures; returns 1 when a unit failed."""
    options = _options(argv)
    results = ResultFile(RESULTS / ("chat_quick.json" if quick() else "chat_quality.json"))
    if options.report:
        text = page(results.rows())
        if not quick():
            PAGE.write_text(text)
        print(text)
        return 0
    shared_folder()
    hide_progress_bars()
    if options.forget:
        results.forget(options.forget, [DATASET], range(POOL + 1))
    if quick():
        results.path.unlink(missing_ok=True)
    plan = Plan(
        options.methods,
        options.label,
        options.edits,
        options.draws,
        options.per_edit,
        chain=not options.no_chain,
        small_reference=not options.no_small_reference,
    )
    failed = run(plan, results)
    print(page(results.rows()))
    print(json.dumps(figures(rows_of(results.rows(), plan.methods[0], plan.label))))
    return 1 if failed else 0


def run(plan: Plan, results: ResultFile) -> int:
    """Measure the missing units, method by method. Returns how many failed."""
    progress = Progress()
    missing = [unit for unit in plan.units() if not unit.is_measured(results.rows())]
    failed = 0
    asked = [unit for unit in missing if unit.kind != "small_reference"]
    if asked:
        progress("preparing the model and the facts")
        model = chat_model()
        pool = edit_pool(POOL, lambda texts: model.base_answers([user(text) for text in texts]))
        ground = Ground(model, pool, progress)
        for name in dict.fromkeys(unit.method for unit in asked):
            progress(f"{name}: getting ready")
            with METHODS[name](model) as method:
                for unit in (unit for unit in asked if unit.method == name):
                    try:
                        results.add(measured(unit, method, ground))
                    except (SalemError, ServiceError) as error:
                        failed += 1
                        progress(f"{name} failed: {error.message}")
    for unit in missing:
        if unit.kind == "small_reference":
            results.add(_small_reference(unit, progress))
    return failed


def _small_reference(unit: Unit, progress: Progress) -> Row:
    fired = fired_of_others(REFERENCE_SIZES, progress)
    return {**unit.fields, "fired": {str(size): number for size, number in fired.items()}}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    short = quick()
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=[OURS])
    parser.add_argument("--edits", nargs="+", type=int, choices=SIZES, default=[10] if short else [10, 100])
    parser.add_argument(
        "--draws", type=int, default=1 if short else 10, help="jobs with fewer than 100 edits"
    )
    parser.add_argument(
        "--per-edit",
        type=int,
        default=QUICK_PER_EDIT if short else 1,
        help="questions of a kind about each edit, with fewer than 100 edits",
    )
    parser.add_argument("--label", default="", help="tells apart measurements of one method in the report")
    parser.add_argument("--no-chain", action="store_true", default=short)
    parser.add_argument("--no-small-reference", action="store_true", default=short)
    parser.add_argument("--forget", nargs="+", choices=list(METHODS), help="first drop these methods' rows")
    parser.add_argument("--report", action="store_true", help="only write and print the tables")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_status(main))
