"""Saliency against a dense, slow reference, and the rule that chooses a layer."""

from __future__ import annotations

import pytest
import torch
from test_worker_activations_gradients import autograd_gradients, in_double, some_samples
from tiny_models import ARCHITECTURES, tiny_network

from salem.records import Layer
from worker.activations.gradients import TokenGradients
from worker.selection.saliency import (
    choose_layer,
    layer_saliency,
    mean_absolute_gradient,
    score_records,
    shortlist,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_score_is_the_mean_absolute_gradient_per_parameter_and_sample(architecture: str) -> None:
    network = in_double(architecture)
    samples = some_samples(network)
    alone = [autograd_gradients(network, [sample]) for sample in samples]
    found = layer_saliency(network, samples, network.layers, batch_size=2)
    for layer in network.layers:
        expected = sum(float(gradients[layer.path].abs().mean()) for gradients in alone) / len(samples)
        assert found[layer.path] == pytest.approx(expected, rel=1e-8)


def test_scores_do_not_depend_on_the_batch_size() -> None:
    network = tiny_network("gpt2")
    samples = some_samples(network)
    one, three = (layer_saliency(network, samples, network.layers, batch_size=size) for size in (1, 3))
    assert one == pytest.approx(three, rel=1e-4)


def test_opposite_samples_do_not_cancel() -> None:
    u = torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]])
    v = torch.tensor([[[3.0]], [[-3.0]]])
    assert mean_absolute_gradient(TokenGradients(u, v)).tolist() == [4.5, 4.5]


def stack_of(num_blocks: int) -> tuple[Layer, ...]:
    sizes = {"stack": "layers", "matrix": "down", "d_in": 2, "d_out": 2, "transposed": False}
    return tuple(Layer(path=f"layers.{i}.down", block=i, **sizes) for i in range(num_blocks))


@pytest.mark.parametrize(
    ("scores", "block"),
    [((5.0, 4.0, 3.0, 2.0), 0), ((2.0, 4.0, 5.0, 3.0), 2), ((1.0, 1.0, 1.0, 1.0), 0)],
)
def test_the_most_salient_layer_is_chosen(scores: tuple[float, ...], block: int) -> None:
    layers = stack_of(4)
    named = {layer.path: score for layer, score in zip(layers, scores, strict=True)}
    assert choose_layer(named, layers) == layers[block]


def test_score_records_list_every_layer_and_mark_the_chosen_one() -> None:
    layers = stack_of(3)
    found = score_records({layer.path: float(layer.block) for layer in layers}, layers, "layers.1.down")
    assert [(item.block, item.score, item.chosen) for item in found] == [
        (0, 0.0, False),
        (1, 1.0, True),
        (2, 2.0, False),
    ]


def test_a_shortlist_is_in_the_order_of_salience() -> None:
    layers = stack_of(4)
    named = {layer.path: score for layer, score in zip(layers, (1.0, 3.0, 2.0, 3.0), strict=True)}
    assert [layer.block for layer in shortlist(named, layers, 3)] == [1, 3, 2]
    assert len(shortlist(named, layers, 9)) == 4
