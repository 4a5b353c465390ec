"""Saliency: the size of every layer's gradient, from one forward and one backward pass per batch.

SaLEM's rule (section 3): take the mean absolute gradient per parameter, average it over the samples of the
edit dataset, and edit the layer with the highest value. The published texts do not say whether |.| is taken
per sample or what is measured, so both are options. By default |.| is taken per sample, so that gradients of
opposite samples do not cancel.

Must not know editors or deltas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from salem.models.batching import Batch, encode
from salem.models.network import Network
from salem.records import Layer, LayerScore, Sample
from worker.activations.gradients import TokenGradients, token_gradients

Measure = Literal["absolute", "frobenius"]
Over = Literal["sample", "mean"]
BATCH = 5  # samples per backward pass: few, so that memory stays close to that of inference


def layer_saliency(
    network: Network,
    samples: Sequence[Sample],
    layers: Sequence[Layer],
    batch_size: int = BATCH,
    *,
    measure: Measure = "absolute",
    over: Over = "sample",
) -> dict[str, float]:
    """The size of each layer's gradient, by layer path (SaLEM, section 3).

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
        for path, values in batch_saliency(network, batch, layers, measure).items():
            totals[path] += float(values.sum())
    return {path: total / len(samples) for path, total in totals.items()}


def batch_saliency(
    network: Network, batch: Batch, layers: Sequence[Layer], measure: Measure = "absolute"
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


def mean_absolute_gradient(gradients: TokenGradients) -> Tensor:
    """mean |vᵀu| over a layer's parameters, per sample -> [n]. Forms one sample's gradient at a time."""
    values = [(v.T @ u).abs().mean() for u, v in zip(gradients.u, gradients.v, strict=True)]
    return torch.stack(values)


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
