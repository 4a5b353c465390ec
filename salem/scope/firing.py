"""What scopes read of a batch, and what fires on it. Must not know how a scope decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from salem.scope.lookups import Lookups


@dataclass(frozen=True)
class Reading:
    """What scopes may know of n inputs."""

    questions: Sequence[str]  # the text of each input that text scopes compare
    lookups: Lookups  # words and the base's first tokens, for state scopes
    points: Mapping[str, Tensor] = field(default_factory=dict)  # by the metric's sha256: [n, m]
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))  # where the firing is needed


@dataclass(frozen=True)
class Firing:
    """Which entry acts on each of n inputs."""

    entry: Tensor  # [n] int64; where no scope holds the input: the owner of the nearest key, or any
    margin: Tensor  # [n] likeness to the key minus its radius; positive inside the scope
    gate: Tensor  # [n] in [0, 1]: 1 where the entry acts
    answer_starts: Tensor | None = None  # [n] first answer position, if the batch holds prompts with answers

    def rows(self, index: Tensor) -> Firing:
        """The inputs at `index` [r]."""
        starts = None if self.answer_starts is None else self.answer_starts[index]
        return Firing(self.entry[index], self.margin[index], self.gate[index], starts)
