"""Chunks of pass samples as entries of the sample cache: what entered the block, and the answers before.

An entry read back is memory-mapped, so the trunks of a large set take disk instead of memory. Knows the shape
of a trunk's state; does not know how a trunk is captured or what it is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from salem.models.batching import Batch
from salem.models.trunk import Trunk
from salem.records import Layer


def to_tensors(trunk: Trunk, before: Tensor, held: Tensor) -> dict[str, Tensor] | None:
    """Everything of a chunk but its tokens, by name; None where a state holds what is no tensor.

    Args:
        trunk: of n samples
        before: [a, c] log-probabilities at answer positions
        held: [n] bool
    """
    named = {"before": before, "held": held}
    if trunk.encoder_state is not None:
        named["encoder_state"] = trunk.encoder_state
    return named if _flatten("state", trunk.state, named) else None


def from_tensors(
    tensors: Mapping[str, Tensor], layer: Layer, batch: Batch, device: torch.device
) -> tuple[Trunk, Tensor, Tensor]:
    """The reverse, on a device: trunk, before [a, c], held [n]."""
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    trunk = Trunk(layer, batch, _unflatten("state", moved), moved.get("encoder_state"))
    return trunk, moved["before"], moved["held"]


def _flatten(name: str, state: Any, named: dict[str, Tensor]) -> bool:
    """Name every tensor of a nested state after its place: `state`, or `state/2/0` for the first of two."""
    if isinstance(state, Tensor):
        named[name] = state
    elif isinstance(state, tuple):
        return all(
            [_flatten(f"{name}/{len(state)}/{place}", part, named) for place, part in enumerate(state)]
        )
    return state is None or isinstance(state, Tensor | tuple)


def _unflatten(name: str, named: Mapping[str, Tensor]) -> Any:
    """A tensor, a tuple of the length that its parts' names give, or None where nothing has the name."""
    if name in named:
        return named[name]
    length = next((int(key[len(name) + 1 :].split("/")[0]) for key in named if key.startswith(f"{name}/")), 0)
    return tuple(_unflatten(f"{name}/{length}/{place}", named) for place in range(length)) or None
