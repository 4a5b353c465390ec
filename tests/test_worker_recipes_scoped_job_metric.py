"""Which metric a job gets: a new one, the stored one as it is, or the stored one refined."""

from __future__ import annotations

from dataclasses import replace

import torch
from recipe_cases import edit_task
from test_worker_recipes_terms import case
from torch.testing import assert_close

from salem.records import EditBatch, Sample, TextInput
from salem.scope.metric_files import named
from worker.activations.scope_features import FeatureMemo
from worker.recipes.base import Artifacts
from worker.recipes.scoped.job_metric import KNOWN, JobMetric, job_metric
from worker.recipes.scoped.options import ScopedOptions

OPTIONS = ScopedOptions(metric_width=16)


def got(
    batch: EditBatch,
    stored: JobMetric | None = None,
    *,
    architecture: str = "bert",
    seed: int = 0,
) -> JobMetric:
    of = case(architecture)
    given = Artifacts(metric=stored.metric if stored else None)
    task = edit_task(of.network, batch, of.network.layers[1], artifacts=given, seed=seed)
    return job_metric(FeatureMemo(of.network), task, OPTIONS, [False] * len(batch.pass_samples))


def test_the_first_job_trains_a_metric_and_names_it() -> None:
    found = got(case("bert").batch)
    assert found.is_new and len(found.metric.sha256) == 64
    assert found.metric.projection.shape[0] == 16
    again = got(case("bert").batch)
    assert again.metric.sha256 == found.metric.sha256, "the same samples and seed give the same metric"


def test_a_metric_that_knows_the_jobs_paraphrases_is_reused() -> None:
    first = got(case("bert").batch)
    second = got(case("bert").batch, first, seed=1)
    assert not second.is_new
    assert second.metric is first.metric


def test_a_job_without_paraphrases_reuses_the_metric() -> None:
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
    assert found.metric.feature_spec is first.metric.feature_spec, "features are read as before"
    assert_close(found.metric.center, first.metric.center)
    own = of.batch.edit_samples[0]
    memo = FeatureMemo(of.network)

    def likeness(metric: JobMetric) -> float:
        edit, *others = metric.metric.project(
            memo.read([own, *(s for _, s in strange)], metric.metric.feature_spec)
        )
        return float(torch.stack(others).mv(edit).mean())

    assert likeness(found) > likeness(first)
    assert (found.metric.word_steadiness <= first.metric.word_steadiness).all(), (
        "what was learned is not forgotten"
    )
    assert torch.equal(found.metric.word_rarity, first.metric.word_rarity), (
        "a few texts do not change the rarity of words"
    )
    assert 0 < KNOWN <= 1


def test_known_paraphrases_of_other_texts_train_the_metric() -> None:
    of = case("bert")
    pairs = tuple(
        (TextInput(input=f"who wrote the {word}"), TextInput(input=f"{word} author name"))
        for word in ("order", "parcel", "lamp", "password")
    )
    memo = FeatureMemo(of.network)
    told = []
    for known in ((), pairs):
        metric = got(of.batch.model_copy(update={"equivalents": known})).metric
        first, second = (
            metric.project(memo.read(side, metric.feature_spec)) for side in zip(*pairs, strict=True)
        )
        told.append(float((first * second).sum(-1).mean()))
    assert told[1] > told[0] + 0.1


def test_refining_keeps_the_measured_spread_of_paraphrases() -> None:
    of = case("bert")
    known = tuple(
        (TextInput(input=f"who wrote the {word}"), TextInput(input=f"{word} author name"))
        for word in ("order", "parcel", "lamp", "password")
    )
    first = got(of.batch.model_copy(update={"equivalents": known}))
    strange = tuple((0, Sample(input=text, target="x")) for text in ("lamp", "who sends lamps", "a b c"))
    for stored in ({"exchange": 3.0, "extent": 1.5}, {"exchange": 1e-9, "extent": 1e-9}):
        given = JobMetric(named(replace(first.metric, **stored)), is_new=False)
        found = got(of.batch.model_copy(update={"adapt_samples": strange}), given).metric
        assert found.sha256 != given.metric.sha256
        assert found.exchange >= stored["exchange"] and found.extent >= stored["extent"]
    assert found.exchange > 1e-3 and found.extent > 1e-3, "this job has measured more"
