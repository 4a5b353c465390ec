"""Selection measured: what it costs, and how good its choices are against editing every layer.

    python -m benchmarks.selection [--sets nli ...] [--edits 10] [--reference 1500] [--no-costs] [--no-regret]

Every layer gets the same full ridge edit, scored on held-out samples: (edit accuracy + share of held-out
rewordings right) / 2 - drawdown. Each way to select ranks the layers without those samples; *regret@1* is the
best score minus that of its first choice, *hit@3* whether the best layer is among its first three. Prints a
line per set and, last, one JSON object. Any set of `benchmarks.shared_data.SETS` can be named.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.main_job import confident_errors
from benchmarks.selection_costs import BATCH, memory_ratios, time_ratios, tracing_over_selection
from benchmarks.shared_data import SETS, EditSet, edit_set
from benchmarks.tracing import trace_layer
from salem.answers import predict, same_answer
from salem.deltas import LayerDelta
from salem.encoding import encode
from salem.hosting import Network, load
from salem.records import EditBatch, Hyperparameters, Layer, Sample
from worker.edit_dataset import build_edit_batch
from worker.registration import answer_reference
from worker.rewording import reword_all
from worker.ridge import ridge_term
from worker.saliency import layer_saliency, shortlist
from worker.training import prepare_dataset
from worker.trials import trial_edits

NUM_PASS = 400
NUM_HELD_OUT = 300
HIT_AT = 3


def main() -> int:
    """Measure the chosen sets; returns the exit status: 1 when a cost misses its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=list(SETS))
    parser.add_argument("--edits", type=int, default=10)
    parser.add_argument("--reference", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-costs", action="store_true")
    parser.add_argument("--no-regret", action="store_true")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    sets: dict[str, dict[str, Any]] = {}
    for name in options.sets:
        data = edit_set(name, options.reference, options.seed)
        network = load(data.model, data.task, device="cpu")
        sets[name] = {} if options.no_costs else costs(network, data.reference[:BATCH])
        if not options.no_regret:
            sets[name] |= choices(network, data, options.edits, options.seed)
        print(name, json.dumps(sets[name]), flush=True)
    summary = {} if options.no_costs else summarised(list(sets.values()))
    print(json.dumps({**summary, "sets": sets}))
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


def summarised(sets: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The worst of all sets, of the pass that a job makes: mean |gradient|, ten samples at a time.

    Time and memory are those of the same pass; micro-batches, which trade one for the other, stand beside.
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


def choices(network: Network, data: EditSet, num_edits: int, seed: int) -> dict[str, Any]:
    """Score every layer by editing it, rank the layers in every way, and compare."""
    reference = answer_reference(network, data.reference, lambda share: None).reference
    edits = data.edits[:num_edits] or confident_errors(network, reference, num_edits)
    batch = build_edit_batch(
        edits, reference, None, max_pass_samples=NUM_PASS, max_held_out=NUM_HELD_OUT, seed=seed
    )
    hyper = Hyperparameters(seed=seed)
    # Rewordings of another seed than those that trial edits look at.
    asked = reword_all(batch.edit_samples, random.Random(seed + 1_000))
    scores = {layer.path: exhaustive(network, batch, layer, asked, hyper) for layer in network.layers}
    ranked, seconds = rankings(network, batch, hyper)
    found = {way: compared(scores, order) | {"seconds": seconds[way]} for way, order in ranked.items()}
    return {"scores": {path: round(score, 4) for path, score in scores.items()}, "selection": found}


def exhaustive(
    network: Network, batch: EditBatch, layer: Layer, asked: Sequence[Sample], hyper: Hyperparameters
) -> float:
    """The held-out score of a full ridge edit at a layer."""
    prepared = prepare_dataset(network, batch.corrections, batch.pass_samples, layer)
    term, _ = ridge_term(network, prepared, hyper)
    delta = [LayerDelta(layer.path, (term,))]

    def right(samples: Sequence[Sample], deltas: Sequence[LayerDelta]) -> float:
        answers = predict(network, samples, deltas)
        return sum(same_answer(a.output, s.target) for a, s in zip(answers, samples, strict=True)) / len(
            samples
        )

    kept = batch.held_out_pass_samples
    success = (right(batch.edit_samples, delta) + right(asked, delta)) / 2
    return success - (right(kept, []) - right(kept, delta))


def rankings(
    network: Network, batch: EditBatch, hyper: Hyperparameters
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Layers from first choice to last, by every way to select, and the seconds that each took."""
    ranked: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    layers = network.layers
    for measure in ("absolute", "frobenius"):
        for over in ("sample", "mean"):
            began = time.monotonic()
            scores = layer_saliency(network, batch.corrections, layers, measure=measure, over=over)
            way = f"{measure} {over}"
            ranked[way] = [layer.path for layer in shortlist(scores, layers, len(layers))]
            seconds[way] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    traced = trace_layer(network, batch.edit_samples, layers, torch.Generator().manual_seed(hyper.seed))
    ranked["tracing"] = sorted(traced, key=lambda path: -traced[path])
    seconds["tracing"] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    first = [layer for layer in layers if layer.path in ranked["absolute sample"][:HIT_AT]]
    decision = trial_edits(network, batch, first, hyper, torch.Generator().manual_seed(hyper.seed))
    ordered = sorted(decision.trials, key=lambda trial: (-trial.score, trial.divergence))
    ranked["trial edits"] = [trial.layer.path for trial in ordered]
    seconds["trial edits"] = round(time.monotonic() - began, 2)
    return ranked, seconds


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
