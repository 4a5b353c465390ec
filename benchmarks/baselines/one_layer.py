"""What all baselines that edit one layer share: its choice, the samples, and the training length.

All of them edit the layer that the product picks for plain weight changes: the most salient of the middle
blocks (`worker.selection.saliency`). They train on cached trunks and see the same pass samples, so only the
method differs. Later batches edit the same layer as the first. Must not know any method.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from benchmarks.baselines.interface import Editing
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, earlier_deltas, merged
from salem.deltas.terms import Dense, LowRank, applied
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.models.trunk import in_seq2seq_decoder
from salem.records import Layer, Sample
from worker.selection.candidates import middle_layers
from worker.selection.saliency import choose_layer, layer_saliency
from worker.training.loop import Learner, Prepared, prepare_dataset, train
from worker.training.options import TrainingOptions

NUM_ROUNDS = 40  # passes over all corrections; a step takes up to 32 of them and 32 pass samples
MAX_PASS_SAMPLES = 1_000  # four fifths are for training, about as many as the steps can read
SALIENCY_SAMPLES = 100  # corrections whose gradients decide the layer


def generator_of(editing: Editing) -> torch.Generator:
    """A new generator with the seed of the editing, for all its randomness."""
    return torch.Generator().manual_seed(editing.seed)


def pass_samples(editing: Editing) -> tuple[Sample, ...]:
    """The pass samples that a baseline may use."""
    return editing.batch.pass_samples[:MAX_PASS_SAMPLES]


def edited_layer(editing: Editing, stack: str | None = None) -> Layer:
    """The layer of earlier batches, or else the most salient middle block, of one stack if given."""
    network = editing.network
    if editing.before is not None and editing.before.layer is not None:
        return layer_at(network.layers, editing.before.layer)
    candidates = [layer for layer in middle_layers(network.layers) if stack in (None, layer.stack)]
    if len(candidates) == 1:
        return candidates[0]
    corrections = editing.batch.corrections[:SALIENCY_SAMPLES]
    return choose_layer(layer_saliency(network, corrections, candidates), candidates)


def reading_stack(network: Network) -> str:
    """The stack that reads the prompt: the encoder if there is one."""
    return network.layers[0].stack


def writing_stack(network: Network) -> str:
    """The stack that generates the answer: the decoder if there is one."""
    decoder = [layer.stack for layer in network.layers if in_seq2seq_decoder(network, layer)]
    return decoder[0] if decoder else network.layers[0].stack


def likelihood(*, kl_weight: float, learning_rate: float) -> TrainingOptions:
    """Options of the product's training loop with the published loss: plain likelihood of the corrections."""
    return TrainingOptions(margin=0.0, max_steps=NUM_ROUNDS, kl_weight=kl_weight, learning_rate=learning_rate)


def prepared_at(editing: Editing, layer: Layer, *, keep: bool = True) -> Prepared:
    """The editing's corrections, and its pass samples if `keep`, with their states cached at the layer."""
    kept = pass_samples(editing) if keep else ()
    return prepare_dataset(editing.network, editing.batch.corrections, kept, layer, editing.cache)


def weight_of(network: Network, layer: Layer) -> torch.Tensor:
    """The layer's weight [d_out, d_in]; some modules store its transpose."""
    weight = network.module(layer.path).weight
    assert isinstance(weight, torch.Tensor)
    return weight.T if layer.transposed else weight


def trained(
    editing: Editing, prepared: Prepared, learner: Learner, options: TrainingOptions
) -> NetworkWithDeltas:
    """Train the learner in the product's loop and add its best term to the earlier deltas."""
    network = editing.network
    term, _ = train(network, prepared, learner, options, generator_of(editing))
    assert isinstance(term, Dense | LowRank)
    return merged(network, prepared.layer.path, earlier_deltas(editing), term.dense())


def with_earlier_deltas(editing: Editing) -> AbstractContextManager[None]:
    """While active, the network has the deltas of earlier batches."""
    return applied(editing.network.model, earlier_deltas(editing))
