"""A training loop for methods that change more than one layer: whole models, adapters, and several editors.

The same two objectives, chunks, rounds and stopping rule as the product's loop for one layer
(`worker.training.loop`): train until the corrections hold, keep the best state. Does not know what it
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


class Trainee(Protocol[State]):
    """Something trainable: its parameters, how it acts on the network, and its state."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def acting(self) -> AbstractContextManager[object]: ...

    def state(self) -> State: ...


def fit(
    network: Network,
    prepared: Prepared,
    trainee: Trainee[State],
    *,
    learning_rate: float,
    kl_weight: float,
    generator: torch.Generator,
) -> State:
    """Train. Returns the state with the most correct edits; of equals, the one with the least divergence.

    Every round sees all corrections once, a chunk at a time, each beside a chunk of pass samples.
    """
    optimizer = torch.optim.Adam(trainee.parameters(), lr=learning_rate)
    edits, keeps = prepared.corrections.cycle(generator), prepared.keep.cycle(generator)
    best, kept = _standing(network, prepared, trainee), trainee.state()
    for round_ in range(1, NUM_ROUNDS + 1):
        for _ in prepared.corrections.chunks:
            optimizer.zero_grad(set_to_none=True)
            with trainee.acting():
                loss = nll_per_sample(resume(network, next(edits).trunk)).mean()
                if prepared.keep.chunks and kl_weight:
                    loss = loss + kl_weight * divergence(network, next(keeps)).mean()
            loss.backward()
            optimizer.step()
        if round_ % CHECK_EVERY and round_ < NUM_ROUNDS:
            continue
        now = _standing(network, prepared, trainee)
        if now > best:
            best, kept = now, trainee.state()
        elif best[0] == 1.0:
            break
        if now[0] < 1.0 and round_ >= LOOSEN_AFTER:
            kl_weight /= 2
    return kept


def divergence(network: Network, chunk: Chunk) -> Tensor:
    """KL from the answers before to those now -> [n]."""
    assert chunk.before is not None
    return kl_per_sample(chunk.before, resume(network, chunk.trunk))


@torch.no_grad()
def _standing(network: Network, prepared: Prepared, trainee: Trainee[State]) -> tuple[float, float]:
    with trainee.acting():
        held = share_held(network, prepared.corrections)
        spread = [divergence(network, chunk) for chunk in prepared.validation.chunks]
    return held, -float(torch.cat(spread).mean()) if spread else 0.0


@torch.no_grad()
def share_held(network: Network, corrections: TrunkSet) -> float:
    """Share of the samples that the network currently answers correctly."""
    margins = [min_margin_per_sample(resume(network, chunk.trunk)) for chunk in corrections.chunks]
    return float((torch.cat(margins) > 0).float().mean())
