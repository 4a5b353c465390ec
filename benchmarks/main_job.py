"""The main job on real models: ten edits each, from samples to a measured delta, without HTTP and queue.

    python -m benchmarks.main_job [--sets nli questions ...] [--recipe scoped] [--edits 10] [--seed 0]

Prints a line per model and, last, one JSON list of all rows. Edits of a generating model contradict what it
knows; those of the classifier are samples that it really fails, the most confident errors first.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.shared_data import SETS, edit_set
from salem.inference.predict import predict
from salem.models.loading import Network, load
from salem.records import Edit, Hyperparameters, LayerScore, Recipe, ReferenceSample
from worker.dataset.split import build_edit_batch
from worker.evaluation.reference import answer_reference
from worker.pipeline.steps import make_edit

NUM_REFERENCE = 3_000


class Quiet:
    """An observer that only listens."""

    def phase(self, name: str, progress: float) -> None:
        """A phase began."""

    def saliency(self, scores: Sequence[LayerScore]) -> None:
        """Every layer's score is known."""

    def figures(self, progress: float, figures: dict[str, float]) -> None:
        """Training was looked at."""


def main() -> int:
    """Run the chosen sets; returns the exit status: 1 when an edit accuracy is below 0.9."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=list(SETS))
    parser.add_argument("--recipe", choices=[recipe.value for recipe in Recipe], default=Recipe.SCOPED.value)
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    hyper = Hyperparameters(recipe=Recipe(options.recipe), seed=options.seed)
    rows = [measure(name, options.edits, hyper) for name in options.sets]
    print(json.dumps(rows))
    return 0 if all(row["edit_accuracy"] >= 0.9 for row in rows) else 1


def measure(name: str, num_edits: int, hyper: Hyperparameters) -> dict[str, Any]:
    """Edit one model and return its row."""
    data = edit_set(name, NUM_REFERENCE, hyper.seed)
    network = load(data.model, data.task, device="cpu")
    reference = answer_reference(network, data.reference, lambda share: None).reference
    edits = data.edits[:num_edits] or confident_errors(network, reference, num_edits)
    batch = build_edit_batch(
        edits,
        reference,
        None,
        max_pass_samples=hyper.max_pass_samples,
        max_held_out=hyper.max_held_out,
        seed=hyper.seed,
    )
    began = time.monotonic()
    measured = make_edit(network, [], batch, hyper, Quiet())
    seconds = time.monotonic() - began
    metrics = measured.metrics
    row = {
        "dataset": name,
        "num_edits": len(edits),
        "recipe": hyper.recipe.value,
        "seed": hyper.seed,
        "layer": measured.made.layer.path,
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
    """The reference samples that a classifier fails with the highest score for its wrong answer."""
    wrong = [item for item in reference if not item.correct]
    scores = [
        max((answer.scores or {}).values()) for answer in predict(network, [item.sample for item in wrong])
    ]
    ranked = sorted(range(len(wrong)), key=lambda place: -scores[place])
    return tuple(Edit(**wrong[place].sample.model_dump()) for place in ranked[:num_edits])


if __name__ == "__main__":
    sys.exit(main())
