"""Reads features and points of texts: each text once in a job, and pass samples once for all jobs.

A metric's trials, its training and the scopes read the same texts. Between jobs a cache keeps the points of
pass samples and of what is measured, which are few numbers each; features stay in memory. Does not know what
points are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from salem.models.network import Network
from salem.records import TextInput
from salem.scope.features import Reading, features
from salem.scope.metric import Metric
from worker.activations.cache import SampleCache


class FeatureMemo:
    """Features of a network without deltas, each text read once per reading."""

    def __init__(self, network: Network, cache: SampleCache | None = None) -> None:
        self.network, self._cache = network, cache
        self._known: dict[Reading, dict[str, Tensor]] = {}

    def read(self, inputs: Sequence[TextInput], reading: Reading) -> Tensor:
        """Features -> [n, f]; n may be 0 only where something was read before.

        Raises:
            ValueError: no inputs, and none before: the number of features is not known.
        """
        known = self._known.setdefault(reading, {})
        names = [text.content_hash for text in inputs]
        new = {name: text for name, text in zip(names, inputs, strict=True) if name not in known}
        if new:
            known.update(zip(new, features(self.network, list(new.values()), reading), strict=True))
        if names:
            return torch.stack([known[name] for name in names])
        if not known:
            raise ValueError("features of no inputs")
        return next(iter(known.values()))[None][:0]

    def points(self, inputs: Sequence[TextInput], metric: Metric) -> Tensor:
        """Points of texts that later jobs will ask for again -> [n, m]."""
        return kept_points(
            self._cache, inputs, metric, lambda: metric.place(self.read(inputs, metric.reading))
        )


def kept_points(
    cache: SampleCache | None, inputs: Sequence[TextInput], metric: Metric, read: Callable[[], Tensor]
) -> Tensor:
    """Points of texts -> [n, m]: from the cache, or read and left there."""
    key = cache.key("points", inputs, metric.sha256) if cache and metric.sha256 else None
    known = cache.get(key) if cache and key else None
    if known is not None:
        return known["points"].to(metric.center.device)
    found = read()
    if cache and key and len(found):
        cache.put(key, {"points": found})
    return found
