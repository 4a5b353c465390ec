"""Measures what choosing a layer costs: time over a forward and backward pass, memory over inference.

Times are medians of paired rounds on one encoded batch. Each round runs every kind of pass once, so a busy
machine slows all of them alike. Memory is counted: the weights, plus the most tensor bytes that the pass held
at one time, from the allocations that torch's profiler records. A process's resident set would also include
the interpreter, and depends on what the allocator returned.

Must not know how good a choice is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.selection.gradient_sizes import Measure, batch_sizes
from benchmarks.tracing import trace_batch
from salem.models.batching import Batch, encode, forward
from salem.models.network import Network
from salem.records import Sample
from worker.numerics.losses import nll_per_sample
from worker.selection import saliency
from worker.selection.saliency import batch_saliency

BATCH = 10
ROUNDS = 15


def costs(network: Network, samples: Sequence[Sample], rounds: int = ROUNDS) -> dict[str, Any]:
    """Time and memory of selection on one batch."""
    batch = encode(network, samples)
    return {
        "time_over_plain": {
            kind: round(ratio, 3) for kind, ratio in time_ratios(network, batch, rounds).items()
        },
        "tracing_over_selection": round(tracing_over_selection(network, batch), 1),
        "memory_over_inference": {
            kind: round(ratio, 3) for kind, ratio in memory_ratios(network, batch).items()
        },
    }


def summarized(sets: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The worst figures of all sets, for the pass that a job runs: mean |gradient|, a few samples at a time.

    Time and memory are those of the same pass. `costs` also measures the whole batch at once, which trades
    memory for time.
    """
    return {
        "cost_over_forward_backward": max(item["time_over_plain"]["absolute"] for item in sets),
        "causal_tracing_over_selection": min(item["tracing_over_selection"] for item in sets),
        "memory_over_inference": max(item["memory_over_inference"]["absolute"] for item in sets),
    }


def within(summary: Mapping[str, float]) -> dict[str, bool]:
    """Whether each bound holds, for the figures that were measured."""
    bounds = {
        "cost_over_forward_backward": lambda ratio: ratio <= 1.3,
        "causal_tracing_over_selection": lambda ratio: ratio >= 20,
        "memory_over_inference": lambda ratio: ratio <= 1.2,
    }
    return {key: bounds[key](value) for key, value in summary.items()}


def passes(network: Network, batch: Batch) -> dict[str, Callable[[], Any]]:
    """The kinds of pass to compare on one batch. A job takes `saliency.BATCH` samples at a time."""
    parts = [batch.rows(rows) for rows in torch.arange(len(batch)).split(saliency.BATCH)]

    def whole(measure: Measure) -> object:
        return batch_sizes(network, batch, network.layers, measure)

    def in_parts(measure: Measure) -> object:
        return [batch_sizes(network, part, network.layers, measure) for part in parts]

    return {
        "inference": lambda: inference(network, batch),
        "plain": lambda: plain_backward(network, batch),
        "absolute": lambda: in_parts("absolute"),
        "absolute_whole": lambda: whole("absolute"),
        "frobenius": lambda: in_parts("frobenius"),
        "frobenius_whole": lambda: whole("frobenius"),
    }


@torch.no_grad()
def inference(network: Network, batch: Batch) -> Tensor:
    """One forward pass -> logits at the answer positions [a, c]."""
    return forward(network, batch).logits


def plain_backward(network: Network, batch: Batch) -> Tensor:
    """One forward and backward pass with frozen weights -> the gradient of the embeddings [n, t, d]."""
    model = network.model
    body = model.get_encoder() if model.config.is_encoder_decoder else model
    embedded: list[Tensor] = []

    def ask(module: Any, args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = body.get_input_embeddings().register_forward_hook(ask)
    try:
        loss = nll_per_sample(forward(network, batch)).sum()
    finally:
        handle.remove()
    return torch.autograd.grad(loss, embedded[0])[0]


def time_ratios(network: Network, batch: Batch, rounds: int = ROUNDS) -> dict[str, float]:
    """By kind of pass: time over that of the plain forward and backward pass, as medians of paired rounds."""
    kinds = passes(network, batch)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds + 2):
        for kind, run in kinds.items():
            began = time.perf_counter()
            run()
            seconds[kind].append(time.perf_counter() - began)
    # The first two rounds are warm-up.
    pairs = {kind: list(zip(found[2:], seconds["plain"][2:], strict=True)) for kind, found in seconds.items()}
    return {kind: median(mine / plain for mine, plain in found) for kind, found in pairs.items()}


def tracing_over_selection(network: Network, batch: Batch, rounds: int = 3) -> float:
    """Seconds of causal tracing over those of saliency, for all layers on the same batch."""
    ratios = []
    for _ in range(rounds):
        began = time.perf_counter()
        batch_saliency(network, batch, network.layers)
        between = time.perf_counter()
        trace_batch(network, batch, network.layers, torch.Generator().manual_seed(0))
        ratios.append((time.perf_counter() - between) / (between - began))
    return median(ratios)


def memory_ratios(network: Network, batch: Batch) -> dict[str, float]:
    """By kind of pass: bytes of weights and peak tensors, over those of inference on the same batch."""
    storages = {weight.data_ptr(): weight.nbytes for weight in network.model.parameters()}
    weights = sum(storages.values())
    peaks = {kind: weights + peak_bytes(run) for kind, run in passes(network, batch).items()}
    return {kind: peak / peaks["inference"] for kind, peak in peaks.items()}


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most tensor bytes that `run` held at one time, without those that existed before (CPU only)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [item for item in recorded.profiler.kineto_results.events() if item.name() == "[memory]"]
    changes = [item.nbytes() for item in sorted(events, key=lambda item: item.start_ns())]
    return max(accumulate(changes, initial=0))
