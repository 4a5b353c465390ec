"""Measures layer selection on the data sets of the quality benchmark.

    python -m benchmarks.selection [--sets nli ...] [--edits 10] [--no-costs] [--no-regret]

Prints a line for each set and one JSON object at the end. A complete run of all sets is saved to
benchmarks/results/selection.json, which the report reads. QUICK=1 measures two sets with few samples and
rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import Progress, exit_status, quick
from benchmarks.quality.data import DATASETS, material
from benchmarks.quality.jobs import Sizes, draw_job
from benchmarks.quality.results import RESULTS
from benchmarks.selection.choices import choices
from benchmarks.selection.costs import BATCH, ROUNDS, costs, summarized, within
from benchmarks.shared_data import shared_folder
from salem.models.loading import load

SIZES, QUICK_SIZES = Sizes(held_out=300, pass_samples=400), Sizes(held_out=60, pass_samples=100)
QUICK_SETS = ("nli", "gpt-facts")
QUICK_LIMIT = 600  # reference samples
QUICK_ROUNDS = 2


def main() -> int:
    """Measure the chosen sets; return the exit status, which is 1 if a cost misses its bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=DATASETS, default=None)
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-costs", action="store_true")
    parser.add_argument("--no-regret", action="store_true")
    options = parser.parse_args()
    shared_folder()
    torch.set_flush_denormal(True)
    names = options.sets or (QUICK_SETS if quick() else DATASETS)
    progress = Progress()
    sets: dict[str, dict[str, Any]] = {}
    for name in names:
        progress(f"{name}: preparing the model and its samples")
        data = material(name, QUICK_LIMIT if quick() else None)
        network = load(Path(data.folder), data.task, device="cpu")
        job = draw_job(data, options.edits, options.seed, QUICK_SIZES if quick() else SIZES)
        sets[name] = {}
        if not options.no_costs:
            progress(f"{name}: timing selection")
            rounds = QUICK_ROUNDS if quick() else ROUNDS
            sets[name] |= costs(network, job.pass_samples[:BATCH], rounds)
        if not options.no_regret:
            sets[name] |= choices(
                network, job, options.seed, lambda step, name=name: progress(f"{name}: {step}")
            )
        print(name, json.dumps(sets[name]), flush=True)
    summary = {} if options.no_costs else summarized(list(sets.values()))
    found = {**summary, "num_edits": options.edits, "seed": options.seed, "sets": sets}
    if set(names) == set(DATASETS) and not quick() and not (options.no_costs or options.no_regret):
        (RESULTS / "selection.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    # A quick run has too few rounds to check the bounds.
    return 0 if quick() or all(within(summary).values()) else 1


if __name__ == "__main__":
    sys.exit(exit_status(main))
