"""Measure layer selection on the benchmark's data sets.

    python -m benchmarks.selection [--sets nli ...] [--edits 10] [--no-costs] [--no-regret]

Prints a line for each set and one JSON object at the end. A run of all sets is written to
benchmarks/results/selection.json, which the report reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.data import DATASETS, material
from benchmarks.quality.jobs import Sizes, draw_job
from benchmarks.quality.units import RESULTS
from benchmarks.selection.choices import choices
from benchmarks.selection.costs import BATCH, costs, summarized, within
from salem.models.loading import load
from salem.records import Hyperparameters

SIZES = Sizes(held_out=300, pass_samples=400)


def main() -> int:
    """Measure the chosen sets; returns the exit status: 1 when a cost misses its bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-costs", action="store_true")
    parser.add_argument("--no-regret", action="store_true")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    sets: dict[str, dict[str, Any]] = {}
    for name in options.sets:
        data = material(name)
        network = load(Path(data.folder), data.task, device="cpu")
        job = draw_job(data, options.edits, options.seed, SIZES)
        sets[name] = {} if options.no_costs else costs(network, job.pass_samples[:BATCH])
        if not options.no_regret:
            sets[name] |= choices(network, job, Hyperparameters(seed=options.seed))
        print(name, json.dumps(sets[name]), flush=True)
    summary = {} if options.no_costs else summarized(list(sets.values()))
    found = {**summary, "num_edits": options.edits, "seed": options.seed, "sets": sets}
    if set(options.sets) == set(DATASETS) and not (options.no_costs or options.no_regret):
        (RESULTS / "selection.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 0 if all(within(summary).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
