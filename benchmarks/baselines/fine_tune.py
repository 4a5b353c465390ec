"""Fine-tuning of the whole model, of one layer, and of one layer with a divergence penalty on pass samples.

These are the standard baselines of editing papers (MEND, Mitchell et al. 2022, section 5: FT and FT+KL;
SaLEM, section 4). Adam minimizes the negative log-likelihood of the corrections and stops once they hold.
Must not know adapters or hypernetworks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.baselines.interface import Editing
from benchmarks.baselines.multi_layer_training import fit
from benchmarks.baselines.one_layer import (
    edited_layer,
    generator_of,
    likelihood,
    prepared_at,
    trained,
    weight_of,
    with_earlier_deltas,
)
from benchmarks.baselines.temporary_weights import NetworkWithWeights, trainable_copies
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, first_batch_only
from salem.deltas.terms import Dense
from salem.records import Layer

LAYER_RATE = 0.2  # learning rate of `fine_tune_kl`, whose setting is the weight of the divergence


class WeightLearner:
    """Trains the update of one layer [d_out, d_in] directly, starting at zero, in the product's loop."""

    shared = True

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.update = nn.Parameter(torch.zeros(layer.d_out, layer.d_in, device=device))

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self.update

    def term(self) -> Dense:
        return Dense(self.update)


@dataclass(frozen=True)
class WholeModel:
    """All weights of a network, embeddings included, as trainable copies."""

    weights: dict[str, nn.Parameter]

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.weights.values())

    def acting(self) -> AbstractContextManager[object]:
        return nullcontext()  # the trainable copies are already in the network

    def state(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}


def fine_tune(editing: Editing) -> NetworkWithWeights:
    """Train every weight on the corrections only. `setting`: the learning rate."""
    first_batch_only(editing)
    network = editing.network
    prepared = prepared_at(editing, network.layers[0], keep=False)
    with trainable_copies(network.model, [name for name, _ in network.model.named_parameters()]) as weights:
        best = fit(
            network,
            prepared,
            WholeModel(weights),
            learning_rate=editing.setting,
            kl_weight=0.0,
            generator=generator_of(editing),
        )
    return NetworkWithWeights(network, best)


def fine_tune_layer(editing: Editing) -> NetworkWithDeltas:
    """Train one layer on the corrections only. `setting`: the learning rate, relative to the weight's RMS."""
    return _one_layer(editing, kl_weight=0.0, learning_rate=editing.setting)


def fine_tune_kl(editing: Editing) -> NetworkWithDeltas:
    """Train one layer with KL(before || after) on pass samples. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    return _one_layer(editing, kl_weight=editing.setting, learning_rate=LAYER_RATE)


def _one_layer(editing: Editing, *, kl_weight: float, learning_rate: float) -> NetworkWithDeltas:
    layer = edited_layer(editing)
    # Relative to the weight's root mean square, so that one grid fits models of any scale.
    learning_rate *= float(weight_of(editing.network, layer).float().square().mean().sqrt())
    options = likelihood(kl_weight=kl_weight, learning_rate=learning_rate)
    with with_earlier_deltas(editing):
        prepared = prepared_at(editing, layer, keep=kl_weight > 0)
        learner = WeightLearner(layer, editing.network.device)
        return trained(editing, prepared, learner, options)
