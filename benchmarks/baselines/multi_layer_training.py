"""A training loop for methods that change several layers: whole models, adapters, and sets of editors.

It has the objectives, chunks, rounds, and stopping rule of the product's loop for one layer
(`worker.training.loop`): train until the corrections hold, and keep the best state. Must not know what it
trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.baselines.one_layer import NUM_ROUNDS
from salem.models.network import Network
from salem.models.trunk import resume
from worker.activations.trunk_sets import Chunk, TrunkSet
from worker.numerics.losses import kl_per_sample, min_margin_per_sample, nll_per_sample
from worker.training.loop import CHECK_EVERY, LOOSEN_AFTER, Prepared

State = TypeVar("State", covariant=True)


class Trainable(Protocol[State]):
    """What the loop trains."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters to optimize."""

    def acting(self) -> AbstractContextManager[object]:
        """While active, the network answers as edited."""

    def state(self) -> State:
        """A detached copy of the current state."""


def fit(
    network: Network,
    prepared: Prepared,
    trainable: Trainable[State],
    *,
    learning_rate: float,
    kl_weight: float,
    generator: torch.Generator,
) -> State:
    """Train; return the state with the most correct edits and, among equals, the least divergence.

    Each round reads all corrections once, one chunk per step, together with a chunk of pass samples.
    """
    optimizer = torch.optim.Adam(trainable.parameters(), lr=learning_rate)
    edits, keeps = prepared.corrections.cycle(generator), prepared.keep.cycle(generator)
    best, kept = _score(network, prepared, trainable), trainable.state()
    for round_ in range(1, NUM_ROUNDS + 1):
        for _ in prepared.corrections.chunks:
            optimizer.zero_grad(set_to_none=True)
            with trainable.acting():
                loss = nll_per_sample(resume(network, next(edits).trunk)).mean()
                if prepared.keep.chunks and kl_weight:
                    loss = loss + kl_weight * divergence(network, next(keeps)).mean()
            loss.backward()
            optimizer.step()
        if round_ % CHECK_EVERY and round_ < NUM_ROUNDS:
            continue
        now = _score(network, prepared, trainable)
        if now > best:
            best, kept = now, trainable.state()
        elif best[0] == 1.0:
            break
        if now[0] < 1.0 and round_ >= LOOSEN_AFTER:
            kl_weight /= 2
    return kept


def divergence(network: Network, chunk: Chunk) -> Tensor:
    """KL divergence of the current answers from those before the edit -> [n]."""
    assert chunk.before is not None
    return kl_per_sample(chunk.before, resume(network, chunk.trunk))


@torch.no_grad()
def _score(network: Network, prepared: Prepared, trainable: Trainable[State]) -> tuple[float, float]:
    """(share of correct edits, minus the mean divergence): higher is better."""
    with trainable.acting():
        correct = share_correct(network, prepared.corrections)
        divergences = [divergence(network, chunk) for chunk in prepared.validation.chunks]
    return correct, -float(torch.cat(divergences).mean()) if divergences else 0.0


@torch.no_grad()
def share_correct(network: Network, corrections: TrunkSet) -> float:
    """The share of samples that the network currently answers correctly."""
    margins = [min_margin_per_sample(resume(network, chunk.trunk)) for chunk in corrections.chunks]
    return float((torch.cat(margins) > 0).float().mean())
