"""Metric: where an input lies among others, so that equivalent requests lie close.

A small learned map, one per hosted model, of the features of an input to the unit sphere, and with it what
each word tells and how much equivalents differ. Does not know keys, radii, or how it is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from salem.models.network import Network
from salem.records import TextInput
from salem.scope.features import Reading, features

EXCHANGE = 0.24  # of metrics that were made before it was measured: their words cost what they did then
EVERYWHERE = 2.0  # the largest 1 - cosine


@dataclass(frozen=True)
class Metric:
    """Standardize, project, normalize: features -> points among which equivalents lie close.

    `f` features, `m` dimensions. `sha256` names the file that it was read from or written to.
    """

    reading: Reading
    center: Tensor  # [f] subtracted from the features
    spread: Tensor  # [f] then divided by
    projection: Tensor  # [m, f]
    word_rarity: Tensor  # [NUMBERS] in (0, 1]: near 1 for words that hardly ever occur; on the CPU
    word_steadiness: Tensor  # [NUMBERS] in (0, 1]: how reliably equivalents keep a word; on the CPU
    exchange: float = EXCHANGE  # mean weight of the words that equivalents exchange
    extent: float = EVERYWHERE  # 1 - cosine beyond which no equivalent of a text is taken to lie
    sha256: str = ""

    @cached_property
    def tells(self) -> list[float]:
        """What each word tells when it stands in place of another: [NUMBERS] in (0, 1]."""
        found: list[float] = (self.word_rarity * self.word_steadiness.square()).tolist()
        return found

    def standardize(self, features: Tensor) -> Tensor:
        return (features - self.center) / self.spread

    def place(self, features: Tensor) -> Tensor:
        """Features [n, f] -> points on the unit sphere [n, m]."""
        return F.normalize(self.standardize(features) @ self.projection.T, dim=-1)

    def read(self, network: Network, inputs: Sequence[TextInput]) -> Tensor:
        """The points of inputs [n, m]; runs the base up to the block that is read."""
        return self.place(features(network, inputs, self.reading))

    def to(self, device: torch.device) -> Metric:
        """The metric on a device; itself where it is there, for all scopes of a model share the same few."""
        if self.projection.device == device:
            return self
        return replace(
            self,
            reading=replace(self.reading, rarity=self.reading.rarity.to(device)),
            center=self.center.to(device),
            spread=self.spread.to(device),
            projection=self.projection.to(device),
        )
