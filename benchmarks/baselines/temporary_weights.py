"""Temporarily replaces the weights of a network.

The original tensors are kept and put back, so the weights are bit-identical afterward. Must not know what
the temporary weights are for.
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
def trainable_copies(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """While active, the named parameters hold trainable copies; tied parameters share one copy."""
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
def replaced_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While active, the named parameters hold these tensors, each in its parameter's shape."""
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
class NetworkWithWeights:
    """A network with other weights."""

    network: Network
    weights: dict[str, Tensor]  # by parameter name, each in its parameter's shape
    layer: str | None = None

    @property
    def delta_bytes(self) -> int:
        return sum(4 * weight.numel() for weight in self.weights.values())

    @contextmanager
    def answering(self, inputs: Sequence[TextInput], batch: Batch | None = None) -> Iterator[None]:
        """While active, the network answers all inputs with these weights."""
        with replaced_weights(self.network.model, self.weights):
            yield
