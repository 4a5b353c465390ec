"""MEND trained on the job's own samples: on the top blocks, or on the layer that causal tracing picks.

Mitchell et al., "Fast Model Editing at Scale", ICLR 2022. Section 4 and appendix C name the blocks: the last
three, or the last two of each stack of an encoder-decoder. This module edits the feed-forward output of each.
It trains the product's editor (`worker.hypernetworks.mend`) as the product does: from the job's own
gradients, with two objectives. Must not train on other edits; `mend_ahead` does that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.baselines.interface import Editing
from benchmarks.baselines.multi_layer_training import fit
from benchmarks.baselines.one_layer import (
    generator_of,
    likelihood,
    prepared_at,
    trained,
)
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, first_batch_only
from benchmarks.tracing import trace_layer
from salem.deltas.terms import Dense, LayerDelta, LowRank, applied
from salem.models.batching import encode
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.models.trunk import resume
from salem.records import Layer, Sample
from worker.activations.gradients import token_gradients
from worker.hypernetworks.mend import Factors, MendEditor, aggregate
from worker.hypernetworks.meta_training import new_editors, search_steps
from worker.numerics.losses import nll_per_sample

EDITOR_RANK = 64
EDITOR_RATE = 1e-3
GRADIENT_BATCH = 10  # samples whose gradients are summed before they are factorized (SaLEM, section 3)
TRACED_SAMPLES = 10  # tracing is slow: it runs the model once per block and token


class EditorLearner:
    """Trains the editor of one layer on fixed gradient factors, in the product's loop."""

    shared = True

    def __init__(self, editor: MendEditor, factors: Factors) -> None:
        self.editor, self.factors = editor, factors

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.editor.parameters()

    def term(self) -> LowRank | Dense:
        return cheapest(self.editor(self.factors))


@dataclass(frozen=True)
class Editors:
    """Editors of several layers of a network, with fixed gradient factors."""

    network: Network
    editors: dict[str, MendEditor]
    factors: dict[str, Factors]

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for editor in self.editors.values() for parameter in editor.parameters())

    def deltas(self) -> tuple[LayerDelta, ...]:
        return tuple(
            LayerDelta(path, (cheapest(editor(self.factors[path])),)) for path, editor in self.editors.items()
        )

    def acting(self) -> AbstractContextManager[object]:
        return applied(self.network.model, self.deltas())

    def state(self) -> tuple[LayerDelta, ...]:
        return tuple(
            LayerDelta(
                delta.layer,
                tuple(type(term)(**{k: v.detach() for k, v in vars(term).items()}) for term in delta.terms),
            )
            for delta in self.deltas()
        )


def top_layers(network: Network) -> tuple[Layer, ...]:
    """The layers that MEND's authors edit: in the last three blocks, or in the last two of each stack."""
    stacks = list(dict.fromkeys(layer.stack for layer in network.layers))
    last = 3 if len(stacks) == 1 else 2
    return tuple(
        layer for stack in stacks for layer in [one for one in network.layers if one.stack == stack][-last:]
    )


def mend_top(editing: Editing) -> NetworkWithDeltas:
    """Train the editors of the top layers together. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    network, generator = editing.network, generator_of(editing)
    layers = top_layers(network)
    prepared = prepared_at(editing, layers[0])
    factors = correction_factors(network, editing.batch.corrections, layers)
    editors = Editors(network, new_editors(network, layers, factors, EDITOR_RANK, generator), factors)

    def loss() -> float:
        with editors.acting():
            return float(nll_per_sample(resume(network, prepared.corrections.chunks[0].trunk)).mean())

    search_steps(network, layers, editors.editors, editors.deltas, loss)
    best = fit(
        network,
        prepared,
        editors,
        learning_rate=EDITOR_RATE,
        kl_weight=editing.setting,
        generator=generator,
    )
    return NetworkWithDeltas(network, best)


def mend_traced(editing: Editing) -> NetworkWithDeltas:
    """MEND at the layer that causal tracing picks (Meng et al. 2022, section 2). `setting`: as `mend_top`."""
    first_batch_only(editing)
    network = editing.network
    traced = editing.batch.edit_samples[:TRACED_SAMPLES]
    effects = trace_layer(network, traced, network.layers, generator_of(editing))
    return mend_at(editing, layer_at(network.layers, max(effects, key=lambda path: effects[path])))


def mend_at(editing: Editing, layer: Layer) -> NetworkWithDeltas:
    """MEND on one layer, trained on the job's own samples."""
    network = editing.network
    prepared = prepared_at(editing, layer)
    factors = correction_factors(network, editing.batch.corrections, [layer])
    editors = new_editors(network, [layer], factors, EDITOR_RANK, generator_of(editing))
    learner = EditorLearner(editors[layer.path], factors[layer.path])

    def loss() -> float:
        with applied(network.model, [LayerDelta(layer.path, (learner.term(),))]):
            return float(nll_per_sample(resume(network, prepared.corrections.chunks[0].trunk)).mean())

    search_steps(network, [layer], editors, lambda: [LayerDelta(layer.path, (learner.term(),))], loss)
    return trained(
        editing, prepared, learner, likelihood(kl_weight=editing.setting, learning_rate=EDITOR_RATE)
    )


def correction_factors(
    network: Network, samples: Sequence[Sample], layers: Sequence[Layer]
) -> dict[str, Factors]:
    """By layer path: the samples' gradients, summed over small batches, each sum as low-rank factors."""
    parts: dict[str, list[Factors]] = {layer.path: [] for layer in layers}
    for start in range(0, len(samples), GRADIENT_BATCH):
        batch = encode(network, samples[start : start + GRADIENT_BATCH])
        for path, gradients in token_gradients(network, batch, layers).items():
            u, v = gradients.token_rows()
            if len(u):
                parts[path].append(aggregate(u.float(), v.float()))
    return {
        path: Factors(torch.cat([one.u for one in found]), torch.cat([one.v for one in found]))
        for path, found in parts.items()
    }


def cheapest(term: LowRank) -> LowRank | Dense:
    """The term as a dense matrix if its factors have more elements than that."""
    d_in, d_out = term.a.shape[1], term.b.shape[0]
    return Dense(term.dense()) if term.rank * (d_in + d_out) > d_in * d_out else term
