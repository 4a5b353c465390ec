"""Block memory: the same answers and gradients without running what cannot change."""

from __future__ import annotations

import pytest
import torch
from test_worker_activations_gradients import some_samples
from tiny_models import ARCHITECTURES, tiny_network
from torch import Tensor, nn

from salem.deltas.terms import Dense, adding
from salem.models.batching import encode
from salem.models.network import Network
from salem.models.trunk import Trunk, capture, resume
from salem.records import Layer
from worker.activations.block_replay import BlockMemory, MemoryBudget
from worker.numerics.losses import nll_per_sample

PLENTY = 2**30


def matrix(layer: Layer, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(layer.d_out, layer.d_in, generator=draw) / layer.d_in


def places(network: Network) -> list[Layer]:
    return [network.layers[0], network.layers[1], network.layers[-1]]


def loss_and_gradient(
    network: Network, trunk: Trunk, memory: BlockMemory, weight: Tensor
) -> tuple[Tensor, Tensor]:
    module = network.module(trunk.layer.path)
    with adding(module, Dense(weight)), memory.passing(network, trunk.layer):
        loss = nll_per_sample(resume(network, trunk)).sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    return loss.detach(), gradient


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_and_gradients_are_the_same_bits(architecture: str) -> None:
    network = tiny_network(architecture)
    batch = encode(network, some_samples(network))
    for layer in places(network):
        trunk, memory = capture(network, batch, layer), BlockMemory(MemoryBudget(PLENTY))
        with torch.no_grad(), memory.passing(network, layer):
            resume(network, trunk)
        assert memory.num_bytes > 0
        for seed in (1, 2):
            weight = matrix(layer, seed).requires_grad_()
            remembered = loss_and_gradient(network, trunk, memory, weight)
            computed = loss_and_gradient(network, trunk, BlockMemory(MemoryBudget(0)), weight)
            assert torch.equal(remembered[0], computed[0]) and torch.equal(remembered[1], computed[1])
            assert remembered[1].any()


def test_the_addition_of_a_parent_to_the_same_matrix_is_computed_once() -> None:
    network = tiny_network("bert")
    layer, batch = network.layers[1], encode(network, some_samples(network))
    trunk, memory = capture(network, batch, layer), BlockMemory(MemoryBudget(PLENTY))
    with torch.no_grad(), adding(network.module(layer.path), Dense(matrix(layer, 3))):
        expected = resume(network, trunk).logits
        for _ in range(3):
            with memory.passing(network, layer):
                found = resume(network, trunk).logits
            assert torch.equal(found, expected)


def test_remembered_modules_do_not_run_and_the_block_is_left_as_it_was() -> None:
    network = tiny_network("bert")
    layer, batch = network.layers[1], encode(network, some_samples(network))
    trunk, memory = capture(network, batch, layer), BlockMemory(MemoryBudget(PLENTY))
    block = network.module("bert.encoder.layer.1")
    ran: list[nn.Module] = []
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    handles = [
        module.register_forward_hook(lambda module, *_: ran.append(module) and None) for module in linears
    ]
    with torch.no_grad():
        for expected in (len(linears), 1):  # the edited matrix alone: hooks on it must see its input
            ran.clear()
            with memory.passing(network, layer):
                resume(network, trunk)
            assert len(ran) == expected
    for handle in handles:
        handle.remove()
    assert all("forward" not in vars(module) for module in block.modules())


def test_the_budget_is_shared_and_what_does_not_fit_is_computed() -> None:
    network = tiny_network("bert")
    layer, batch = network.layers[1], encode(network, some_samples(network))
    trunk = capture(network, batch, layer)
    whole = BlockMemory(MemoryBudget(PLENTY))
    with torch.no_grad():
        with whole.passing(network, layer):
            expected = resume(network, trunk).logits
        budget = MemoryBudget(int(whole.num_bytes * 1.5))
        one, two = BlockMemory(budget), BlockMemory(budget)
        for memory in (one, two, one, two):
            with memory.passing(network, layer):
                assert torch.equal(resume(network, trunk).logits, expected)
        assert one.num_bytes == whole.num_bytes and two.num_bytes == 0
        one.forget()
        with one.passing(network, layer):
            assert torch.equal(resume(network, trunk).logits, expected)
        assert one.num_bytes == 0


def test_a_failed_pass_restores_the_block() -> None:
    network = tiny_network("bert")
    layer, memory = network.layers[1], BlockMemory(MemoryBudget(PLENTY))
    with pytest.raises(MemoryError), memory.passing(network, layer):
        raise MemoryError
    assert memory.num_bytes == 0
    assert all("forward" not in vars(module) for module in network.model.modules())


def test_a_block_that_writes_in_place_is_not_remembered() -> None:
    """Falcon adds attention to the feed-forward part in place."""
    network = tiny_network("falcon")
    batch = encode(network, some_samples(network))
    for layer in places(network):
        trunk = capture(network, batch, layer)
        with torch.no_grad():
            expected = resume(network, trunk).logits
            memory = BlockMemory(MemoryBudget(PLENTY))
            for _ in range(3):
                with memory.passing(network, layer):
                    assert torch.equal(resume(network, trunk).logits, expected)
            assert memory.num_bytes == 0


def test_an_output_that_is_changed_later_is_forgotten() -> None:
    """With another hook's addition, the sum is written into; without it, the remembered output."""
    network = tiny_network("falcon")
    layer, batch = network.layers[1], encode(network, some_samples(network))
    trunk, memory = capture(network, batch, layer), BlockMemory(MemoryBudget(PLENTY))
    with torch.no_grad():
        expected = resume(network, trunk).logits
        with adding(network.module(layer.path), Dense(matrix(layer, 3))), memory.passing(network, layer):
            resume(network, trunk)
        assert memory.num_bytes > 0
        for _ in range(3):
            with memory.passing(network, layer):
                assert torch.equal(resume(network, trunk).logits, expected)
        assert memory.num_bytes == 0
