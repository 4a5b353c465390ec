"""How much equivalents differ in a metric: words from paraphrases, distances from augmentations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from recipe_cases import edit_task
from test_worker_recipes_terms import case

from salem.records import Sample, TextInput
from salem.scope.lexical import WORD_BUCKETS
from salem.scope.metric import MAX_EXTENT, Metric
from worker.activations.scope_features import FeatureMemo
from worker.dataset.augmentation import augment_all
from worker.recipes.scoped import paraphrase_spread as spread
from worker.recipes.scoped.job_metric import job_metric
from worker.recipes.scoped.options import ScopedOptions
from worker.recipes.scoped.paraphrase_spread import (
    FEW,
    FEWEST,
    NEARLY_ALL,
    PRIOR,
    TIMES,
    Pairs,
    exchange_of_job,
    with_spread,
)

APART = tuple(
    Sample(input=f"{who} asked {when} for the {what}", target="other")
    for who in ("Anna", "Peter", "a driver", "the bank")
    for when in ("twice", "on Sunday", "politely")
    for what in ("invoice", "second key", "blue parcel")
)
EXCHANGING: Pairs = [
    (TextInput(input=f"my {letter}lamp"), TextInput(input=f"my {letter}stamp")) for letter in "abcdefgh"
]


def metric() -> Metric:
    """A metric for which every word is equally important."""
    of = case("bert")
    task = edit_task(of.network, of.batch, of.network.layers[1])
    kept = [False] * len(of.batch.pass_samples)
    found = job_metric(FeatureMemo(of.network), task, ScopedOptions(metric_width=16), kept).metric
    return replace(found, word_rarity=torch.ones(WORD_BUCKETS), word_steadiness=torch.ones(WORD_BUCKETS))


def measured(known: Pairs, apart: Sequence[Sample]) -> Metric:
    return with_spread(FeatureMemo(case("bert").network), metric(), known, apart, random.Random(0))


def rewordings(apart: Sequence[Sample]) -> Pairs:
    return list(zip(apart, augment_all(apart, random.Random(0)), strict=True))


def test_without_paraphrases_the_prior_is_used() -> None:
    found = measured([], [])
    assert (found.exchange, found.extent) == (PRIOR, MAX_EXTENT)


def test_augmentations_do_not_measure_the_words_that_people_exchange() -> None:
    """Paraphrases by people are assumed even if the request has none."""
    assert measured([], APART).exchange == PRIOR


@pytest.mark.parametrize("num", [1, 8])
def test_paraphrases_are_averaged_with_the_prior(num: int) -> None:
    """Each paraphrase exchanges one word of weight 1."""
    found = measured(EXCHANGING[:num], APART).exchange
    assert found == pytest.approx((num + FEW * PRIOR) / (num + FEW))


def test_a_jobs_own_paraphrases_count_for_that_job() -> None:
    known = metric()
    assert exchange_of_job(known, []) == pytest.approx(known.exchange)
    found = exchange_of_job(known, EXCHANGING)
    assert found == pytest.approx((len(EXCHANGING) + FEW * known.exchange) / (len(EXCHANGING) + FEW))
    assert exchange_of_job(known, [(EXCHANGING[0][0],) * 2] * 30) == pytest.approx(known.exchange / 4)


def test_the_extent_is_a_multiple_of_a_high_quantile_of_augmentation_distances() -> None:
    found = measured([], APART)
    memo = FeatureMemo(case("bert").network)
    changed = [pair for pair in rewordings(APART) if pair[0].input != pair[1].input]
    points, others = (
        found.project(memo.read(side, found.feature_spec)) for side in zip(*changed, strict=True)
    )
    far = float((1 - (points * others).sum(-1)).quantile(NEARLY_ALL))
    assert 0 < far < MAX_EXTENT / TIMES
    assert found.extent == pytest.approx(TIMES * far)


def test_too_few_or_unchanged_augmentations_do_not_measure_the_extent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert measured([], APART[: FEWEST - 1]).extent == MAX_EXTENT
    monkeypatch.setattr(spread, "augmented", lambda network, samples, rng, fit: list(samples))
    found = measured([], APART)
    assert found.extent == MAX_EXTENT
