"""Which layer: the saliency of every candidate, from one forward and one backward per batch.

SaLEM's rule (section 3): the mean absolute gradient per parameter, averaged over the samples of the edit
dataset; the highest wins. |.| is taken per sample unless asked otherwise, so that gradients of opposite
samples do not cancel. The published texts leave open what is averaged first, what is measured, and whether a
layer is a block or a matrix: each is a choice here.

Does not know samples' texts, editors or deltas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, sqrt
from statistics import quantiles
from typing import Literal

import torch
from torch import Tensor

from salem.models.batching import Batch, encode
from salem.models.network import Network
from salem.models.trunk import sees_answer
from salem.records import Hyperparameters, Layer, LayerScore, Recipe, Sample
from worker.activations.gradients import TokenGradients, token_gradients

Measure = Literal["absolute", "frobenius"]
Over = Literal["sample", "mean"]
FENCE = 1.5  # interquartile ranges above the upper quartile (Tukey 1977, section 2D)
BATCH = 5  # samples whose activations a backward keeps at a time: few, so that memory stays near inference's
_FEWEST_TO_FENCE = 4  # quartiles of fewer scores say nothing


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
        measure: `absolute` is the mean |gradient| per parameter; `frobenius` the norm of the gradient, for
            which no gradient of a weight is formed.
        over: `sample` measures each sample's gradient and averages; `mean` measures their mean, in which
            opposite samples cancel.
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
    """The size of each layer's gradient, per sample of a batch: [n] each."""
    size = mean_absolute_gradient if measure == "absolute" else gradient_norm
    return {path: size(found) for path, found in token_gradients(network, batch, layers).items()}


def _of_mean(
    network: Network, batches: Iterable[Batch], layers: Sequence[Layer], measure: Measure, num_samples: int
) -> dict[str, float]:
    """The size of the mean gradient; the rows that carry one are kept until all samples were seen."""
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {layer.path: [] for layer in layers}
    for batch in batches:
        for path, found in token_gradients(network, batch, layers).items():
            rows[path].append(found.token_rows())
    size = _absolute_of_sum if measure == "absolute" else norm_of_sum
    return {path: size(parts) / num_samples for path, parts in rows.items()}


def mean_absolute_gradient(gradients: TokenGradients) -> Tensor:
    """mean |vᵀu| over a layer's parameters, per sample -> [n]. One sample's gradient exists at a time."""
    values = [(v.T @ u).abs().mean() for u, v in zip(gradients.u, gradients.v, strict=True)]
    return torch.stack(values)


def gradient_norm(gradients: TokenGradients) -> Tensor:
    """The Frobenius norm of vᵀu, per sample -> [n], from t x t products alone.

    ||sum_t v_t u_tᵀ||² = sum_tt' (v_t . v_t') (u_t . u_t'), a trace of two Gram matrices (Goodfellow 2015,
    "Efficient per-example gradient computations", for more than one token).
    """
    squares = (gradients.v @ gradients.v.mT) * (gradients.u @ gradients.u.mT)  # [n, t, t]
    return squares.sum((-2, -1)).clamp(min=0).sqrt()


def norm_of_sum(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The Frobenius norm of the gradient summed over parts (u [k, d_in], v [k, d_out]), by the same identity.

    Parts are compared pairwise, so no Gram matrix of all tokens exists at once.
    """
    square = 0.0
    for place, (u, v) in enumerate(parts):
        square += float(((v @ v.T) * (u @ u.T)).sum())
        square += 2 * sum(
            float(((v @ other_v.T) * (u @ other_u.T)).sum()) for other_u, other_v in parts[:place]
        )
    return sqrt(max(square, 0.0))


def _absolute_of_sum(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """mean |vᵀu| over a layer's parameters, of rows summed over parts; one layer's gradient at a time."""
    u, v = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return float((v.T @ u).abs().mean())


def block_saliency(
    scores: Mapping[str, float], layers: Sequence[Layer], measure: Measure = "absolute"
) -> dict[str, float]:
    """Scores of single matrices put together per block, by the block's path, e.g. `bert.encoder.layer.2`.

    Mean absolute gradients are averaged over all parameters of the block's matrices; the squares of norms
    add up (exactly so for one sample, or the mean gradient).
    """
    totals: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for layer in layers:
        block, size = f"{layer.stack}.{layer.block}", layer.d_in * layer.d_out
        term = scores[layer.path] * size if measure == "absolute" else scores[layer.path] ** 2
        totals[block] = totals.get(block, 0.0) + term
        counts[block] += size
    if measure == "absolute":
        return {block: total / counts[block] for block, total in totals.items()}
    return {block: sqrt(total) for block, total in totals.items()}


def fenced(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores without those above Tukey's upper fence: the third quartile + 1.5 interquartile ranges.

    One block with huge gradients (the lowest, or one beside a badly scaled normalization) says more about its
    scale than about the samples. At least three quarters of the scores stay; fewer than four all do.
    """
    if len(scores) < _FEWEST_TO_FENCE:
        return dict(scores)
    low, _, high = quantiles(scores.values(), n=4, method="inclusive")
    return {path: score for path, score in scores.items() if score <= high + FENCE * (high - low)}


def shortlist(scores: Mapping[str, float], layers: Sequence[Layer], length: int) -> tuple[Layer, ...]:
    """The most salient of these layers, the first of equals before the others."""
    return tuple(sorted(layers, key=lambda layer: -scores[layer.path])[:length])


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


def candidate_layers(network: Network, hyper: Hyperparameters) -> tuple[Layer, ...]:
    """The layers that a recipe chooses from when the client names none.

    Entries are made where an answer comes about. Of a model that generates that is a layer which sees the
    answer, as they write it token by token; of a classifier the last block, where one value decides what is
    answered, whatever was asked.
    """
    if hyper.recipe is Recipe.PAPER or hyper.candidates == "all":
        return network.layers
    middle = middle_layers(network.layers)
    if hyper.recipe is not Recipe.SCOPED:
        return middle
    if network.task.generates:
        return tuple(layer for layer in middle if sees_answer(network, layer))
    return middle if hyper.candidates == "middle" else last_layers(network.layers)


def most_salient(scores: dict[str, float], candidates: Sequence[Layer]) -> tuple[Layer, str]:
    """The most salient of some layers, and why it is this one, in a sentence."""
    layer = choose_layer(scores, candidates)
    if len(candidates) == 1:
        return layer, f"{layer.path} is the only candidate."
    return layer, f"{layer.path} has the highest mean absolute gradient of {len(candidates)} candidates."


def last_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers of the last block of the last stack."""
    return tuple(
        layer for layer in layers if (layer.stack, layer.block) == (layers[-1].stack, layers[-1].block)
    )


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
