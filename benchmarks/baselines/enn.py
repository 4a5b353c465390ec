"""Editable neural networks (ENN): trains a layer so that a few gradient steps are enough to edit it.

Sinitsin et al., "Editable Neural Networks", ICLR 2020, section 3, equation 4: a bi-level objective. The
inner loop takes k gradient steps on an edit. The outer loss is differentiated through them and adds up three
losses: of the base task, of the edit after the inner loop, and the divergence on unrelated samples after the
inner loop (locality). To apply an edit, take up to ten inner steps until it holds. The inner learning rate is
learned, as in MEND's comparison (Mitchell et al. 2022, section 5). Must not know hypernetworks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.baselines.interface import Editing
from benchmarks.baselines.mend_ahead import CORPUS_SIZE, counterfactual_edits
from benchmarks.baselines.multi_layer_training import divergence, share_correct
from benchmarks.baselines.one_layer import (
    edited_layer,
    generator_of,
    pass_samples,
    prepared_at,
    weight_of,
)
from benchmarks.baselines.weight_deltas import NetworkWithDeltas, first_batch_only, merged
from salem.deltas.terms import Dense, adding
from salem.models.batching import Answers
from salem.models.network import Network
from salem.models.trunk import Trunk, resume
from salem.records import Layer
from worker.activations.trunk_sets import Chunk, TrunkSet
from worker.hypernetworks.meta_training import MetaBatch, meta_batches
from worker.numerics.losses import nll_per_sample
from worker.training.loop import CHUNK, Prepared

INNER_STEPS = 2  # k
MAX_EDIT_STEPS = 10  # inner steps to apply a batch of edits
OUTER_RATE = 1e-4
LOG_RATE_RATE = 0.03  # learning rate of the inner learning rate's logarithm
INNER_SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)  # norm of the first inner step over that of the weight
NUM_OUTER_STEPS = 25  # each costs as much as several steps of other methods
EPISODE = 16  # maximum number of edits in an episode


class EditableLayer:
    """One layer's update before any edit [d_out, d_in], and the learning rate of the inner loop."""

    def __init__(self, network: Network, layer: Layer) -> None:
        self.network, self.layer = network, layer
        self.update = nn.Parameter(torch.zeros(layer.d_out, layer.d_in, device=network.device))
        self.log_rate = nn.Parameter(torch.zeros((), device=network.device))

    def acting(self, update: Tensor) -> AbstractContextManager[None]:
        """While active, this update [d_out, d_in] is added to the layer."""
        return adding(self.network.module(self.layer.path), Dense(update))

    def answers(self, trunk: Trunk, update: Tensor) -> Answers:
        with self.acting(update):
            return resume(self.network, trunk)

    def inner_step(self, trunks: Sequence[Trunk], update: Tensor, *, outer: bool) -> Tensor:
        """`update` [d_out, d_in] after a gradient step on the mean loss; differentiable if `outer`."""
        count = sum(len(trunk.batch) for trunk in trunks)
        gradient = torch.zeros_like(update)
        for trunk in trunks:
            loss = nll_per_sample(self.answers(trunk, update)).sum() / count
            gradient = gradient + torch.autograd.grad(loss, update, create_graph=outer)[0]
        return update - self.log_rate.exp() * gradient


def enn(editing: Editing) -> NetworkWithDeltas:
    """Make one layer editable with other edits, then edit it. `setting`: the weight of the divergence."""
    first_batch_only(editing)
    network, layer = editing.network, edited_layer(editing)
    prepared = prepared_at(editing, layer)
    corpus = editing.corpus[:CORPUS_SIZE] or counterfactual_edits(
        network, pass_samples(editing), editing.seed
    )

    def train_editable() -> EditableLayer:
        editable = EditableLayer(network, layer)
        batches = meta_batches(network, corpus, [layer], random.Random(editing.seed))
        size = min(EPISODE, len(editing.batch.edit_samples))
        make_editable(editable, batches, prepared.keep, size, editing.setting, generator_of(editing))
        return editable

    if corpus:
        editable = editing.shared_work.once(layer.path, train_editable)
    else:
        editable = EditableLayer(network, layer)
        search_rate(editable, [chunk.trunk for chunk in prepared.corrections.chunks])
    return merged(network, layer.path, (), edit(editable, prepared))


def make_editable(
    editable: EditableLayer,
    batches: Sequence[MetaBatch],
    keep: TrunkSet,
    size: int,
    kl_weight: float,
    generator: torch.Generator,
) -> None:
    """Run the outer loop. Uses the plain attention kernel, because only that can be differentiated twice."""
    with sdpa_kernel(SDPBackend.MATH):
        search_rate(editable, [_rows(batches[0], CHUNK, generator)])
        groups = [
            {"params": [editable.update], "lr": OUTER_RATE},
            {"params": [editable.log_rate], "lr": LOG_RATE_RATE},
        ]
        optimizer = torch.optim.Adam(groups)
        keeps = keep.cycle(generator)
        for step in range(NUM_OUTER_STEPS):
            episode = _rows(batches[step % len(batches)], size, generator)
            optimizer.zero_grad(set_to_none=True)
            outer_loss(editable, episode, next(keeps, None), kl_weight).backward()
            optimizer.step()


def outer_loss(editable: EditableLayer, episode: Trunk, kept: Chunk | None, kl_weight: float) -> Tensor:
    """Equation 4: the loss of the task, plus edit and locality losses after the inner loop."""
    update: Tensor = editable.update
    for _ in range(INNER_STEPS):
        update = editable.inner_step([episode], update, outer=True)
    loss = nll_per_sample(editable.answers(episode, update)).mean()
    if kept is None:
        return loss
    task = nll_per_sample(editable.answers(kept.trunk, editable.update)).mean()
    with editable.acting(update):
        return loss + task + kl_weight * divergence(editable.network, kept).mean()


def edit(editable: EditableLayer, prepared: Prepared) -> Tensor:
    """Take inner steps until the batch holds; return the best update [d_out, d_in] by correct samples."""
    trunks = [chunk.trunk for chunk in prepared.corrections.chunks]
    update = editable.update.detach()
    best, kept = -1.0, update
    for _ in range(MAX_EDIT_STEPS):
        update = editable.inner_step(trunks, update.requires_grad_(), outer=False).detach()
        with editable.acting(update):
            held = share_correct(editable.network, prepared.corrections)
        if held > best:
            best, kept = held, update
        if held == 1.0:
            break
    return kept.detach()


def search_rate(editable: EditableLayer, trunks: Sequence[Trunk]) -> None:
    """Choose the inner learning rate from `INNER_SHARES`: the lowest loss of these samples after k steps."""
    layer = editable.layer
    start = torch.zeros(layer.d_out, layer.d_in, device=editable.network.device, requires_grad=True)
    with torch.no_grad():
        editable.log_rate.zero_()
    first = float(editable.inner_step(trunks, start, outer=False).detach().norm())
    size = float(weight_of(editable.network, layer).float().norm())

    def loss_with(share: float) -> float:
        with torch.no_grad():
            editable.log_rate.fill_(float(torch.tensor(share * size / max(first, 1e-12)).log()))
        update: Tensor = start
        for _ in range(INNER_STEPS):
            update = editable.inner_step(trunks, update, outer=False).detach().requires_grad_()
        with torch.no_grad():
            return sum(float(nll_per_sample(editable.answers(one, update)).sum()) for one in trunks)

    loss_with(min(INNER_SHARES, key=loss_with))


def _rows(batch: MetaBatch, size: int, generator: torch.Generator) -> Trunk:
    """Up to `size` edits of a batch, in random order."""
    order = torch.randperm(len(batch.questions.batch), generator=generator)
    return batch.questions.rows(order[:size])
