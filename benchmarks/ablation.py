"""Measures what each part of the default recipe adds: the same job with one part left out or replaced.

    python -m benchmarks.ablation [--sets gpt-facts questions nli] [--edits 100] [--seeds 0] [--only NAME ...]

Each line of the table is a job of the quality benchmark with other hyperparameters or less training data.
Nothing is searched. A line's result replaces its earlier one in benchmarks/results/ablation.json. QUICK=1
runs a few lines with ten edits on one small data set and writes no file. Must not know how a part works.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.salem_recipes import SilentObserver, known_paraphrases
from benchmarks.baselines.weight_deltas import NetworkWithDeltas
from benchmarks.command import Progress, exit_status, quick
from benchmarks.entry_values import ClosedFormRecipe, EditorValuesRecipe
from benchmarks.quality.data import DATASETS, material
from benchmarks.quality.jobs import Sizes, draw_job
from benchmarks.quality.measures import figures, measure
from benchmarks.quality.results import RESULTS
from benchmarks.shared_data import shared_folder
from salem.errors import SalemError
from salem.models.loading import load
from salem.records import EditBatch
from worker.pipeline.context import EditContext
from worker.pipeline.layer import choose_layer
from worker.pipeline.make import make_delta
from worker.recipes.base import Recipe
from worker.recipes.mend import MendRecipe
from worker.recipes.paper import PaperRecipe
from worker.recipes.ridge import RidgeRecipe
from worker.recipes.scoped.recipe import ScopedRecipe

SETS = ("gpt-facts", "questions", "nli")
IDENTITY = ("line", "dataset", "num_edits", "seed")  # fields that identify a row
QUICK_LINES = ("the default recipe", "no lexical check", "mend", "ridge")
FULL = Sizes()
QUICK_SIZES, QUICK_LIMIT = Sizes(held_out=100, pass_samples=200), 600
FIGURES = ("edit_accuracy", "generalization", "drawdown", "neighborhood")


def _unchanged(batch: EditBatch) -> EditBatch:
    return batch


def _few_pass_samples(batch: EditBatch) -> EditBatch:
    return batch.model_copy(update={"pass_samples": batch.pass_samples[:200]})


def _no_paraphrases_of_others(batch: EditBatch) -> EditBatch:
    return batch.model_copy(update={"equivalents": ()})


@dataclass(frozen=True)
class Line:
    """One line of the table: options, a recipe, and what to leave out of the training data."""

    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: type[Recipe] = ScopedRecipe
    reduce: Callable[[EditBatch], EditBatch] = _unchanged


LINES: dict[str, Line] = {
    "the default recipe": Line(),
    "no first-token check": Line({"first_token_weight": 0.0}),
    "no lexical check": Line({"lexical_weight": 0.0}),
    "no paraphrases of other edits": Line(reduce=_no_paraphrases_of_others),
    "200 pass samples instead of 2,000": Line(reduce=_few_pass_samples),
    "no augmentations train the values": Line({"augmentations": 0}),
    "no anchor samples train the values": Line({"anchor_samples": 0}),
    "plain likelihood instead of a margin": Line({"margin": 0.0}),
    "corrections that hold stay in training (not extent-aware)": Line({"rest_when_held": False}),
    "a divergence penalty on pass samples": Line({"kl_weight": 0.1}),
    "values in closed form, along one gradient": Line(recipe=ClosedFormRecipe),
    "values from a MEND editor's updates": Line(recipe=EditorValuesRecipe),
    "a rank-4 term beside every value": Line({"entry_rank": 4}),
    "trial edits at the three most salient layers": Line({"trial_edits": 3}),
    "the middle blocks of a classifier": Line({"candidates": "middle"}),
    "every block may be chosen": Line({"candidates": "all", "trial_edits": 3}),
    "mend": Line(recipe=MendRecipe),
    "mend, corrections that hold stay in training": Line({"rest_when_held": False}, MendRecipe),
    "mend without the null space": Line({"null_space_rank": 0}, MendRecipe),
    "ridge": Line(recipe=RidgeRecipe),
    "paper": Line(recipe=PaperRecipe),
}


def main() -> int:
    """Measure each line in a process of its own; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets", nargs="+", choices=DATASETS, default=["gpt-facts"] if quick() else list(SETS)
    )
    parser.add_argument("--edits", type=int, default=10 if quick() else 100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", nargs="+", choices=list(LINES), default=QUICK_LINES if quick() else list(LINES)
    )
    options = parser.parse_args()
    shared_folder()
    progress = Progress()
    for seed in options.seeds:
        for dataset in options.sets:
            for name in options.only:
                progress(f"{dataset}, seed {seed}: {name}")
                sizes = QUICK_SIZES if quick() else FULL
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    row = pool.apply(ablated, (name, dataset, options.edits, seed, sizes))
                print(json.dumps(row), flush=True)
                if not quick():
                    put(row, RESULTS / "ablation.json")
    progress("done")
    return 0


def put(row: Mapping[str, Any], path: Path) -> None:
    """Write a row to the file. It replaces an earlier row with the same identity."""
    rows: list[Mapping[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    same = [all(row[name] == other[name] for name in IDENTITY) for other in rows]
    kept = [other for other, is_same in zip(rows, same, strict=True) if not is_same]
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps([*kept, row], indent=1) + "\n")
    unfinished.rename(path)


def ablated(name: str, dataset: str, num_edits: int, seed: int, sizes: Sizes = FULL) -> dict[str, Any]:
    """The figures of one line on one data set."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    line, data = LINES[name], material(dataset, QUICK_LIMIT if quick() else None)
    network = load(Path(data.folder), data.task, device="cpu")
    job = draw_job(data, num_edits, seed, sizes)
    batch = line.reduce(job.batch().model_copy(update={"equivalents": known_paraphrases(job.corpus)}))
    row = {"line": name, "dataset": dataset, "num_edits": num_edits, "seed": seed}
    began = time.process_time()
    try:
        recipe = line.recipe(line.recipe.Options.model_validate({"seed": seed, **line.options}))
        edit = EditContext(recipe=recipe, network=network, batch=batch, observer=SilentObserver())
        made = make_delta(choose_layer(edit))
    except SalemError as error:
        return {**row, "error": error.message}
    seconds = time.process_time() - began
    edited = NetworkWithDeltas(network, (made.delta,))
    outcomes = measure(network, edited, job.corrections, job.held_out, perplexity=data.perplexity)
    found = figures(outcomes, perplexity=data.perplexity)
    return {
        **row,
        **{name: None if found[name] is None else round(float(found[name] or 0), 4) for name in FIGURES},
        "layer": made.layer.path,
        "cpu_seconds": round(seconds, 1),
        "delta_bytes": edited.delta_bytes,
    }


def ablation_report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The ablation page: a table for each data set, with means over seeds."""
    seeds = sorted({row["seed"] for row in rows})
    parts = [
        "# What each part adds",
        f"`make bench-ablation`: {rows[0]['num_edits']} edits, seeds {', '.join(map(str, seeds))}; one part "
        "left out or replaced at a time, no search.",
    ]
    for dataset in sorted({row["dataset"] for row in rows}, key=DATASETS.index):
        of_set = [row for row in rows if row["dataset"] == dataset]
        table = [
            f"| {dataset} | edit accuracy | generalization | drawdown | neighborhood | CPU s | delta kB |",
            "|---|---|---|---|---|---|---|",
        ]
        table += [_table_row(name, [r for r in of_set if r["line"] == name]) for name in LINES]
        parts.append("\n".join(table))
    return "\n\n".join(parts)


def _table_row(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    done = [row for row in rows if "error" not in row]
    if not done:
        return f"| {name} | {rows[0]['error'] if rows else 'not run'} | | | | | |"
    cells = []
    for figure in FIGURES:
        values = [row[figure] for row in done if row[figure] is not None]
        cells.append(f"{sum(values) / len(values):.3f}" if values else "")
    cpu = sum(row["cpu_seconds"] for row in done) / len(done)
    size = sum(row["delta_bytes"] for row in done) / len(done) / 1000
    return f"| {name} | {' | '.join(cells)} | {cpu:.0f} | {size:.0f} |"


if __name__ == "__main__":
    sys.exit(exit_status(main))
