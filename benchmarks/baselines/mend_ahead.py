"""MEND as published: editors are trained in advance on other edits and edit the batch in one pass.

Mitchell et al., "Fast Model Editing at Scale", ICLR 2022, section 3.3 and algorithms 1 and 2, at the layers
that its authors edit. Training is the product's (`worker.hypernetworks.meta_training`): an episode has as
many edits as the batch to edit.

Without a corpus of other edits, it trains on pass samples with wrong answers. Training must not read the
batch to edit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from benchmarks.baselines.interface import Editing
from benchmarks.baselines.mend import EDITOR_RANK, EDITOR_RATE, top_layers
from benchmarks.baselines.one_layer import generator_of, pass_samples
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, first_batch_only
from salem.deltas.terms import Dense, LayerDelta
from salem.models.network import Network
from salem.records import Edit, Layer, Sample
from worker.activations.trunk_sets import prepare_with_answers
from worker.hypernetworks.mend import MendEditor
from worker.hypernetworks.meta_training import (
    MetaTrainingOptions,
    MetaTrainingSet,
    meta_batches,
    train_editors,
)
from worker.hypernetworks.one_pass import row_updates
from worker.training.loop import CHUNK

NUM_STEPS = (
    40  # each with up to 32 edits and 32 pass samples; docs/log.md has results with five times as many
)
CORPUS_SIZE = 256  # maximum number of training edits; their gradients are kept in memory


def mend_ahead(editing: Editing) -> NetworkWithDeltas:
    """Train the editors of the top layers in advance, then edit. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    network, layers = editing.network, top_layers(editing.network)
    editors = editing.shared_work.once("editors", lambda: _trained_ahead(editing, layers))
    return NetworkWithDeltas(network, one_pass(network, layers, editors, editing.batch.edit_samples))


def _trained_ahead(editing: Editing, layers: Sequence[Layer]) -> dict[str, MendEditor]:
    network = editing.network
    corpus = editing.corpus[:CORPUS_SIZE] or counterfactual_edits(
        network, pass_samples(editing), editing.seed
    )
    keep, _ = prepare_with_answers(network, pass_samples(editing), layers[0], chunk_size=CHUNK)
    batches = meta_batches(network, corpus, layers, random.Random(editing.seed))
    options = MetaTrainingOptions(
        rank=EDITOR_RANK,
        num_together=len(editing.batch.edit_samples),
        num_steps=NUM_STEPS,
        learning_rate=EDITOR_RATE,
        kl_weight=editing.setting,
    )
    return train_editors(
        network, MetaTrainingSet(layers, batches, keep.chunks), options, generator_of(editing)
    )


def counterfactual_edits(network: Network, samples: Sequence[Sample], seed: int) -> tuple[Edit, ...]:
    """Pass samples with a wrong answer as the target: another label, or the answer of another sample."""
    rng = random.Random(seed)
    targets = network.labels or tuple(dict.fromkeys(sample.target for sample in samples))
    edits: list[Edit] = []
    for sample in samples[:CORPUS_SIZE]:
        others = [target for target in targets if target != sample.target]
        target = rng.choice(others) if others else sample.target
        edits.append(Edit(**{**sample.model_dump(), "target": target}))
    return tuple(edits)


@torch.no_grad()
def one_pass(
    network: Network, layers: Sequence[Layer], editors: dict[str, MendEditor], samples: Sequence[Sample]
) -> tuple[LayerDelta, ...]:
    """The sum of all samples' updates, as one dense matrix per layer."""
    totals = {layer.path: torch.zeros(layer.d_out, layer.d_in, device=network.device) for layer in layers}
    for updates in row_updates(network, editors, layers, samples):
        for path, (update, _) in updates.items():
            totals[path] += update.dense()
    return tuple(LayerDelta(path, (Dense(total),)) for path, total in totals.items())
