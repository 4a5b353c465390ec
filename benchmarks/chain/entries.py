"""Random entries of the recipe's default width, and their delta files. Must not know versions."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.chain.service import BLOCKS, Bench
from salem.deltas.files import pack
from salem.deltas.terms import LayerDelta, Scoped
from salem.records import Delta
from salem.scope.features import FeatureSpec, features, token_rarity
from salem.scope.first_token import first_tokens
from salem.scope.lexical import WORD_BUCKETS, WordCounts, pack_words
from salem.scope.metric import Metric
from salem.scope.metric_files import named
from salem.scope.state_scope import StateScope
from worker.recipes.scoped.options import ScopedOptions

METRIC_WIDTH = ScopedOptions().metric_width
KEY_FIELDS = (
    "keys",
    "radii",
    "token_ids",
    "token_probabilities",
    "first_token_weights",
    "words",
    "lexical_weights",
)


def all_entries(bench: Bench) -> Scoped:
    """One entry per text, with the text's features as its key and a random metric of the default width."""
    network, texts, layer = bench.network, bench.texts, bench.layer
    draw = torch.Generator().manual_seed(1)
    spec = FeatureSpec(layer.stack, BLOCKS // 2, False, token_rarity(network, texts))
    pooled = features(network, texts, spec)  # [e, f]
    projection = torch.randn(METRIC_WIDTH, pooled.shape[1], generator=draw)
    metric = named(
        Metric(spec, pooled.mean(0), pooled.std(0) + 1e-2, projection, *torch.ones(2, WORD_BUCKETS))
    )
    e = len(texts)
    scope = StateScope(
        metric, metric.project(pooled), torch.full((e,), 0.95), torch.arange(e).float(),
        **vars(first_tokens(network, texts)), first_token_weights=torch.full((e,), 0.2),
        words=pack_words([WordCounts.of(text) for text in texts]), lexical_weights=torch.full((e,), 0.1),
    )  # fmt: skip
    values = torch.randn(e, 1, layer.d_out, generator=draw)
    return Scoped(scope, values, torch.zeros(e, 0, layer.d_in), torch.zeros(e, 0, layer.d_out))


def one_entry(whole: Scoped, place: int) -> Scoped:
    """The part of the term that belongs to one entry."""
    row = torch.tensor([place])
    key_fields = {name: getattr(whole.scope, name)[row] for name in KEY_FIELDS}
    scope = replace(whole.scope, **key_fields, owners=torch.zeros(1))
    return Scoped(scope, whole.values[row], whole.down[row], whole.up[row])


def stored(bench: Bench, term: Scoped, metric: str) -> Delta:
    """Store the term as a delta file.

    Args:
        metric: the blob of its metric.
    """
    data = pack(LayerDelta(bench.layer.path, (term,)), base_sha256=str(bench.model.sha256))
    blob = bench.services.blobs.put(data)
    return Delta(
        layer=bench.layer.path, blob=blob, num_bytes=len(data), kind="scoped", rank=None, metric=metric
    )
