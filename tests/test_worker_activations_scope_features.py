"""Features and points of a network: read once per job, and points only once for all jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_network
from torch import Tensor

from salem.models.network import Network
from salem.records import TextInput
from salem.scope.features import FeatureSpec, features, token_rarity
from salem.scope.lexical import WORD_BUCKETS
from salem.scope.metric import Metric
from worker.activations import scope_features as feature_memo
from worker.activations.cache import SampleCache
from worker.activations.scope_features import FeatureMemo

TEXTS = [TextInput(input=text) for text in ("where is my order", "the capital of Peru", "i cannot log in")]


@pytest.fixture
def network() -> Network:
    return tiny_network("bert")


@pytest.fixture
def reading(network: Network) -> FeatureSpec:
    return FeatureSpec(network.layers[0].stack, 1, False, token_rarity(network, TEXTS))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the texts that the network runs on."""
    seen: list[str] = []

    def counted(network: Network, inputs: list[TextInput], reading: FeatureSpec) -> Tensor:
        seen.extend(text.input for text in inputs)
        return features(network, inputs, reading)

    monkeypatch.setattr(feature_memo, "features", counted)
    return seen


def test_each_text_is_read_once(network: Network, reading: FeatureSpec, asked: list[str]) -> None:
    memo = FeatureMemo(network)
    first = memo.read(TEXTS[:2], reading)
    again = memo.read([TEXTS[1], TEXTS[2], TEXTS[1]], reading)
    assert sorted(asked) == sorted(text.input for text in TEXTS)
    torch.testing.assert_close(first, features(network, TEXTS[:2], reading))
    assert torch.equal(again[0], first[1]) and torch.equal(again[2], first[1])
    assert memo.read([], reading).shape == (0, first.shape[1])


def test_no_text_at_all_has_no_features(network: Network, reading: FeatureSpec) -> None:
    with pytest.raises(ValueError, match="no inputs"):
        FeatureMemo(network).read([], reading)


def test_points_are_cached_between_jobs_by_the_metrics_hash(
    network: Network, reading: FeatureSpec, asked: list[str], tmp_path: Path
) -> None:
    width = features(network, TEXTS[:1], reading).shape[1]
    projection = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    plain = torch.zeros(width), torch.ones(width)
    words = torch.ones(2, WORD_BUCKETS)
    metric = Metric(reading, *plain, projection, *words, sha256="a" * 64)
    cache = SampleCache(tmp_path, 10**6, "model")
    first = FeatureMemo(network, cache).points(TEXTS, metric)
    assert len(asked) == 3
    assert torch.equal(FeatureMemo(network, cache).points(TEXTS, metric), first)
    assert len(asked) == 3, "read from the cache"
    other = Metric(reading, *plain, projection * 2, *words, sha256="b" * 64)
    FeatureMemo(network, cache).points(TEXTS, other)
    FeatureMemo(network, cache).points(TEXTS[:2], metric)
    assert len(asked) == 8


def test_one_changed_text_leaves_the_points_of_other_chunks_cached(
    network: Network, reading: FeatureSpec, asked: list[str], tmp_path: Path
) -> None:
    texts = [TextInput(input=f"question {number}") for number in range(1_000)]
    width = features(network, texts[:1], reading).shape[1]
    projection = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    words = torch.ones(2, WORD_BUCKETS)
    metric = Metric(reading, torch.zeros(width), torch.ones(width), projection, *words, sha256="a" * 64)
    cache = SampleCache(tmp_path, 10**6, "model")
    FeatureMemo(network, cache).points(texts, metric)
    changed = [*texts[:70], TextInput(input="where is it"), *texts[71:]]
    asked.clear()
    found = FeatureMemo(network, cache).points(changed, metric)
    assert "where is it" in asked and len(asked) < len(texts) / 2
    assert torch.equal(found, FeatureMemo(network).points(changed, metric))
