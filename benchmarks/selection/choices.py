"""Measures how good the choice of a layer is: every layer gets the same full ridge edit and is scored.

The score of a layer is (edit accuracy + generalization) / 2 - drawdown, on held-out samples. Each selection
method ranks the layers without those samples. *regret@1* is the best layer's score minus the score of the
first choice. *hit@3* is whether the best layer is among the first three. Must not know what selection costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.baselines.weight_deltas import NetworkWithDeltas
from benchmarks.quality.jobs import DrawnJob
from benchmarks.quality.measures import figures, measure
from benchmarks.selection.gradient_sizes import gradient_sizes
from benchmarks.tracing import trace_layer
from salem.deltas.terms import LayerDelta
from salem.models.network import Network
from salem.records import EditBatch, Layer
from worker.selection.saliency import shortlist
from worker.selection.trials import trial_edits
from worker.training.loop import prepare_dataset
from worker.training.options import MARGIN
from worker.training.ridge import ridge_term

HIT_AT = 3
PAPER = "absolute sample"  # the mean |gradient| of each sample, averaged over samples


def choices(
    network: Network,
    job: DrawnJob,
    seed: int,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, Any]:
    """Score every layer by editing it, rank the layers by every selection method, and compare."""
    scores: dict[str, float] = {}
    for layer in network.layers:
        progress(f"editing {layer.path}")
        scores[layer.path] = exhaustive(network, job, layer)
    progress("ranking the layers by every selection method")
    ranked, seconds, saliency = rankings(network, job.batch(), seed)
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


def exhaustive(network: Network, job: DrawnJob, layer: Layer) -> float:
    """The held-out score of a full ridge edit at a layer."""
    batch, perplexity = job.batch(), job.material.perplexity
    prepared = prepare_dataset(network, batch.corrections, batch.pass_samples, layer)
    term, _ = ridge_term(network, prepared, MARGIN)
    edited = NetworkWithDeltas(network, (LayerDelta(layer.path, (term,)),))
    outcomes = measure(network, edited, job.corrections, job.held_out, perplexity=perplexity)
    found = figures(outcomes, perplexity=perplexity)
    success = [found[name] for name in ("edit_accuracy", "generalization") if found[name] is not None]
    return sum(map(float, success)) / len(success) - float(found["drawdown"] or 0)


def rankings(
    network: Network, batch: EditBatch, seed: int
) -> tuple[dict[str, list[str]], dict[str, float], dict[str, float]]:
    """By selection method: the layer paths in order of choice, and the seconds; and the paper's saliency."""
    ranked: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    saliency: dict[str, float] = {}
    layers = network.layers
    for size in ("absolute", "frobenius"):
        for over in ("sample", "mean"):
            began = time.monotonic()
            scores = gradient_sizes(network, batch.corrections, layers, size, over)
            way = f"{size} {over}"
            saliency = scores if way == PAPER else saliency
            ranked[way] = [layer.path for layer in shortlist(scores, layers, len(layers))]
            seconds[way] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    traced = trace_layer(network, batch.edit_samples, layers, torch.Generator().manual_seed(seed))
    ranked["tracing"] = sorted(traced, key=lambda path: -traced[path])
    seconds["tracing"] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    first = [layer for layer in layers if layer.path in ranked[PAPER][:HIT_AT]]
    decision = trial_edits(network, batch, first, MARGIN, torch.Generator().manual_seed(seed))
    ordered = sorted(decision.trials, key=lambda trial: (-trial.score, trial.divergence))
    ranked["trial edits"] = [trial.layer.path for trial in ordered]
    seconds["trial edits"] = round(time.monotonic() - began, 2)
    return ranked, seconds, saliency


def compared(scores: Mapping[str, float], order: Sequence[str]) -> dict[str, Any]:
    """regret@1 and hit@3 of a ranking, given the score of each layer."""
    best = max(scores, key=lambda path: scores[path])
    return {
        "first": order[0],
        "regret_at_1": round(scores[best] - scores[order[0]], 4),
        "hit_at_3": best in order[:HIT_AT],
    }
