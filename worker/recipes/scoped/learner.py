"""Trains the values of entries inside fixed scopes.

Has parameters and yields a term; `worker.training.loop` runs the training. Must not know how scopes are
drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from salem.deltas.terms import Scoped
from salem.records import Layer
from salem.scope.scope import Scope


class ScopedLearner:
    """Trains a value for each entry and answer position and, for entries that need one, a rank-r term.

    The scope is fixed. A value also serves paraphrases that training never saw. A low-rank term reads tokens,
    so it fits those of the edit; an entry needs one if its layer does not write the answer but must hold
    several tokens of it.
    """

    shared = False  # each edit has its own value

    def __init__(
        self,
        start: Scoped,
        *,
        rank: int,
        needed: Tensor,  # [e] bool: entries that get a rank-r term
        scale: float,
        generator: torch.Generator,
    ) -> None:
        (e, _, d_out), d_in = start.values.shape, start.down.shape[-1]
        device = start.values.device
        down = torch.randn(e, rank, d_in, generator=generator) / d_in**0.5
        self.start, self.scale = start, scale
        self.needed = needed.to(device)[:, None, None]
        self.values = nn.Parameter(start.values / scale)
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(e, rank, d_out, device=device))

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter((self.values, self.down, self.up) if self.up.numel() else (self.values,))

    def term(self) -> Scoped:
        """Values train in units of `scale`, so one learning rate serves models of any width."""
        return replace(
            self.start,
            values=self.values * self.scale,
            down=self.down * self.needed,
            up=self.up * self.needed * self.scale,
        )


def empty_entries(
    scope: Scope, num_entries: int, layer: Layer, num_positions: int, device: torch.device
) -> Scoped:
    """Entries that add nothing yet, with a zero value for each answer position."""
    return Scoped(
        scope,
        values=torch.zeros(num_entries, num_positions, layer.d_out, device=device),
        down=torch.zeros(num_entries, 0, layer.d_in, device=device),
        up=torch.zeros(num_entries, 0, layer.d_out, device=device),
    )
