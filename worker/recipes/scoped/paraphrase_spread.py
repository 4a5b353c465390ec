"""How much equivalents differ in a metric: how many words they exchange, and how far apart they lie.

How many words equivalents exchange, people's paraphrases alone can tell: rules exchange next to none, and who
has sent no paraphrase means people all the same. How far apart they lie is told by rewordings that rules make
of pass samples, generously. Knows texts and points; does not know what they are for.
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

PROBES = 128  # pass samples whose rewordings are looked at
FEWEST = 20  # of them, for distances to say anything
NEARLY_ALL, TIMES = (
    0.95,
    3.0,
)  # a quantile of the distances, and how many times as far no equivalent is taken to lie
NEAREST = 1e-3  # the least that an extent can be: closer is rounding
FEW = 10  # paraphrases that weigh as much as what is presumed without them
PRESUMED = 0.25  # exchanged where nobody has paraphrased; what people exchange on the sets of docs/log.md

Pairs = Sequence[tuple[TextInput, TextInput]]


def gauged(
    memo: FeatureMemo, metric: Metric, known: Pairs, apart: Sequence[Sample], rng: random.Random
) -> Metric:
    """The metric with how much equivalents differ in it.

    Args:
        known: paraphrases that came with other texts than a job's edits.
        apart: pass samples whose rewordings the metric was not trained on.
    """
    exchange = _mean_exchange(metric, known, presumed=PRESUMED)
    return replace(metric, exchange=exchange, extent=_extent(memo, metric, apart[:PROBES], rng))


def exchange_of_job(metric: Metric, paraphrases: Pairs) -> float:
    """The mean weight of the words that equivalents exchange, as a job's own paraphrases tell it, too.

    Told for each job: one client's way with words says nothing about another's.
    """
    return _mean_exchange(metric, paraphrases, presumed=metric.exchange)


def _mean_exchange(metric: Metric, pairs: Pairs, *, presumed: float) -> float:
    """The mean weight of exchanged words, where a few pairs more are presumed to exchange so much."""
    found = [
        WordCounts.of(other).exchanged_weight(WordCounts.of(one), metric.word_weights) for one, other in pairs
    ]
    return (sum(found) + FEW * presumed) / (len(found) + FEW)


def _extent(memo: FeatureMemo, metric: Metric, probes: Sequence[Sample], rng: random.Random) -> float:
    """How far from a text its equivalents are taken to lie, by rewordings that changed something."""
    made = zip(probes, augmented(memo.network, probes, rng, fit=prompts_fit), strict=True)
    changed = [pair for pair in made if pair[0].input != pair[1].input]
    if len(changed) < FEWEST:
        return MAX_EXTENT
    points, others = (
        metric.project(memo.read(side, metric.feature_spec)) for side in zip(*changed, strict=True)
    )
    far = float((1 - (points * others).sum(-1)).quantile(NEARLY_ALL))
    return min(max(TIMES * far, NEAREST), MAX_EXTENT)
