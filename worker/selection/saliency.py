"""Saliency: the size of every layer's gradient, from one forward and one backward pass per batch.

SaLEM's rule (section 3): take the mean absolute gradient per parameter, average it over the samples of the
edit dataset, and edit the layer with the highest value. The published texts do not say whether |.| is taken
per sample. Here it is, so that gradients of opposite samples do not cancel.

Must not know editors or deltas.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from salem.models.batching import Batch, encode
from salem.models.network import Network
from salem.records import Layer, LayerScore, Sample, SharedOptions
from worker.activations.gradients import TokenGradients, token_gradients

BATCH = 5  # samples per backward pass: few, so that memory stays close to that of inference


def drawn_samples(samples: Sequence[Sample], options: SharedOptions) -> Sequence[Sample]:
    """The samples that saliency is averaged over: all, or as many as the options allow, drawn at random."""
    if len(samples) <= options.saliency_samples:
        return samples
    return random.Random(options.seed).sample(samples, options.saliency_samples)


def layer_saliency(
    network: Network, samples: Sequence[Sample], layers: Sequence[Layer], batch_size: int = BATCH
) -> dict[str, float]:
    """The mean |gradient| per parameter, averaged over the samples, by layer path (SaLEM, section 3)."""
    totals = dict.fromkeys((layer.path for layer in layers), 0.0)
    for start in range(0, len(samples), batch_size):
        batch = encode(network, samples[start : start + batch_size])
        for path, values in batch_saliency(network, batch, layers).items():
            totals[path] += float(values.sum())
    return {path: total / len(samples) for path, total in totals.items()}


def batch_saliency(network: Network, batch: Batch, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The mean |gradient| per parameter for each sample of a batch, by layer path: [n] each."""
    found = token_gradients(network, batch, layers)
    return {path: mean_absolute_gradient(gradients) for path, gradients in found.items()}


def mean_absolute_gradient(gradients: TokenGradients) -> Tensor:
    """mean |vᵀu| over a layer's parameters, per sample -> [n]. Forms one sample's gradient at a time."""
    values = [(v.T @ u).abs().mean() for u, v in zip(gradients.u, gradients.v, strict=True)]
    return torch.stack(values)


def shortlist(scores: Mapping[str, float], layers: Sequence[Layer], length: int) -> tuple[Layer, ...]:
    """The most salient layers, best first; ties keep their order."""
    return tuple(sorted(layers, key=lambda layer: -scores[layer.path])[:length])


def score_records(scores: dict[str, float], layers: Sequence[Layer], chosen: str) -> tuple[LayerScore, ...]:
    """Each layer's score as a record, in the order of the layers."""
    return tuple(
        LayerScore(
            layer=layer.path,
            block=layer.block,
            matrix=layer.matrix,
            score=scores[layer.path],
            chosen=layer.path == chosen,
        )
        for layer in layers
    )


def choose_layer(scores: dict[str, float], layers: Sequence[Layer]) -> Layer:
    """The most salient layer; the first one wins a tie."""
    return max(layers, key=lambda layer: scores[layer.path])


def most_salient(scores: dict[str, float], candidates: Sequence[Layer]) -> tuple[Layer, str]:
    """The most salient candidate, and the reason for the choice in one sentence."""
    layer = choose_layer(scores, candidates)
    if len(candidates) == 1:
        return layer, f"{layer.path} is the only candidate."
    return layer, f"{layer.path} has the highest mean absolute gradient of {len(candidates)} candidates."
