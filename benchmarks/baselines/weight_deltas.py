"""A network edited by deltas: what most methods return.

It answers through the product's own hooks, which leave the base weights untouched. Must not know how a delta
was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from benchmarks.baselines.interface import Editing
from salem.deltas.chain import Chain
from salem.deltas.files import term_tensors
from salem.deltas.terms import Dense, LayerDelta, LowRank
from salem.errors import Misconfigured
from salem.inference.gate import fire
from salem.models.batching import Batch
from salem.models.network import Network
from salem.records import TextInput


@dataclass(frozen=True)
class NetworkWithDeltas:
    """The base network and its deltas, oldest first."""

    network: Network
    deltas: tuple[LayerDelta, ...]

    @property
    def layer(self) -> str | None:
        """The edited layer, if there is exactly one."""
        paths = {delta.layer for delta in self.deltas}
        return paths.pop() if len(paths) == 1 else None

    @property
    def delta_bytes(self) -> int:
        terms = [term for delta in self.deltas for term in delta.terms]
        return sum(4 * field.numel() for term in terms for field in term_tensors(term).values())

    def answering(
        self, inputs: Sequence[TextInput], batch: Batch | None = None
    ) -> AbstractContextManager[None]:
        """While active, the network answers these inputs as edited. Scopes are checked once, on entry."""
        chain = Chain.of(self.deltas)
        firing = fire(self.network, inputs, chain, batch)
        return chain.applied(self.network.model, lambda: firing)


def earlier_deltas(editing: Editing) -> tuple[LayerDelta, ...]:
    """The deltas of earlier batches, oldest first."""
    if editing.before is None:
        return ()
    assert isinstance(editing.before, NetworkWithDeltas), "a method gets its own earlier result"
    return editing.before.deltas


def first_batch_only(editing: Editing) -> None:
    """Refuse to edit an already edited network.

    Raises:
        Misconfigured: there is an earlier result, and the method's paper does not say how to add to it.
    """
    if editing.before is not None:
        raise Misconfigured(
            "This method supports only one batch of edits; it cannot add to an earlier result."
        )


def merged(network: Network, layer: str, before: Sequence[LayerDelta], update: Tensor) -> NetworkWithDeltas:
    """The network with one dense delta: `update` [d_out, d_in] plus the earlier updates of the layer."""
    for delta in before:
        assert delta.layer == layer, "all batches edit the same layer"
        for term in delta.terms:
            assert isinstance(term, Dense | LowRank)
            update = update + term.dense()
    return NetworkWithDeltas(network, (LayerDelta(layer, (Dense(update.detach()),)),))
