"""Which layers are candidates for an edit, by their place in the network.

Pure functions on layers. Must not know scores, samples, or recipes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil

from salem.records import Layer


def last_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers of the last block of the last stack."""
    last = layers[-1]
    return tuple(layer for layer in layers if (layer.stack, layer.block) == (last.stack, last.block))


def middle_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers between half and two thirds of the height of their stack, at least one per stack.

    Gradients grow toward the bottom of most networks, so saliency alone usually picks the lowest block, where
    states are still words and a training step costs most. An edit of the last block has no block left above
    it (docs/log.md has the comparison).
    """
    heights = Counter(layer.stack for layer in layers)
    return tuple(layer for layer in layers if layer.block in _middle(heights[layer.stack]))


def _middle(height: int) -> range:
    return range(height // 2, max(ceil(2 * height / 3), height // 2 + 1))
