"""Candidate layers by their place in the stacks."""

from __future__ import annotations

import pytest
from tiny_models import tiny_network

from salem.records import Layer
from worker.selection.candidates import last_layers, middle_layers


def stack_of(num_blocks: int) -> tuple[Layer, ...]:
    sizes = {"stack": "layers", "matrix": "down", "d_in": 2, "d_out": 2, "transposed": False}
    return tuple(Layer(path=f"layers.{i}.down", block=i, **sizes) for i in range(num_blocks))


@pytest.mark.parametrize(
    ("num_blocks", "blocks"),
    [(1, [0]), (2, [1]), (3, [1]), (4, [2]), (6, [3]), (12, [6, 7])],
)
def test_the_middle_of_a_stack_is_never_empty(num_blocks: int, blocks: list[int]) -> None:
    assert [layer.block for layer in middle_layers(stack_of(num_blocks))] == blocks


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_the_last_layers_are_those_of_the_last_block(architecture: str) -> None:
    layers = tiny_network(architecture).layers
    assert last_layers(layers) == layers[-1:]
