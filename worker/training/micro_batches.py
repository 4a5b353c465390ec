"""The gradients of one training step; a pass that runs out of memory is split in two.

The objective of a step is a weighted sum over samples, so the gradients of its parts add up to the whole
(gradient accumulation). Must not know what is trained or which objective it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
import torch
from torch import Tensor, nn

from salem.deltas.terms import Term
from worker.activations.trunk_sets import Chunk

_CPU_ALLOCATOR = (
    "DefaultCPUAllocator"  # in the plain RuntimeError that torch raises when host memory runs out
)


@dataclass(frozen=True)
class WeightedLoss:
    """One summand of a step's objective: a weight times the mean loss over a chunk's samples."""

    chunk: Chunk
    weight: float
    mean_loss: Callable[[Chunk, Term], Tensor]  # -> []


class MicroBatches:
    """Computes the gradients of steps, and remembers how many samples fit in a pass."""

    def __init__(self) -> None:
        self.largest: int | None = None  # samples of one loss in a pass; None: no limit found so far

    def gradients(
        self, losses: Sequence[WeightedLoss], term: Callable[[], Term], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        """The gradient of the summed losses for each parameter, zero for a parameter that takes no part.

        Raises:
            torch.OutOfMemoryError, MemoryError, RuntimeError: not even one sample fits.
        """
        while True:
            try:
                return self._accumulated(losses, term, parameters)
            except (MemoryError, RuntimeError) as error:
                longest = max(len(loss.chunk) for loss in losses)
                largest = min(self.largest or longest, longest)
                if largest == 1 or not ran_out_of_memory(error):
                    raise
            # Outside the handler, because its traceback would keep the failed pass in memory.
            self.largest = largest // 2
            for loss in losses:
                loss.chunk.memory.forget()
            structlog.get_logger().warning("out of memory: smaller passes", samples=self.largest)

    def _accumulated(
        self, losses: Sequence[WeightedLoss], term: Callable[[], Term], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        total: list[Tensor] = []
        for part in self._passes(losses):
            now = term()
            value = torch.stack([loss.weight * loss.mean_loss(loss.chunk, now) for loss in part]).sum()
            found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
            total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
        return total

    def _passes(self, losses: Sequence[WeightedLoss]) -> list[list[WeightedLoss]]:
        if self.largest is None:
            return [list(losses)]
        return [[part] for loss in losses for part in _split(loss, self.largest)]


def _split(loss: WeightedLoss, largest: int) -> list[WeightedLoss]:
    """Parts of at most `largest` samples; each part's weight is in proportion to its samples."""
    n = len(loss.chunk)
    if n <= largest:
        return [loss]
    return [
        replace(loss, chunk=loss.chunk.rows(rows), weight=loss.weight * len(rows) / n)
        for rows in torch.split(torch.arange(n), largest)
    ]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the host or the device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_ALLOCATOR in str(error)
