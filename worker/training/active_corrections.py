"""Which corrections take part in a round: those that do not hold with the margin yet.

How large a step a correction takes is decided per correction: the extent-aware editing that SaLEM leaves as
future work. Must not know pass samples or when training stops.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from salem.deltas.terms import Term, act, adding
from salem.models.batching import Answers
from salem.models.network import Network
from worker.activations.trunk_sets import Chunk, TrunkSet
from worker.numerics.losses import CorrectionStates, correction_loss_per_sample, correction_states
from worker.training.micro_batches import WeightedLoss
from worker.training.options import TrainingOptions


def answers_with_term(network: Network, chunk: Chunk, term: Term) -> Answers:
    """The model's answers to a chunk with a term at its layer."""
    with adding(network.module(chunk.trunk.layer.path), act(term, chunk.firing)):
        return chunk.resume(network)


class ActiveCorrections:
    """Corrections that training still has to change, by their last answers."""

    def __init__(self, network: Network, corrections: TrunkSet, options: TrainingOptions) -> None:
        self._network, self._corrections, self._options = network, corrections, options
        self._rests = torch.zeros(corrections.num_samples, dtype=torch.bool)

    @property
    def any(self) -> bool:
        """Whether at least one correction is active."""
        return not bool(self._rests.all())

    def losses(self) -> list[WeightedLoss]:
        """The losses of all active corrections. Resting ones do not change the weight of the others."""
        num = len(self._rests)
        return [loss for chunk in self._corrections.chunks for loss in self._losses(chunk, num)]

    def losses_by_chunk(self, generator: torch.Generator) -> Iterator[list[WeightedLoss]]:
        """The same losses one chunk at a time, in a new order each time."""
        chunks = self._corrections.chunks
        order = torch.randperm(len(chunks), generator=generator).tolist() if len(chunks) > 1 else [0]
        for index in order:
            yield self._losses(chunks[index], len(chunks[index]))

    def _losses(self, chunk: Chunk, num: int) -> list[WeightedLoss]:
        """The loss of a chunk's active corrections, if there are any; each weighs 1 / `num`."""
        rows = (~self._rests[chunk.samples]).nonzero()[:, 0]
        if not len(rows):
            return []
        part = chunk if len(rows) == len(chunk) else chunk.rows(rows.to(chunk.samples.device))
        return [WeightedLoss(part, len(part) / num, self._loss)]

    def update(self, states: CorrectionStates, samples: Tensor | None = None) -> None:
        """Record the states of some samples [n], or of all; without a margin, no correction ever rests."""
        if self._options.margin > 0 and self._options.rest_when_held:
            index = slice(None) if samples is None else samples
            self._rests[index] = states.satisfied(self._options.margin).cpu()

    def _loss(self, chunk: Chunk, term: Term) -> Tensor:
        answers = answers_with_term(self._network, chunk, term)
        self.update(correction_states(answers, chunk.before), chunk.samples)
        return correction_loss_per_sample(answers, chunk.before, self._options.margin).mean()
