"""How much paraphrases differ under a metric: how many words they exchange, and how far apart they lie.

Only paraphrases by people show how many words paraphrases exchange, because rules exchange almost none.
Augmentations of pass samples show how far apart paraphrases lie, with a generous factor. Must not know what
the two numbers are for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from salem.records import Sample, TextInput
from salem.scope.lexical import WordCounts
from salem.scope.metric import MAX_EXTENT, Metric
from worker.activations.scope_features import FeatureMemo
from worker.dataset.token_limits import augmented, prompts_fit

PROBES = 128  # most pass samples to augment
FEWEST = 20  # changed augmentations needed for an estimate
NEARLY_ALL, TIMES = (
    0.95,
    3.0,
)  # a quantile of the distances, and the factor beyond which no paraphrase is expected
NEAREST = 1e-3  # smallest extent: closer is rounding
FEW = 10  # number of paraphrases that weigh as much as the prior
PRIOR = 0.25  # weight of exchanged words without paraphrases, measured on the sets of docs/log.md

Pairs = Sequence[tuple[TextInput, TextInput]]


def with_spread(
    memo: FeatureMemo, metric: Metric, known: Pairs, probes: Sequence[Sample], rng: random.Random
) -> Metric:
    """The metric with the spread of paraphrases under it.

    Args:
        known: paraphrases of other texts than the job's edits.
        probes: pass samples whose augmentations did not train the metric.
    """
    exchange = _mean_exchange(metric, known, prior=PRIOR)
    return replace(metric, exchange=exchange, extent=_extent(memo, metric, probes[:PROBES], rng))


def exchange_of_job(metric: Metric, paraphrases: Pairs) -> float:
    """The mean weight of exchanged words, with the job's own paraphrases.

    Each job has its own value: one client's style says nothing about another's.
    """
    return _mean_exchange(metric, paraphrases, prior=metric.exchange)


def _mean_exchange(metric: Metric, pairs: Pairs, *, prior: float) -> float:
    """The mean weight of exchanged words, with a prior worth a few pairs."""
    found = [
        WordCounts.of(other).exchanged_weight(WordCounts.of(one), metric.word_weights) for one, other in pairs
    ]
    return (sum(found) + FEW * prior) / (len(found) + FEW)


def _extent(memo: FeatureMemo, metric: Metric, probes: Sequence[Sample], rng: random.Random) -> float:
    """How far from a text its paraphrases are expected to lie, from augmentations that changed something."""
    made = zip(probes, augmented(memo.network, probes, rng, fit=prompts_fit), strict=True)
    changed = [pair for pair in made if pair[0].input != pair[1].input]
    if len(changed) < FEWEST:
        return MAX_EXTENT
    points, others = (
        metric.project(memo.read(side, metric.feature_spec)) for side in zip(*changed, strict=True)
    )
    far = float((1 - (points * others).sum(-1)).quantile(NEARLY_ALL))
    return min(max(TIMES * far, NEAREST), MAX_EXTENT)
