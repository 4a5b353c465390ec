"""The gate: decides, inside the forward that answers, which entry of a version acts on each row.

The states that a scope reads pass by anyway, so the gate costs one pooling and one matrix product. Where a
delta would act before they are read, they are taken from a forward of the base of their own. How the base
begins its answer is asked in the midst of the forward, while every delta rests, and about those inputs alone
that a scope would hold by its cosine. Does not know tasks, decoding or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from salem.deltas.terms import LayerDelta, applied
from salem.models.batching import Batch
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.records import TextInput
from salem.scope.features import Glimpse, Reading, pool
from salem.scope.first_token import Openings
from salem.scope.lexical import Wording
from salem.scope.lookups import Ask, Asking
from salem.scope.metric import Metric
from salem.scope.scope import Firing, prevailing


def fire(
    network: Network,
    inputs: Sequence[TextInput],
    deltas: Sequence[LayerDelta],
    batch: Batch | None = None,
) -> tuple[Firing | None, ...]:
    """What fires on each input, per delta, from a forward of the base; only one entry acts on an input.

    Args:
        batch: the inputs with their answers, where these are given and not generated.
    """
    points = {metric.sha256: metric.read(network, inputs) for metric in _metrics(deltas)}
    found = _firings(deltas, points, Asking(network, inputs))
    if batch is None:
        return found
    return tuple(firing and replace(firing, starts=batch.answer_starts) for firing in found)


@contextmanager
def gated(
    network: Network,
    inputs: Sequence[TextInput],
    fields: dict[str, Tensor],
    deltas: Sequence[LayerDelta],
) -> Iterator[None]:
    """While active, the model answers this batch as the version; what fires is decided by the first forward.

    Args:
        fields: the batch as the model's arguments [n, t], padded on either side; `inputs` in this order.
    """
    metrics = _metrics(deltas)
    readable = all(_acts_later(network, delta, metric.reading) for delta in deltas for metric in metrics)
    if not readable:
        with applied(network.model, deltas, fire(network, inputs, deltas)):
            yield
        return
    points: dict[str, Tensor] = {}
    firings: list[Firing | None] = [None] * len(deltas)
    aside = _Aside(Asking(network, inputs))

    def place(metric: Metric, embedded: Tensor, state: Tensor) -> None:
        with torch.no_grad():
            pooled = pool(network.task, embedded, state, fields, metric.reading)
            points[metric.sha256] = metric.place(pooled)
        if len(points) == len(metrics):
            firings[:] = _firings(deltas, points, aside)

    with ExitStack() as watching:
        for metric in metrics:
            watching.enter_context(Glimpse(network, metric.reading, partial(place, metric)))
        with applied(network.model, deltas, firings, resting=lambda: aside.lasts):
            yield


class _Aside:
    """A question to the base in the midst of a version's forward; while it lasts, every delta rests."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.lasts = False

    def words(self, rows: Tensor) -> list[Wording]:
        return self._ask.words(rows)

    def openings(self, rows: Tensor) -> Openings:
        self.lasts = True
        try:
            return self._ask.openings(rows)
        finally:
            self.lasts = False


def _metrics(deltas: Sequence[LayerDelta]) -> list[Metric]:
    """The metrics that a version's scopes live in, each once."""
    found = {delta.scoped.metric.sha256: delta.scoped.metric for delta in deltas if delta.scoped}
    return list(found.values())


def _firings(deltas: Sequence[LayerDelta], points: dict[str, Tensor], ask: Ask) -> tuple[Firing | None, ...]:
    return prevailing(
        [
            term.scope.fire_at(points[term.metric.sha256], ask) if (term := delta.scoped) else None
            for delta in deltas
        ]
    )


def _acts_later(network: Network, delta: LayerDelta, reading: Reading) -> bool:
    """Whether a delta acts only after what is read has been read."""
    layer = layer_at(network.layers, delta.layer)
    return layer.stack != reading.stack or layer.block >= reading.block  # a decoder runs after its encoder
