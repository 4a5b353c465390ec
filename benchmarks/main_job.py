"""Makes and measures ten edits on each real model, without HTTP or the queue.

    python -m benchmarks.main_job [--sets nli questions ...] [--recipe scoped] [--edits 10] [--seed 0]

Prints a line for each model, and a JSON list of all rows at the end. For generating models, edits contradict
what the model knows. For the classifier, they are its most confident errors. QUICK=1 uses a smaller reference
set.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.baselines.salem_recipes import SilentObserver
from benchmarks.command import Progress, exit_status, quick
from benchmarks.shared_data import SETS, edit_set, shared_folder
from salem.inference.predict import predict
from salem.models.loading import load
from salem.models.network import Network
from salem.records import Edit, ReferenceSample
from worker.dataset.split import build_edit_batch
from worker.evaluation.reference import answer_reference
from worker.pipeline.context import EditContext
from worker.pipeline.layer import choose_layer
from worker.pipeline.make import make_delta
from worker.pipeline.measure import measure as measure_edit
from worker.pipeline.predict import predict_edits
from worker.recipes.base import Recipe
from worker.recipes.catalog import DEFAULT, recipe_classes

NUM_REFERENCE, QUICK_REFERENCE = 3_000, 600  # labeled samples


def main() -> int:
    """Run the chosen sets; return the exit status, which is 1 if an edit accuracy is below 0.9."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=list(SETS))
    parser.add_argument("--recipe", choices=list(recipe_classes()), default=DEFAULT)
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shared_folder()
    chosen = recipe_classes()[options.recipe]
    recipe = chosen(chosen.Options(seed=options.seed))
    progress = Progress()
    rows = []
    for name in options.sets:
        progress(f"{name}: loading the model and answering the reference set")
        rows.append(measure(name, options.edits, recipe, QUICK_REFERENCE if quick() else NUM_REFERENCE))
        progress(f"{name}: {options.edits} edits took {rows[-1]['seconds']} s")
    print(json.dumps(rows))
    return 0 if all(row["edit_accuracy"] >= 0.9 for row in rows) else 1


def measure(name: str, num_edits: int, recipe: Recipe, num_reference: int) -> dict[str, Any]:
    """Edit one model and measure it; return its row."""
    data = edit_set(name, num_reference, recipe.options.seed)
    network = load(data.model, data.task, device="cpu")
    reference = answer_reference(network, data.reference, lambda share: None).reference
    edits = data.edits[:num_edits] or confident_errors(network, reference, num_edits)
    batch = build_edit_batch(
        edits,
        reference,
        None,
        max_pass_samples=recipe.options.max_pass_samples,
        max_held_out=recipe.options.max_held_out,
        seed=recipe.options.seed,
    )
    began = time.monotonic()
    edit = EditContext(recipe=recipe, network=network, batch=batch, observer=SilentObserver())
    measured = measure_edit(make_delta(choose_layer(predict_edits(edit))))
    seconds = time.monotonic() - began
    metrics = measured.metrics
    row = {
        "dataset": name,
        "num_edits": len(edits),
        "recipe": recipe.name,
        "seed": recipe.options.seed,
        "layer": measured.layer.path,
        "protocol": metrics.protocol,
        "edit_accuracy": metrics.edit_accuracy.value,
        "adapt_accuracy": metrics.adapt_accuracy and metrics.adapt_accuracy.value,
        "generalization": metrics.generalization and metrics.generalization.value,
        "drawdown": metrics.drawdown and metrics.drawdown.value,
        "drawdown_interval": metrics.drawdown and [metrics.drawdown.low, metrics.drawdown.high],
        "held_out": len(batch.held_out_pass_samples),
        "seconds": round(seconds, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def confident_errors(
    network: Network, reference: Sequence[ReferenceSample], num_edits: int
) -> tuple[Edit, ...]:
    """The classifier's most confident errors among the reference samples."""
    wrong = [item for item in reference if not item.correct]
    scores = [
        max((answer.scores or {}).values()) for answer in predict(network, [item.sample for item in wrong])
    ]
    ranked = sorted(range(len(wrong)), key=lambda place: -scores[place])
    return tuple(Edit(**wrong[place].sample.model_dump()) for place in ranked[:num_edits])


if __name__ == "__main__":
    sys.exit(exit_status(main))
