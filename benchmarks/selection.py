"""Selection measured: what it costs, and how good its choices are against editing every layer.

    python -m benchmarks.selection [--sets nli ...] [--edits 10] [--no-costs] [--no-regret]

Every layer gets the same full ridge edit, scored on held-out samples: (edit accuracy + generalization) / 2 -
drawdown. Each way to select ranks the layers without those samples; *regret@1* is the best score minus that
of its first choice, *hit@3* whether the best layer is among its first three. Prints a line per set and, last,
one JSON object; a run of all sets is written to benchmarks/results/selection.json, which the report reads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.added import Added
from benchmarks.measures import figures, measure
from benchmarks.quality_data import DATASETS, material
from benchmarks.quality_jobs import DrawnJob, Sizes, draw_job
from benchmarks.quality_units import RESULTS
from benchmarks.selection_costs import BATCH, memory_ratios, time_ratios, tracing_over_selection
from benchmarks.tracing import trace_layer
from salem.deltas.terms import LayerDelta
from salem.models.batching import encode
from salem.models.loading import Network, load
from salem.records import EditBatch, Hyperparameters, Layer, Sample
from worker.selection.saliency import layer_saliency, shortlist
from worker.selection.trials import trial_edits
from worker.training.loop import prepare_dataset
from worker.training.ridge import ridge_term

SIZES = Sizes(held_out=300, pass_samples=400)
HIT_AT = 3
PAPER = "absolute sample"  # mean |gradient| of each sample, then over samples


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


def costs(network: Network, samples: Sequence[Sample]) -> dict[str, Any]:
    """Time and memory of selection on one batch."""
    batch = encode(network, samples)
    return {
        "time_over_plain": {kind: round(ratio, 3) for kind, ratio in time_ratios(network, batch).items()},
        "tracing_over_selection": round(tracing_over_selection(network, batch), 1),
        "memory_over_inference": {
            kind: round(ratio, 3) for kind, ratio in memory_ratios(network, batch).items()
        },
    }


def summarized(sets: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The worst of all sets, of the pass that a job makes: mean |gradient|, a few samples at a time.

    Time and memory are those of the same pass; the whole batch at once, which trades one for the other,
    stands beside.
    """
    return {
        "cost_over_forward_backward": max(item["time_over_plain"]["absolute"] for item in sets),
        "causal_tracing_over_selection": min(item["tracing_over_selection"] for item in sets),
        "memory_over_inference": max(item["memory_over_inference"]["absolute"] for item in sets),
    }


def within(summary: Mapping[str, float]) -> dict[str, bool]:
    """Which of the claimed bounds hold; none where nothing was measured."""
    bounds = {
        "cost_over_forward_backward": lambda ratio: ratio <= 1.3,
        "causal_tracing_over_selection": lambda ratio: ratio >= 20,
        "memory_over_inference": lambda ratio: ratio <= 1.2,
    }
    return {key: bounds[key](value) for key, value in summary.items()}


def choices(network: Network, job: DrawnJob, hyper: Hyperparameters) -> dict[str, Any]:
    """Score every layer by editing it, rank the layers in every way, and compare."""
    scores = {layer.path: exhaustive(network, job, layer, hyper) for layer in network.layers}
    ranked, seconds, saliency = rankings(network, job.batch(), hyper)
    found = {way: compared(scores, order) | {"seconds": seconds[way]} for way, order in ranked.items()}
    return {
        "layers": [
            {
                "path": layer.path,
                "block": layer.block,
                "score": round(scores[layer.path], 4),
                "saliency": saliency[layer.path],
            }
            for layer in network.layers
        ],
        "selection": found,
    }


def exhaustive(network: Network, job: DrawnJob, layer: Layer, hyper: Hyperparameters) -> float:
    """The held-out score of a full ridge edit at a layer."""
    batch, perplexity = job.batch(), job.material.perplexity
    prepared = prepare_dataset(network, batch.corrections, batch.pass_samples, layer)
    term, _ = ridge_term(network, prepared, hyper)
    edited = Added(network, (LayerDelta(layer.path, (term,)),))
    outcomes = measure(network, edited, job.corrections, job.held_out, perplexity=perplexity)
    found = figures(outcomes, perplexity=perplexity)
    success = [found[name] for name in ("edit_accuracy", "generalization") if found[name] is not None]
    return sum(map(float, success)) / len(success) - float(found["drawdown"] or 0)


def rankings(
    network: Network, batch: EditBatch, hyper: Hyperparameters
) -> tuple[dict[str, list[str]], dict[str, float], dict[str, float]]:
    """Layers from first choice to last and the seconds that it took, by way; and the paper's saliency."""
    ranked: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    saliency: dict[str, float] = {}
    layers = network.layers
    for size in ("absolute", "frobenius"):
        for over in ("sample", "mean"):
            began = time.monotonic()
            scores = layer_saliency(network, batch.corrections, layers, measure=size, over=over)
            way = f"{size} {over}"
            saliency = scores if way == PAPER else saliency
            ranked[way] = [layer.path for layer in shortlist(scores, layers, len(layers))]
            seconds[way] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    traced = trace_layer(network, batch.edit_samples, layers, torch.Generator().manual_seed(hyper.seed))
    ranked["tracing"] = sorted(traced, key=lambda path: -traced[path])
    seconds["tracing"] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    first = [layer for layer in layers if layer.path in ranked[PAPER][:HIT_AT]]
    decision = trial_edits(network, batch, first, hyper, torch.Generator().manual_seed(hyper.seed))
    ordered = sorted(decision.trials, key=lambda trial: (-trial.score, trial.divergence))
    ranked["trial edits"] = [trial.layer.path for trial in ordered]
    seconds["trial edits"] = round(time.monotonic() - began, 2)
    return ranked, seconds, saliency


def compared(scores: Mapping[str, float], order: Sequence[str]) -> dict[str, Any]:
    """regret@1 and hit@3 of an order of layers against the scores of editing each."""
    best = max(scores, key=lambda path: scores[path])
    return {
        "first": order[0],
        "regret_at_1": round(scores[best] - scores[order[0]], 4),
        "hit_at_3": best in order[:HIT_AT],
    }


if __name__ == "__main__":
    sys.exit(main())
