"""The gate: decides which entry of a version acts on each row of a batch.

A text scope reads the text, so it decides before the model runs. A state scope reads states that the forward
pass computes anyway, so its gate costs one pooling and one matrix product. If an entry acts before these
states exist, the gate runs the base by itself first. Where a scope needs the base's first tokens, the gate
asks the base in the middle of the forward pass, for those rows only, while all deltas are paused. Must not
know tasks, decoding, or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from salem.deltas.chain import Chain, joined
from salem.deltas.terms import LayerDelta
from salem.models.batching import Batch
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.records import TextInput
from salem.scope.features import FeatureSpec, StateCapture, pool
from salem.scope.firing import Firing, Reading
from salem.scope.first_token import FirstTokens
from salem.scope.lexical import WordCounts
from salem.scope.lookups import BatchLookups, Lookups
from salem.scope.metric import Metric
from salem.scope.questions import question_of
from salem.scope.state_scope import StateScope


class Gate:
    """What fires on a batch; `firing` is None until every scope has read it, or without scopes."""

    def __init__(self, network: Network, inputs: Sequence[TextInput], chain: Chain) -> None:
        self.firing: Firing | None = None
        self._network, self._chain = network, chain
        self.lookups = PausedLookups(BatchLookups(network, inputs))
        self._questions = questions(network, inputs, chain)
        self._points: dict[str, Tensor] = {}  # by metric: [n, m]

    def place(self, metric: Metric, fields: dict[str, Tensor], embedded: Tensor, state: Tensor) -> None:
        """Take the states [n, t, d] that a metric reads, and decide once every metric has its own."""
        with torch.no_grad():
            pooled = pool(self._network.task, embedded, state, fields, metric.feature_spec)
            self._points[metric.sha256] = metric.project(pooled)
        if len(self._points) == len(state_scopes(self._chain)):
            self.decide()

    def decide(self) -> None:
        """Decide what fires, once every scope has read the batch."""
        reading = Reading(self._questions, self.lookups, self._points, self._network.device)
        self.firing = self._chain.fire(reading)


def state_scopes(chain: Chain) -> list[StateScope]:
    """The scopes that read the hosted model's states. Text scopes decide before it runs."""
    return [scope for scope in chain.scopes if isinstance(scope, StateScope)]


def questions(network: Network, inputs: Sequence[TextInput], chain: Chain) -> list[str]:
    """The text of each input that text scopes compare; empty if the chain has no such scope."""
    has_text_scopes = len(state_scopes(chain)) < len(chain.scopes)
    return [question_of(network, item) for item in inputs] if has_text_scopes else []


class PausedLookups:
    """Asks the base in the middle of a version's forward pass; all deltas are paused while it does."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self.running = False

    def words(self, rows: Tensor) -> list[WordCounts]:
        return self._lookups.words(rows)

    def first_tokens(self, rows: Tensor) -> FirstTokens:
        self.running = True
        try:
            return self._lookups.first_tokens(rows)
        finally:
            self.running = False


def fire(
    network: Network,
    inputs: Sequence[TextInput],
    deltas: Chain | Sequence[LayerDelta],
    batch: Batch | None = None,
) -> Firing | None:
    """Which entry acts on each input, from a forward pass of the base; None if the deltas have no entries.

    Args:
        batch: the inputs together with their answers, if these are given and not generated.
    """
    chain = joined(deltas)
    points = {scope.reader: scope.metric.embed(network, inputs) for scope in state_scopes(chain)}
    asked = questions(network, inputs, chain)
    found = chain.fire(Reading(asked, BatchLookups(network, inputs), points, network.device))
    return replace(found, answer_starts=batch.answer_starts) if found and batch else found


@contextmanager
def gated(
    network: Network,
    inputs: Sequence[TextInput],
    fields: dict[str, Tensor],
    deltas: Chain | Sequence[LayerDelta],
) -> Iterator[Gate]:
    """While active, the model answers this batch as the version. The first forward pass decides what fires.

    Args:
        fields: the batch as the model's arguments [n, t], padded on either side; `inputs` in the same order.
    """
    chain = joined(deltas)
    gate = Gate(network, inputs, chain)
    reading_states = state_scopes(chain)
    with ExitStack() as capturing:
        if not reading_states:
            gate.decide()
        elif all(_acts_later(network, chain, scope.metric.feature_spec) for scope in reading_states):
            for scope in reading_states:
                place = partial(gate.place, scope.metric, fields)
                capturing.enter_context(StateCapture(network, scope.metric.feature_spec, place))
        else:
            gate.firing = fire(network, inputs, chain)
        with chain.applied(network.model, lambda: gate.firing, paused=lambda: gate.lookups.running):
            yield gate


def _acts_later(network: Network, chain: Chain, spec: FeatureSpec) -> bool:
    """Whether every delta acts only after the states that the spec names have been read."""
    paths = [*(delta.layer for delta in chain.plain), *(entries.layer for entries in chain.layers)]
    layers = [layer_at(network.layers, path) for path in paths]
    # a decoder runs after its encoder
    return all(layer.stack != spec.stack or layer.block >= spec.block for layer in layers)
