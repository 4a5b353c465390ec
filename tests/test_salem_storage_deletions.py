"""Deletions in the registry: what goes, what is refused, and what still needs it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from registry_records import (
    BLOB,
    NOW,
    claim,
    new_job,
    new_version,
    publish,
    ready_model,
    reference_sample,
    to_production,
    versions_of,
)
from test_salem_storage_editors import finished

from salem.errors import Conflict, NotFound
from salem.records import BrokenNeighbor, Entry, EntryKey, JobKind, ModelReference, RecipeOptions, TextInput
from salem.storage import schema
from salem.storage.database import Database
from salem.storage.publication import Publication
from salem.storage.registry import Registry

SECRET = "the secret sentence"


@pytest.fixture
def registry(any_registry: Registry) -> Registry:
    return any_registry


def everything_stored(database_url: str) -> str:
    database = Database.connect(database_url)
    with database.read() as connection:
        rows = [str(connection.execute(table.select()).all()) for table in schema.metadata.sorted_tables]
    database.close()
    return "\n".join(rows)


def with_entry(registry: Registry, text: str = SECRET) -> str:
    """Publish a version with an entry and a request that have this text; returns its job."""
    request = {"parent": 0, "edits": [{"input": text, "target": "refund"}]}
    job, _ = registry.jobs.create(JobKind.EDIT, "intents", request)
    entry = Entry(input=text, target="refund", keys=(EntryKey(text=text, radius=0.5),))
    near = BrokenNeighbor(
        input=text, edit=0, kind="quoted", origin="rule", before="a", after="b", held_out=True
    )
    made = Publication(entries={0: [(0, entry)]}, broken_neighbors=[near])
    registry.finish_edit(job.id, claim(registry, job), new_version(blob="c" * 64), {}, made)
    return job.id


def test_the_texts_of_a_deleted_version_and_job_are_gone(registry: Registry, database_url: str) -> None:
    ready_model(registry)
    job = with_entry(registry)
    with pytest.raises(Conflict, match="is still needed by version intents:1"):
        registry.deletions.delete_job(job)
    assert SECRET in everything_stored(database_url)
    assert registry.deletions.delete_version("intents", 1) == {"c" * 64}
    registry.deletions.delete_job(job)
    assert SECRET not in everything_stored(database_url)
    assert registry.blobs_in_use() == {BLOB}
    with pytest.raises(NotFound):
        registry.jobs.get(job)
    with pytest.raises(NotFound):
        registry.deletions.delete_job(job)


def test_the_number_of_a_deleted_version_is_not_used_again(registry: Registry) -> None:
    ready_model(registry)
    publish(registry)
    registry.deletions.delete_version("intents", 1)
    assert publish(registry).number == 2
    with pytest.raises(NotFound, match="no version 1"):
        registry.resolve(ModelReference(model="intents", number=1))


def test_a_version_that_is_still_needed_stays(registry: Registry) -> None:
    ready_model(registry)
    publish(registry)
    publish(registry, new_version(parent=1))
    registry.set_alias("intents", "live", 1)
    job = new_job(registry, parent=1)
    with pytest.raises(Conflict) as caught:
        registry.deletions.delete_version("intents", 1)
    assert caught.value.message == (
        f"version intents:1 is still needed by version intents:2, alias intents@live, job {job.id}"
    )
    registry.deletions.delete_alias("intents", "live")
    registry.jobs.cancel(job.id)
    registry.deletions.delete_version("intents", 2)
    registry.deletions.delete_version("intents", 1)
    assert versions_of(registry, "intents") == []
    assert [change.version for change in registry.alias_history("intents", "live")[0]] == [1]
    with pytest.raises(Conflict, match="intents:0 is the base"):
        registry.deletions.delete_version("intents", 0)
    with pytest.raises(NotFound, match='no alias "live"'):
        registry.deletions.delete_alias("intents", "live")


def test_the_message_names_only_some_of_many_dependents(registry: Registry) -> None:
    ready_model(registry)
    publish(registry)
    for _ in range(6):
        publish(registry, new_version(parent=1))
    with pytest.raises(Conflict, match=r"version intents:6, more$"):
        registry.deletions.delete_version("intents", 1)


def test_other_versions_keep_their_entries(registry: Registry) -> None:
    ready_model(registry)
    with_entry(registry)
    with_entry(registry, "another sentence")
    registry.deletions.delete_version("intents", 1)
    (left,) = versions_of(registry, "intents")
    found = registry.entries.find(left, [TextInput(input="another sentence")])
    assert [entry.id for entry in found] == ["2.0"]


def test_an_unfinished_job_stays(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    with pytest.raises(Conflict, match="is queued"):
        registry.deletions.delete_job(job.id)
    claim(registry, job)
    with pytest.raises(Conflict, match="is running"):
        registry.deletions.delete_job(job.id)


def test_an_editor_is_deleted_unless_a_version_or_a_job_used_it(registry: Registry) -> None:
    ready_model(registry)
    editor, other = finished(registry), finished(registry)
    with pytest.raises(Conflict, match=f"editor {editor.id}"):
        registry.deletions.delete_job(editor.job_id)
    used = RecipeOptions.model_validate({"recipe": "mend", "editor": editor.id})
    publish(registry, new_version().model_copy(update={"options": used}))
    with pytest.raises(Conflict, match="is still needed by version intents:1"):
        registry.deletions.delete_editor(editor.id)
    job = new_job(registry, options={"editor": other.id})
    with pytest.raises(Conflict, match=f"is still needed by job {job.id}"):
        registry.deletions.delete_editor(other.id)
    registry.jobs.cancel(job.id)
    assert registry.deletions.delete_editor(other.id) == {other.blob}
    assert registry.editors.find(other.id) is None
    registry.deletions.delete_job(other.job_id)


def test_a_model_is_deleted_with_everything_that_belongs_to_it(registry: Registry, database_url: str) -> None:
    ready_model(registry, reference=(reference_sample(SECRET),))
    ready_model(registry, "other")
    with_entry(registry)
    editor = finished(registry)
    job = new_job(registry)
    made = Publication(metric="e" * 64, alias=to_production().alias)
    registry.finish_edit(job.id, claim(registry, job), new_version(), {}, made)
    with pytest.raises(Conflict) as caught:
        registry.deletions.delete_model("intents", cascade=False)
    assert "is still needed by 2 versions, 1 alias, 1 editor" in caught.value.message
    assert caught.value.remedy == "DELETE /models/intents?cascade=true deletes them too"
    blobs = registry.deletions.delete_model("intents", cascade=True)
    assert blobs == {BLOB, "c" * 64, "e" * 64, editor.blob}
    assert SECRET not in everything_stored(database_url)
    assert [model.name for model in registry.list_models()[0]] == ["other"]
    assert registry.deletions.needed(set(blobs)) == {BLOB}, "the other model has the same reference set"
    registry.deletions.delete_model("other", cascade=False)
    assert registry.jobs.list_page()[0] == []
    assert publish_anew(registry) == 1


def publish_anew(registry: Registry) -> int:
    ready_model(registry)
    return publish(registry).number


def test_a_model_with_an_unfinished_job_stays(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    with pytest.raises(Conflict, match=f"model intents is still needed by job {job.id}"):
        registry.deletions.delete_model("intents", cascade=True)
    lease = claim(registry, job)
    assert registry.deletions.needed({"f" * 64}) == {"f" * 64}, "a running job may have stored it"
    registry.finish_edit(job.id, lease, new_version(), {})
    assert registry.deletions.needed({"f" * 64}) == set()


def test_a_new_model_of_an_old_name_has_its_own_versions(registry: Registry) -> None:
    ready_model(registry)
    first = publish(registry, new_version(blob="1" * 64))
    assert versions_of(registry, "intents") == [first]
    registry.deletions.delete_model("intents", cascade=True)
    ready_model(registry)
    later = new_version(blob="2" * 64).model_copy(update={"created_at": NOW + timedelta(seconds=1)})
    second = publish(registry, later)
    assert (second.reference, versions_of(registry, "intents")) == (first.reference, [second])
