"""Which metric a job gets: a new one, the stored one as it is, or the stored one refined."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from test_worker_recipes import case
from torch.testing import assert_close

from salem.metric import EVERYWHERE, EXCHANGE
from salem.metric_files import named
from salem.records import EditBatch, Hyperparameters, Sample, TextInput
from worker.feature_memo import FeatureMemo
from worker.metric_training import FEW, KNOWN, LEAST_EXCHANGE, JobMetric, job_metric

HYPER = Hyperparameters(metric_width=16)


def got(
    batch: EditBatch,
    stored: JobMetric | None = None,
    *,
    architecture: str = "bert",
    seed: int = 0,
    apart: Sequence[Sample] = (),
) -> JobMetric:
    of = case(architecture)
    generator = torch.Generator().manual_seed(seed)
    given = stored.metric if stored else None
    layer = of.network.layers[1]
    memo, learning = FeatureMemo(of.network), of.batch.pass_samples
    return job_metric(memo, batch, learning, apart, layer, HYPER, generator, given)


def test_the_first_job_trains_a_metric_and_names_it() -> None:
    found = got(case("bert").batch)
    assert found.is_new and len(found.metric.sha256) == 64
    assert found.metric.projection.shape[0] == 16
    again = got(case("bert").batch)
    assert again.metric.sha256 == found.metric.sha256, "the same samples and seed give the same metric"


def test_a_metric_that_knows_the_jobs_paraphrases_is_taken_as_it_is() -> None:
    first = got(case("bert").batch)
    second = got(case("bert").batch, first, seed=1)
    assert not second.is_new
    assert second.metric is first.metric


def test_a_job_without_paraphrases_cannot_call_a_metric_into_question() -> None:
    batch = case("bert").batch.model_copy(update={"adapt_samples": ()})
    spoiled = got(batch).metric
    found = got(batch, JobMetric(named(spoiled), is_new=False))
    assert not found.is_new


def test_a_metric_that_does_not_know_them_is_refined() -> None:
    of = case("bert")
    first = got(of.batch)
    strange = tuple(
        (0, Sample(input=text, target="x")) for text in ("lamp", "who sends lamps to Berlin", "a b c")
    )
    batch = of.batch.model_copy(update={"adapt_samples": strange})
    found = got(batch, first)
    assert found.is_new and found.metric.sha256 != first.metric.sha256
    assert found.metric.reading is first.metric.reading, "features are read as before"
    assert_close(found.metric.centre, first.metric.centre)
    own = of.batch.edit_samples[0]
    memo = FeatureMemo(of.network)

    def likeness(metric: JobMetric) -> float:
        edit, *others = metric.metric.place(memo.read([own, *(s for _, s in strange)], metric.metric.reading))
        return float(torch.stack(others).mv(edit).mean())

    assert likeness(found) > likeness(first)
    assert (found.metric.word_steadiness <= first.metric.word_steadiness).all(), (
        "what was learned is not forgotten"
    )
    assert torch.equal(found.metric.word_rarity, first.metric.word_rarity), "few texts say little about words"
    assert 0 < KNOWN <= 1


def test_known_paraphrases_of_other_texts_teach_it() -> None:
    of = case("bert")
    pairs = tuple(
        (TextInput(input=f"who wrote the {word}"), TextInput(input=f"{word} author name"))
        for word in ("order", "parcel", "lamp", "password")
    )
    memo = FeatureMemo(of.network)
    told = []
    for known in ((), pairs):
        metric = got(of.batch.model_copy(update={"equivalents": known})).metric
        first, second = (metric.place(memo.read(side, metric.reading)) for side in zip(*pairs, strict=True))
        told.append(float((first * second).sum(-1).mean()))
    assert told[1] > told[0] + 0.1


PROBES = tuple(
    Sample(input=f"{who} asked {when} for the {what}", target="other")
    for who in ("Anna", "Peter", "a driver", "the bank")
    for when in ("twice", "on Sunday", "politely")
    for what in ("invoice", "second key", "blue parcel")
)


def test_without_anything_to_tell_by_equivalents_differ_as_they_mostly_do() -> None:
    found = got(case("bert").batch.model_copy(update={"adapt_samples": ()})).metric
    assert found.exchange == pytest.approx(EXCHANGE + LEAST_EXCHANGE)
    assert found.extent == EVERYWHERE


def test_rewordings_of_what_it_was_not_trained_on_tell_how_far_equivalents_lie() -> None:
    batch = case("bert").batch.model_copy(update={"adapt_samples": ()})
    found = got(batch, apart=PROBES).metric
    assert LEAST_EXCHANGE <= found.exchange < EXCHANGE, "rules exchange few words"
    assert 0 < found.extent <= EVERYWHERE


def test_paraphrases_by_people_tell_how_many_words_are_exchanged() -> None:
    """Each exchanges a word that no other text has, in place of one that no other has."""
    batch = case("bert").batch.model_copy(update={"adapt_samples": ()})
    pairs = tuple(
        (TextInput(input=f"zorg{letter}"), TextInput(input=f"quux{letter}")) for letter in "abcdefghij"
    )
    by_rules = got(batch, apart=PROBES).metric.exchange - LEAST_EXCHANGE
    assert len(pairs) == FEW
    found = got(batch.model_copy(update={"equivalents": pairs}), apart=PROBES).metric
    # A word that was once exchanged, and is presumed to be kept once, is half as steady.
    assert found.exchange == pytest.approx((0.25 + by_rules) / 2 + LEAST_EXCHANGE, abs=0.05)


def test_a_jobs_own_paraphrases_tell_it_too() -> None:
    """Here they exchange nothing, where nothing else is known."""
    batch = case("bert").batch
    own = tuple((edit, batch.edit_samples[edit].model_copy()) for edit in (0, 1, 2) * 10)
    found = got(batch.model_copy(update={"adapt_samples": own})).metric
    assert found.exchange == pytest.approx(EXCHANGE * FEW / (len(own) + FEW) + LEAST_EXCHANGE)
