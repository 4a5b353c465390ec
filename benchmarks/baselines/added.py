"""An edited network that is the base plus deltas: the result of most methods.

It answers through the product's own hooks, so the base weights are never written. Does not know how a delta
was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from benchmarks.baselines.contract import Editing
from salem.deltas.chain import Chain
from salem.deltas.files import term_tensors
from salem.deltas.terms import Dense, LayerDelta, LowRank
from salem.errors import Misconfigured
from salem.inference.gate import fire
from salem.models.batching import Batch
from salem.models.network import Network
from salem.records import TextInput


@dataclass(frozen=True)
class Added:
    """The base network and the deltas that act on it, oldest first."""

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
        """While active, the network answers these inputs as edited. Decides here which entries fire."""
        chain = Chain.of(self.deltas)
        firing = fire(self.network, inputs, chain, batch)
        return chain.applied(self.network.model, lambda: firing)


def earlier(editing: Editing) -> tuple[LayerDelta, ...]:
    """The deltas of the batches before this one."""
    if editing.before is None:
        return ()
    assert isinstance(editing.before, Added), "a method gets its own earlier result"
    return editing.before.deltas


def first_batch_only(editing: Editing) -> None:
    """Refuse to add to an earlier result.

    Raises:
        Misconfigured: there is an earlier result, and the method has no published way to add to it.
    """
    if editing.before is not None:
        raise Misconfigured("This method edits once; it cannot add to an earlier result.")


def merged(network: Network, layer: str, before: Sequence[LayerDelta], update: Tensor) -> Added:
    """The sum of an update [d_out, d_in] and the earlier ones, as one matrix of constant size."""
    for delta in before:
        assert delta.layer == layer, "later batches edit the layer of the first"
        for term in delta.terms:
            assert isinstance(term, Dense | LowRank)
            update = update + term.dense()
    return Added(network, (LayerDelta(layer, (Dense(update.detach()),)),))
