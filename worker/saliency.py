"""Which layer: the saliency of every candidate, from one forward and one backward per batch.

SaLEM's rule (section 3): the mean absolute gradient per parameter, averaged over the samples of the edit
dataset; the highest wins. |.| is taken per sample here, so that gradients of opposite samples do not
cancel.

Does not know samples' texts, editors or deltas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from salem.encoding import encode
from salem.hosting import Network
from salem.records import Layer, LayerScore, Sample
from worker.gradients import TokenGradients, token_gradients


def layer_saliency(
    network: Network, samples: Sequence[Sample], layers: Sequence[Layer], batch_size: int = 10
) -> dict[str, float]:
    """Mean |gradient| per parameter of each layer, averaged over samples, by layer path."""
    totals = dict.fromkeys((layer.path for layer in layers), 0.0)
    for start in range(0, len(samples), batch_size):
        batch = encode(network, samples[start : start + batch_size])
        for path, gradients in token_gradients(network, batch, layers).items():
            totals[path] += float(mean_absolute_gradient(gradients).sum())
    return {path: total / len(samples) for path, total in totals.items()}


def mean_absolute_gradient(gradients: TokenGradients) -> Tensor:
    """mean |vᵀu| over a layer's parameters, per sample -> [n]. One sample's gradient exists at a time."""
    values = [(v.T @ u).abs().mean() for u, v in zip(gradients.u, gradients.v, strict=True)]
    return torch.stack(values)


def profile(scores: dict[str, float], layers: Sequence[Layer], chosen: str) -> tuple[LayerScore, ...]:
    """Every candidate's score as records, in the order of the layers."""
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
    """The most salient of these layers; the first of equals."""
    return max(layers, key=lambda layer: scores[layer.path])


def middle_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers between half and two thirds of the height of their stack, at least one per stack.

    Gradients grow towards the bottom of most networks, so the bare rule mostly names the lowest block, where
    states are still words and every training step is dearest; and an edit of the last block has nothing left
    above it (docs/log.md has the comparison).
    """
    heights = Counter(layer.stack for layer in layers)
    return tuple(layer for layer in layers if layer.block in _middle(heights[layer.stack]))


def _middle(height: int) -> range:
    return range(height // 2, max(ceil(2 * height / 3), height // 2 + 1))
