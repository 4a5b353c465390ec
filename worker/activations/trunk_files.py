"""Chunks of pass samples as cache entries: what enters the block, the layer's inputs, and the base's answers.

An entry that was read back is memory-mapped, so the trunks of a large set take disk space instead of memory.
Must not know how a trunk is captured or what it is used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salem.models.batching import Batch
from salem.models.trunk import Trunk
from salem.records import Layer


@dataclass(frozen=True)
class CapturedChunk:
    """What one forward pass of the base tells about n samples."""

    trunk: Trunk
    inputs: Tensor  # [k, d_in] what enters the layer at tokens that are not padding; stays on the CPU
    log_probs: Tensor  # [a, c] at the answer positions
    correct: Tensor  # [n] bool: whether the base answers the sample correctly


def to_tensors(chunk: CapturedChunk) -> dict[str, Tensor] | None:
    """A chunk as named tensors, without token ids; None if its state holds anything but tensors."""
    named = {"inputs": chunk.inputs, "log_probs": chunk.log_probs, "correct": chunk.correct}
    if chunk.trunk.encoder_state is not None:
        named["encoder_state"] = chunk.trunk.encoder_state
    return named if _flatten("state", chunk.trunk.state, named) else None


def from_tensors(
    tensors: Mapping[str, Tensor], layer: Layer, batch: Batch, device: torch.device
) -> CapturedChunk:
    """The chunk that `to_tensors` wrote, with its trunk and answers on `device`."""
    moved = {name: tensor.to(device) for name, tensor in tensors.items() if name != "inputs"}
    trunk = Trunk(layer, batch, _unflatten("state", moved), moved.get("encoder_state"))
    return CapturedChunk(trunk, tensors["inputs"], moved["log_probs"], moved["correct"])


def _flatten(name: str, state: Any, named: dict[str, Tensor]) -> bool:
    """Name every tensor of a nested state after its position: `state`, or `state/2/0` for the first of two.

    Returns False if something in the state is neither a tensor nor a tuple nor None.
    """
    if isinstance(state, Tensor):
        named[name] = state
    elif isinstance(state, tuple):
        return all(
            [_flatten(f"{name}/{len(state)}/{index}", part, named) for index, part in enumerate(state)]
        )
    return state is None or isinstance(state, Tensor | tuple)


def _unflatten(name: str, named: Mapping[str, Tensor]) -> Any:
    """A tensor, a tuple whose length is in the names of its parts, or None if nothing has the name."""
    if name in named:
        return named[name]
    length = next((int(key[len(name) + 1 :].split("/")[0]) for key in named if key.startswith(f"{name}/")), 0)
    return tuple(_unflatten(f"{name}/{length}/{index}", named) for index in range(length)) or None
