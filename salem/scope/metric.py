"""Metric: places inputs on a unit sphere where equivalent requests lie close together.

Each hosted model has one. It is a small learned map from an input's features, together with the weight of
each word and how much equivalent texts differ. Must not know keys, radii, or how it is trained.
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
from salem.scope.features import FeatureSpec, features

UNMEASURED_EXCHANGE = 0.24  # the mean weight of exchanged words, where it was not measured
MAX_EXTENT = 2.0  # the largest 1 - cosine


@dataclass(frozen=True)
class Metric:
    """Standardizes, projects, and normalizes features: `f` features -> points in `m` dimensions."""

    feature_spec: FeatureSpec
    center: Tensor  # [f] subtracted from the features
    spread: Tensor  # [f] then divided by
    projection: Tensor  # [m, f]
    word_rarity: Tensor  # [WORD_BUCKETS] in (0, 1]: near 1 for rare words; on the CPU
    word_steadiness: Tensor  # [WORD_BUCKETS] in (0, 1]: how reliably equivalents keep a word; on the CPU
    exchange: float = UNMEASURED_EXCHANGE  # mean weight of the words that equivalents exchange
    extent: float = MAX_EXTENT  # no equivalent of a text is expected beyond this 1 - cosine
    sha256: str = ""  # of its file

    @cached_property
    def word_weights(self) -> list[float]:
        """How much each word counts when it stands in place of another: [WORD_BUCKETS] in (0, 1]."""
        found: list[float] = (self.word_rarity * self.word_steadiness.square()).tolist()
        return found

    def standardize(self, features: Tensor) -> Tensor:
        return (features - self.center) / self.spread

    def project(self, features: Tensor) -> Tensor:
        """Features [n, f] -> points on the unit sphere [n, m]."""
        return F.normalize(self.standardize(features) @ self.projection.T, dim=-1)

    def embed(self, network: Network, inputs: Sequence[TextInput]) -> Tensor:
        """The points of inputs [n, m]. Runs the base up to the block that is read."""
        return self.project(features(network, inputs, self.feature_spec))

    def to(self, device: torch.device) -> Metric:
        """The metric on a device; the same object if it is there already, because scopes share it."""
        if self.projection.device == device:
            return self
        return replace(
            self,
            feature_spec=replace(self.feature_spec, rarity=self.feature_spec.rarity.to(device)),
            center=self.center.to(device),
            spread=self.spread.to(device),
            projection=self.projection.to(device),
        )
