"""Scope features and points of texts: each text is read once per job, and its point is cached between jobs.

A metric's trials, its training, and the scopes read the same texts. Points are a few numbers per text, so the
cache keeps them; features stay in memory. Must not know what points are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from salem.models.network import Network
from salem.models.tokens import count_tokens
from salem.records import TextInput
from salem.scope.features import FEATURE_BATCH, FeatureSpec, features
from salem.scope.metric import Metric
from worker.activations.cache import SampleCache
from worker.activations.stable_chunks import stable_chunks


class FeatureMemo:
    """Features of a network without deltas; each text is read once per reading."""

    def __init__(self, network: Network, cache: SampleCache | None = None) -> None:
        self.network, self._cache = network, cache
        self._known: dict[FeatureSpec, dict[str, Tensor]] = {}

    def read(self, inputs: Sequence[TextInput], reading: FeatureSpec) -> Tensor:
        """Features -> [n, f]; n may be 0 only if something was read before.

        Raises:
            ValueError: there are no inputs and nothing was read before, so f is not known.
        """
        known = self._known.setdefault(reading, {})
        names = [text.content_hash for text in inputs]
        unread = {name: text for name, text in zip(names, inputs, strict=True) if name not in known}
        new = list(unread.values())
        for chunk in _chunks(self.network, new):
            texts = [new[row] for row in chunk]
            found = features(self.network, texts, reading)  # [c, f]
            known.update(zip((text.content_hash for text in texts), found, strict=True))
        if names:
            return torch.stack([known[name] for name in names])
        if not known:
            raise ValueError("features of no inputs")
        return next(iter(known.values()))[None][:0]

    def points(self, inputs: Sequence[TextInput], metric: Metric) -> Tensor:
        """Points of texts that later jobs will read again -> [n, m]."""

        def read(texts: Sequence[TextInput]) -> Tensor:
            return metric.project(self.read(texts, metric.feature_spec))

        return cached_points(self.network, inputs, metric, read, self._cache)


def cached_points(
    network: Network,
    inputs: Sequence[TextInput],
    metric: Metric,
    read: Callable[[Sequence[TextInput]], Tensor],
    cache: SampleCache | None,
) -> Tensor:
    """Points of texts -> [n, m], chunk by chunk: from the cache, else read and put there.

    Args:
        read: the points of some texts -> [c, m].
    """
    if not inputs:
        return read(inputs)
    points: dict[int, Tensor] = {}
    for chunk in _chunks(network, inputs):
        texts = [inputs[row] for row in chunk]
        key = cache.key("points", texts, metric.sha256) if cache and metric.sha256 else None
        known = cache.get(key) if cache and key else None
        found = known["points"].to(metric.center.device) if known else read(texts)
        if cache and key and known is None:
            cache.put(key, {"points": found})
        points.update(zip(chunk, found, strict=True))
    return torch.stack([points[row] for row in range(len(inputs))])


def _chunks(network: Network, inputs: Sequence[TextInput]) -> Iterator[list[int]]:
    return stable_chunks(inputs, count_tokens(network.tokenizer, inputs), FEATURE_BATCH)
