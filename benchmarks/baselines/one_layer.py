"""What all baselines that edit one layer share: which layer, which samples, how many steps.

All of them edit the layer that the product's rule picks for plain changes of weights
(`worker.selection.saliency`: the most
salient of the middle blocks), train with the cached trunk, and see the same pass samples, so that they
differ in nothing but the method. Later batches edit the layer of the first. Does not know any method.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from benchmarks.baselines.added import Added, earlier, merged
from benchmarks.baselines.contract import Editing
from salem.deltas.terms import Dense, LowRank, applied
from salem.models.layers import layer_at
from salem.models.network import Network
from salem.models.trunk import in_seq2seq_decoder
from salem.records import Layer, Sample
from worker.selection.candidates import middle_layers
from worker.selection.saliency import choose_layer, layer_saliency
from worker.training.loop import Learner, Prepared, prepare_dataset, train
from worker.training.options import TrainingOptions

NUM_ROUNDS = 40  # over all corrections; a step takes up to 32 of them and 32 pass samples
MAX_PASS_SAMPLES = 1_000  # four fifths are trained on, about as many as the steps can read
SALIENCY_SAMPLES = 100  # corrections whose gradients choose the layer


def generator_of(editing: Editing) -> torch.Generator:
    """The source of all randomness of an editing."""
    return torch.Generator().manual_seed(editing.seed)


def pass_samples(editing: Editing) -> tuple[Sample, ...]:
    """The pass samples that a baseline reads."""
    return editing.batch.pass_samples[:MAX_PASS_SAMPLES]


def edited_layer(editing: Editing, stack: str | None = None) -> Layer:
    """The layer of earlier batches, else the most salient of the middle blocks (of one stack, if named)."""
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
    """The stack that writes the answer: the decoder if there is one."""
    beside = [layer.stack for layer in network.layers if in_seq2seq_decoder(network, layer)]
    return beside[0] if beside else network.layers[0].stack


def likelihood(*, kl_weight: float, learning_rate: float) -> TrainingOptions:
    """Options of the product's training loop: plain likelihood on the corrections, as published."""
    return TrainingOptions(margin=0.0, max_steps=NUM_ROUNDS, kl_weight=kl_weight, learning_rate=learning_rate)


def prepared_at(editing: Editing, layer: Layer, *, keep: bool = True) -> Prepared:
    """The samples of an editing, run up to the layer; with pass samples if `keep`."""
    kept = pass_samples(editing) if keep else ()
    return prepare_dataset(editing.network, editing.batch.corrections, kept, layer, editing.cache)


def weight_of(network: Network, layer: Layer) -> torch.Tensor:
    """The layer's weight as [d_out, d_in], however the module stores it."""
    weight = network.module(layer.path).weight
    assert isinstance(weight, torch.Tensor)
    return weight.T if layer.transposed else weight


def trained(editing: Editing, prepared: Prepared, learner: Learner, options: TrainingOptions) -> Added:
    """Run the product's training loop on a learner and add its best term to the earlier deltas."""
    network = editing.network
    term, _ = train(network, prepared, learner, options, generator_of(editing))
    assert isinstance(term, Dense | LowRank)
    return merged(network, prepared.layer.path, earlier(editing), term.dense())


def with_earlier(editing: Editing) -> AbstractContextManager[None]:
    """While active, the network answers as after the earlier batches."""
    return applied(editing.network.model, earlier(editing))
