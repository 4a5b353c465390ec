"""Temporary weights: copies replace a network's own tensors for a while.

The originals are kept aside and restored, never recomputed, so they are bit-identical afterwards. Does not
know what the copies are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from salem.models.batching import Batch
from salem.models.network import Network
from salem.records import TextInput


@contextmanager
def lent(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """While active, the named parameters are trainable copies of themselves; a tied one is one parameter."""
    own = {name: parameter for name, parameter in model.named_parameters() if name in set(names)}
    originals = {name: parameter.data for name, parameter in own.items()}
    try:
        for parameter in own.values():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
        yield own
    finally:
        for name, parameter in own.items():
            parameter.data = originals[name]
            parameter.requires_grad_(False)
            parameter.grad = None


@contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While active, the named parameters hold these tensors."""
    own = {name: parameter for name, parameter in model.named_parameters() if name in weights}
    originals = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = originals[name]


@dataclass(frozen=True)
class Replaced:
    """A network with other weights, by parameter name."""

    network: Network
    weights: dict[str, Tensor]  # each in its parameter's shape
    layer: str | None = None

    @property
    def delta_bytes(self) -> int:
        return sum(4 * weight.numel() for weight in self.weights.values())

    @contextmanager
    def answering(self, inputs: Sequence[TextInput], batch: Batch | None = None) -> Iterator[None]:
        """While active, the network answers with these weights; the arguments make no difference."""
        with swapped(self.network.model, self.weights):
            yield
