"""Finds what can be edited in a network: the stacks of blocks and the weight matrices inside them.

Reads the module tree only. A stack is any outermost `ModuleList` whose members have one class and hold
matrices; a matrix is an `nn.Linear` or a GPT-2 `Conv1D`. Must not know model names, tokenizers, or tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from torch import nn
from transformers.pytorch_utils import Conv1D

from salem.errors import UnsupportedModel
from salem.records import Layer

Matrix: TypeAlias = nn.Linear | Conv1D


def find_stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Every stack of blocks by its module path: one for an encoder or decoder, two for an encoder-decoder.

    Raises:
        UnsupportedModel: the module tree has no stack.
    """
    stacks: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        nested = any(path.startswith(f"{found}.") for found in stacks)
        if isinstance(module, nn.ModuleList) and not nested and _is_stack(module):
            stacks[path] = module
    if not stacks:
        raise UnsupportedModel(
            f"{type(model).__name__} has no stack of blocks: no ModuleList whose members have one class and "
            "each hold at least one Linear or Conv1D.",
            remedy="Host a transformer encoder, decoder, or encoder-decoder with ordinary linear layers.",
        )
    return stacks


def _is_stack(blocks: nn.ModuleList) -> bool:
    kinds = {type(block) for block in blocks}
    if any(isinstance(block, Matrix) for block in blocks):
        return False  # a list of matrices, as in Gemma 3n, is not a stack of blocks
    return len(kinds) == 1 and all(any(True for _ in _matrices(block)) for block in blocks)


def _matrices(block: nn.Module) -> Iterator[tuple[str, Matrix]]:
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield path, module


def find_layers(model: nn.Module) -> tuple[Layer, ...]:
    """The editable layers: the feed-forward output matrix of every block, stack by stack.

    This is the last registered matrix of a block whose output is as wide as the input of its first matrix. It
    writes to the residual stream, so its `d_out` must be the same in all blocks of a stack.

    Raises:
        UnsupportedModel: there is no stack, or the output widths differ within a stack.
    """
    layers: list[Layer] = []
    for stack, blocks in find_stacks(model).items():
        found = [_output_layer(stack, index, block) for index, block in enumerate(blocks)]
        if len({layer.d_out for layer in found}) != 1:
            raise UnsupportedModel(
                f"The blocks of {stack} do not end in matrices of one output width. The feed-forward output "
                "matrix must be the last Linear or Conv1D of each block."
            )
        layers.extend(found)
    return tuple(layers)


def _output_layer(stack: str, index: int, block: nn.Module) -> Layer:
    layers = [_as_layer(stack, index, matrix, module) for matrix, module in _matrices(block)]
    width = layers[0].d_in  # a gate that is registered after the feed-forward part is narrower
    return next((layer for layer in reversed(layers) if layer.d_out == width), layers[-1])


def _as_layer(stack: str, index: int, matrix: str, module: Matrix) -> Layer:
    transposed = isinstance(module, Conv1D)
    d_first, d_last = module.weight.shape
    return Layer(
        path=f"{stack}.{index}.{matrix}",
        stack=stack,
        block=index,
        matrix=matrix,
        d_in=d_first if transposed else d_last,
        d_out=d_last if transposed else d_first,
        transposed=transposed,
    )


def layer_at(layers: Sequence[Layer], path: str) -> Layer:
    """The layer with this module path.

    Raises:
        UnsupportedModel: there is none.
    """
    for layer in layers:
        if layer.path == path:
            return layer
    known = ", ".join(layer.path for layer in layers[:3])
    raise UnsupportedModel(
        f'"{path}" is not an editable layer of this model.', remedy=f"Editable layers look like: {known}, ..."
    )
