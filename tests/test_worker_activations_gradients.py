"""u and v against autograd's own weight gradient, in float64, for every architecture and every layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from tiny_models import ARCHITECTURES, LABELS, tiny_network
from torch import Tensor

from salem.models.batching import encode, forward
from salem.models.network import Network, as_network
from salem.models.trunk import capture
from salem.records import Layer, Sample
from worker.activations.gradients import TokenGradients, suffix_gradients, token_gradients
from worker.numerics.losses import nll_per_sample

TEXTS = ("where is my order", "the password does not work and i cannot log in to my account today", "lamp")
TARGETS = ("Paris", "Rome is not", "Lima")


def some_samples(network: Network) -> list[Sample]:
    """Three samples of different length, so that every batch holds padding."""
    targets = TARGETS if network.task.generates else LABELS[:3]
    return [Sample(input=text, target=target) for text, target in zip(TEXTS, targets, strict=True)]


def in_double(architecture: str) -> Network:
    network = tiny_network(architecture)
    return as_network(copy.deepcopy(network.model).double(), network.tokenizer, network.task)


def autograd_gradients(network: Network, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """The gradient of the summed loss with respect to each candidate's own weight, as [d_out, d_in]."""
    weights = [network.model.get_parameter(f"{layer.path}.weight") for layer in network.layers]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        loss = nll_per_sample(forward(network, encode(network, samples))).sum()
        found = torch.autograd.grad(loss, weights)
    finally:
        network.model.requires_grad_(False)
    turned = [grad.T if layer.transposed else grad for grad, layer in zip(found, network.layers, strict=True)]
    return {layer.path: grad for layer, grad in zip(network.layers, turned, strict=True)}


def assert_is_gradient(found: TokenGradients, expected: Tensor, layer: Layer) -> None:
    assert expected.abs().max() > 0, f"{layer.path} has no gradient: this test shows nothing"
    assert expected.shape == (layer.d_out, layer.d_in)
    torch.testing.assert_close(
        found.v.flatten(0, 1).T @ found.u.flatten(0, 1), expected, rtol=1e-9, atol=1e-12
    )
    u, v = found.token_rows()
    torch.testing.assert_close(v.T @ u, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_product_of_v_and_u_is_the_weight_gradient(architecture: str) -> None:
    network = in_double(architecture)
    samples = some_samples(network)
    expected = autograd_gradients(network, samples)
    batch = encode(network, samples)
    found = token_gradients(network, batch, network.layers)
    assert set(found) == {layer.path for layer in network.layers}
    for layer in network.layers:
        assert found[layer.path].u.shape[0] == found[layer.path].v.shape[0] == len(samples)
        assert_is_gradient(found[layer.path], expected[layer.path], layer)
        assert_is_gradient(
            suffix_gradients(network, capture(network, batch, layer)), expected[layer.path], layer
        )


@pytest.mark.parametrize("architecture", ["bert", "opt", "gpt2", "t5"])
def test_each_row_holds_the_gradient_of_its_own_sample(architecture: str) -> None:
    network = in_double(architecture)
    samples = some_samples(network)
    batch = encode(network, samples)
    together = token_gradients(network, batch, network.layers)
    for index, sample in enumerate(samples):
        alone = autograd_gradients(network, [sample])
        for path, gradients in together.items():
            row = gradients.v[index].T @ gradients.u[index]
            torch.testing.assert_close(row, alone[path], rtol=1e-7, atol=1e-9)


def test_rows_of_a_trunk_give_the_gradients_of_those_samples() -> None:
    network = in_double("t5")
    layer = network.layers[2]
    trunk = capture(network, encode(network, some_samples(network)), layer)
    whole, part = (
        suffix_gradients(network, trunk),
        suffix_gradients(network, trunk.rows(torch.tensor([2, 0]))),
    )
    torch.testing.assert_close(part.v, whole.v[[2, 0]])
    torch.testing.assert_close(part.u, whole.u[[2, 0]])


def test_tokens_without_gradient_are_dropped() -> None:
    u = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]])
    v = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [5.0, 6.0]]])
    kept_u, kept_v = TokenGradients(u, v).token_rows()
    assert kept_u.tolist() == [[3.0, 4.0]] and kept_v.tolist() == [[5.0, 6.0]]


def test_no_hook_stays_in_the_model() -> None:
    network = tiny_network("bert")
    hooks = [len(module._forward_hooks) for module in network.model.modules()]
    token_gradients(network, encode(network, some_samples(network)), network.layers)
    assert all(weight.grad is None and not weight.requires_grad for weight in network.model.parameters())
    assert hooks == [len(module._forward_hooks) for module in network.model.modules()]
