"""Editors as rows: published when their job ends, found, listed, in use, and migrated."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from registry_records import NOW, claim, ready_model

from salem.errors import LeaseLost, NotFound
from salem.records import (
    Editor,
    EditorMetrics,
    EditorOptions,
    Job,
    JobKind,
    JobState,
    Proportion,
)
from salem.storage.editors import editor_id
from salem.storage.registry import Registry

SHARE = Proportion(value=0.5, low=0.2, high=0.8, count=10)
METRICS = EditorMetrics(
    edit_accuracy=SHARE,
    generalization=None,
    drawdown=SHARE,
    untrained_accuracy=SHARE,
    untrained_drawdown=SHARE,
)


@pytest.fixture
def registry(any_registry: Registry) -> Registry:
    return any_registry


def training_job(registry: Registry, model: str = "intents") -> Job:
    return registry.jobs.create(JobKind.TRAIN_EDITOR, model, {})[0]


def new_editor(job: Job, **more: Any) -> Editor:
    known: dict[str, Any] = {
        "id": editor_id(job.id),
        "model": job.model,
        "name": "refunds",
        "layer": "encoder.layer.2.output.dense",
        "blob": "e" * 64,
        "num_bytes": 10,
        "num_trained_on": 48,
        "num_held_out": 16,
        "metrics": METRICS,
        "options": EditorOptions(num_together=4),
        "job_id": job.id,
        "created_at": NOW,
    }
    return Editor(**known | more)


def finished(registry: Registry, **more: Any) -> Editor:
    job = training_job(registry, more.pop("model", "intents"))
    editor = new_editor(job, **more)
    registry.editors.finish(job.id, claim(registry, job), editor, {"editor": editor.id})
    return editor


def test_an_editor_is_published_with_the_end_of_its_job(registry: Registry) -> None:
    ready_model(registry)
    editor = finished(registry)
    assert registry.editors.get(editor.id) == registry.editors.find(editor.id) == editor
    job = registry.jobs.get(editor.job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, {"editor": editor.id})
    assert editor.blob in registry.blobs_in_use()


def test_an_attempt_without_the_lease_publishes_nothing(registry: Registry) -> None:
    ready_model(registry)
    job = training_job(registry)
    claim(registry, job)
    with pytest.raises(LeaseLost):
        registry.editors.finish(job.id, "another", new_editor(job), {})
    assert registry.editors.list_page()[0] == [] and registry.jobs.get(job.id).state is JobState.RUNNING


def test_editors_are_listed_newest_first_by_model(registry: Registry) -> None:
    ready_model(registry)
    ready_model(registry, "other")
    old, new, theirs = (
        finished(registry, model=model, created_at=NOW + timedelta(seconds=later))
        for model, later in (("intents", 0), ("intents", 2), ("other", 1))
    )
    assert registry.editors.list_page()[0] == [new, theirs, old]
    assert registry.editors.list_page("intents")[0] == [new, old]
    with pytest.raises(NotFound, match='no model "nobody"'):
        registry.editors.list_page("nobody")[0]


@pytest.mark.parametrize("name", [f"editor-{'0' * 20}", "refunds", "\x00", ""])
def test_a_missing_editor_is_not_found(registry: Registry, name: str) -> None:
    assert registry.editors.find(name) is None
    with pytest.raises(NotFound) as caught:
        registry.editors.get(name)
    assert caught.value.remedy == "GET /editors lists the editors"
