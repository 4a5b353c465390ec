"""The gradients of one step, in as few passes as memory allows: a pass that runs out of it is cut in two.

The objective of a step is a weighted sum over samples, so the gradients of its parts add up to its own
(gradient accumulation). Knows chunks and that a loss is a mean over them; does not know what is trained or
which objective it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog
import torch
from torch import Tensor, nn

from salem.deltas.terms import Term
from worker.activations.trunk_sets import Chunk

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch raises a bare RuntimeError where the host's memory ends


@dataclass(frozen=True)
class Share:
    """One summand of a step's objective: weight times the mean over a chunk's samples."""

    chunk: Chunk
    weight: float
    mean_loss: Callable[[Chunk, Term], Tensor]  # -> []


class MicroBatches:
    """Computes steps, and remembers how large a pass may be."""

    def __init__(self) -> None:
        self.largest: int | None = None  # samples of a share in one pass; None: never ran out of memory

    def gradients(
        self, shares: Sequence[Share], term: Callable[[], Term], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        """The gradient of the shares' sum by each parameter, zero where it takes no part.

        Raises:
            torch.OutOfMemoryError, MemoryError, RuntimeError: not even one sample fits.
        """
        while True:
            try:
                return self._accumulated(shares, term, parameters)
            except (MemoryError, RuntimeError) as error:
                longest = max(len(share.chunk) for share in shares)
                largest = min(self.largest or longest, longest)
                if largest == 1 or not ran_out(error):
                    raise
            # Outside of the handler, whose traceback would keep the failed pass alive.
            self.largest = largest // 2
            for share in shares:
                share.chunk.memory.forget()
            structlog.get_logger().warning("out of memory: smaller passes", samples=self.largest)

    def _accumulated(
        self, shares: Sequence[Share], term: Callable[[], Term], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        total: list[Tensor] = []
        for part in self._passes(shares):
            now = term()
            loss = torch.stack([share.weight * share.mean_loss(share.chunk, now) for share in part]).sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
        return total

    def _passes(self, shares: Sequence[Share]) -> list[list[Share]]:
        if self.largest is None:
            return [list(shares)]
        return [[part] for share in shares for part in _cut(share, self.largest)]


def _cut(share: Share, largest: int) -> list[Share]:
    """Parts of at most so many samples, each weighing as much as it has of them."""
    n = len(share.chunk)
    if n <= largest:
        return [share]
    return [
        replace(share, chunk=share.chunk.rows(rows), weight=share.weight * len(rows) / n)
        for rows in torch.split(torch.arange(n), largest)
    ]


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ended, on either side."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_ALLOCATOR in str(error)
