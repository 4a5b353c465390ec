"""Fine-tuning: the whole model, one layer, and one layer with a divergence penalty on pass samples.

The baselines that every editing paper measures first (MEND, Mitchell et al. 2022, section 5: FT and FT+KL;
SaLEM, section 4). Adam on the likelihood of the corrections; training stops once they hold. Does not know
adapters or editors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.baselines.added import Added, first_batch_only
from benchmarks.baselines.contract import Editing
from benchmarks.baselines.one_layer import (
    edited_layer,
    generator_of,
    likelihood,
    prepared_at,
    trained,
    weight_of,
    with_earlier,
)
from benchmarks.baselines.together import fit
from benchmarks.baselines.weights import Replaced, lent
from salem.deltas.terms import Dense
from salem.records import Layer

LAYER_RATE = 0.2  # where the setting is the weight of the divergence


class WeightLearner:
    """One layer's update itself, starting at zero: plain gradient descent in the product's loop."""

    shared = True

    def __init__(self, layer: Layer, device: torch.device) -> None:
        self.update = nn.Parameter(torch.zeros(layer.d_out, layer.d_in, device=device))

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self.update

    def term(self) -> Dense:
        return Dense(self.update)


@dataclass(frozen=True)
class WholeModel:
    """All weights of a network, embeddings included, while they are lent."""

    weights: dict[str, nn.Parameter]

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.weights.values())

    def acting(self) -> AbstractContextManager[object]:
        return nullcontext()  # the weights stand in the network already

    def state(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}


def fine_tune(editing: Editing) -> Replaced:
    """Every weight, on the corrections alone. `setting`: the learning rate."""
    first_batch_only(editing)
    network = editing.network
    prepared = prepared_at(editing, network.layers[0], keep=False)
    with lent(network.model, [name for name, _ in network.model.named_parameters()]) as weights:
        best = fit(
            network,
            prepared,
            WholeModel(weights),
            learning_rate=editing.setting,
            kl_weight=0.0,
            generator=generator_of(editing),
        )
    return Replaced(network, best)


def fine_tune_layer(editing: Editing) -> Added:
    """One layer, on the corrections alone. `setting`: the learning rate, relative."""
    return _one_layer(editing, kl_weight=0.0, learning_rate=editing.setting)


def fine_tune_kl(editing: Editing) -> Added:
    """One layer, with KL(before || after) on pass samples. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    return _one_layer(editing, kl_weight=editing.setting, learning_rate=LAYER_RATE)


def _one_layer(editing: Editing, *, kl_weight: float, learning_rate: float) -> Added:
    layer = edited_layer(editing)
    # Relative to the weight's root mean square: models differ in scale, and one grid serves all.
    learning_rate *= float(weight_of(editing.network, layer).float().square().mean().sqrt())
    options = likelihood(kl_weight=kl_weight, learning_rate=learning_rate)
    with with_earlier(editing):
        prepared = prepared_at(editing, layer, keep=kl_weight > 0)
        learner = WeightLearner(layer, editing.network.device)
        return trained(editing, prepared, learner, options)
