"""Editors as rows: published with the end of their job, found, listed, in use; and their migration."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from registry_records import NOW, claim, new_version, publish, ready_model

from salem.errors import LeaseLost, NotFound
from salem.records import (
    Edit,
    Editor,
    EditorMetrics,
    EditorOptions,
    EditRequest,
    Hyperparameters,
    Job,
    JobKind,
    JobState,
    ModelReference,
    Proportion,
)
from salem.storage.database import Database
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
    return registry.create_job(JobKind.TRAIN_EDITOR, model, {})[0]


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
    job = registry.get_job(editor.job_id)
    assert (job.state, job.result) == (JobState.SUCCEEDED, {"editor": editor.id})
    assert editor.blob in registry.blobs_in_use()


def test_an_attempt_without_the_lease_publishes_nothing(registry: Registry) -> None:
    ready_model(registry)
    job = training_job(registry)
    claim(registry, job)
    with pytest.raises(LeaseLost):
        registry.editors.finish(job.id, "another", new_editor(job), {})
    assert registry.editors.list() == [] and registry.get_job(job.id).state is JobState.RUNNING


def test_editors_are_listed_newest_first_by_model(registry: Registry) -> None:
    ready_model(registry)
    ready_model(registry, "other")
    old, new, theirs = (
        finished(registry, model=model, created_at=NOW + timedelta(seconds=later))
        for model, later in (("intents", 0), ("intents", 2), ("other", 1))
    )
    assert registry.editors.list() == [new, theirs, old]
    assert registry.editors.list("intents") == [new, old]
    with pytest.raises(NotFound, match='no model "nobody"'):
        registry.editors.list("nobody")


@pytest.mark.parametrize("name", [f"editor-{'0' * 20}", "refunds", "\x00", ""])
def test_an_editor_that_is_not_there(registry: Registry, name: str) -> None:
    assert registry.editors.find(name) is None
    with pytest.raises(NotFound) as caught:
        registry.editors.get(name)
    assert caught.value.remedy == "GET /editors lists them"


def test_going_back_forgets_editors_and_what_names_them(database_url: str, registry: Registry) -> None:
    """The older code refuses fields and kinds of jobs that it does not know."""
    ready_model(registry)
    editor = finished(registry)
    used = Hyperparameters(editor=editor.id)
    request = EditRequest(
        model="intents", parent=0, edits=(Edit(input="a", target="refund"),), hyperparameters=used
    )
    job, _ = registry.create_job(JobKind.EDIT, "intents", request.model_dump(mode="json"))
    version = new_version().model_copy(update={"hyperparameters": used})
    registry.finish_edit(job.id, claim(registry, job), version, None, {})
    publish(registry)
    config = Config()
    config.set_main_option("script_location", "salem:migrations")
    database = Database.connect(database_url)
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
        kinds = connection.execute(sa.text("SELECT kind FROM jobs")).scalars().all()
        assert sorted(kinds) == ["edit", "edit", "register"]
        assert not sa.inspect(connection).has_table("editors")
        table = sa.table("versions", sa.column("hyperparameters", sa.JSON))
        stored = connection.execute(sa.select(table)).scalars().all()
        assert len(stored) == 2 and not any("editor" in each for each in stored)
        requests = connection.execute(sa.select(sa.table("jobs", sa.column("request", sa.JSON)))).scalars()
        found = list(requests)
        assert not any("editor" in each.get("hyperparameters", {}) for each in found)
        assert not any("forget" in edit for each in found for edit in each.get("edits", ()))
        metrics = sa.table("versions", sa.column("metrics", sa.JSON))
        for each in connection.execute(sa.select(metrics)).scalars():
            assert "forgetting" not in (each or {})
            for outcome in (each or {}).get("outcomes", ()):
                assert not {"forget", "extent"} & set(outcome)
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    database.close()
    assert registry.editors.list() == []
    found = registry.resolve(ModelReference(model="intents", number=1))
    older = Hyperparameters(first_token_weight=0.0, lexical_weight=0.0, anchor_samples=0, candidates="middle")
    assert found.hyperparameters == older, "older versions did not ask"
