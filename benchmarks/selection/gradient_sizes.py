"""Other ways to measure a layer's gradient than saliency's: by its norm, and of the mean over all samples.

Must not know how layers are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from salem.models.batching import Batch, encode
from salem.models.network import Network
from salem.records import Layer, Sample
from worker.activations.gradients import TokenGradients, token_gradients
from worker.selection.saliency import BATCH, mean_absolute_gradient

Measure = Literal["absolute", "frobenius"]
Over = Literal["sample", "mean"]


def gradient_sizes(
    network: Network,
    samples: Sequence[Sample],
    layers: Sequence[Layer],
    measure: Measure,
    over: Over,
    batch_size: int = BATCH,
) -> dict[str, float]:
    """The size of each layer's gradient, by layer path.

    Args:
        measure: `absolute` is the mean |gradient| per parameter; `frobenius` is the norm of the gradient,
            computed without forming a weight's gradient.
        over: `sample` measures each sample's gradient and averages; `mean` measures the mean gradient, in
            which opposite samples cancel.
    """
    batches = (encode(network, samples[i : i + batch_size]) for i in range(0, len(samples), batch_size))
    if over == "mean":
        return _of_mean(network, batches, layers, measure, len(samples))
    totals = dict.fromkeys((layer.path for layer in layers), 0.0)
    for batch in batches:
        for path, values in batch_sizes(network, batch, layers, measure).items():
            totals[path] += float(values.sum())
    return {path: total / len(samples) for path, total in totals.items()}


def batch_sizes(
    network: Network, batch: Batch, layers: Sequence[Layer], measure: Measure
) -> dict[str, Tensor]:
    """The size of each layer's gradient for each sample of a batch, by layer path: [n] each."""
    size = mean_absolute_gradient if measure == "absolute" else gradient_norm
    return {path: size(found) for path, found in token_gradients(network, batch, layers).items()}


def _of_mean(
    network: Network, batches: Iterable[Batch], layers: Sequence[Layer], measure: Measure, num_samples: int
) -> dict[str, float]:
    """The size of the mean gradient. Keeps the rows that carry a gradient until all samples are seen."""
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {layer.path: [] for layer in layers}
    for batch in batches:
        for path, found in token_gradients(network, batch, layers).items():
            rows[path].append(found.token_rows())
    size = _absolute_of_sum if measure == "absolute" else norm_of_sum
    return {path: size(parts) / num_samples for path, parts in rows.items()}


def gradient_norm(gradients: TokenGradients) -> Tensor:
    """The Frobenius norm of vᵀu, per sample -> [n], from t x t products alone.

    ||sum_t v_t u_tᵀ||² = sum_tt' (v_t . v_t') (u_t . u_t'), a trace of two Gram matrices (Goodfellow 2015,
    "Efficient per-example gradient computations", extended to several tokens).
    """
    squares = (gradients.v @ gradients.v.mT) * (gradients.u @ gradients.u.mT)  # [n, t, t]
    return squares.sum((-2, -1)).clamp(min=0).sqrt()


def norm_of_sum(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The Frobenius norm of the gradient summed over parts (u [k, d_in], v [k, d_out]), by the same identity.

    Compares the parts pairwise, so the Gram matrix of all tokens is never formed.
    """
    square = 0.0
    for index, (u, v) in enumerate(parts):
        square += float(((v @ v.T) * (u @ u.T)).sum())
        square += 2 * sum(
            float(((v @ other_v.T) * (u @ other_u.T)).sum()) for other_u, other_v in parts[:index]
        )
    return sqrt(max(square, 0.0))


def _absolute_of_sum(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """mean |vᵀu| over a layer's parameters, with the rows of all parts summed."""
    u, v = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return float((v.T @ u).abs().mean())
