"""Models, versions, aliases and blobs in the registry, on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import UTC
from functools import partial

import pytest
from registry_records import (
    BLOB,
    at_once,
    claim,
    new_job,
    new_model,
    new_version,
    publish,
    ready_model,
    reference_sample,
    to_production,
    versions_of,
)

from salem.errors import (
    Conflict,
    LeaseLost,
    ModelNotReady,
    NotFound,
)
from salem.records import (
    JobError,
    JobKind,
    JobState,
    ModelReference,
    ModelState,
    Task,
)
from salem.storage.registry import Registry


@pytest.fixture
def registry(any_registry: Registry) -> Registry:
    return any_registry


def test_a_model_is_registered_by_its_job(registry: Registry) -> None:
    job = registry.create_model(new_model(), BLOB)
    assert (job.kind, job.state, job.phase) == (JobKind.REGISTER, JobState.QUEUED, "waiting")
    assert registry.jobs.get_request(job.id) == {"kind": "register", "model": "intents", "reference": BLOB}
    assert registry.get_model("intents") == new_model()
    lease = claim(registry, job)
    ready = new_model().model_copy(update={"labels": ("a", "b"), "num_pass_samples": 3})
    registry.finish_registration(job.id, lease, ready, [], {"model": "intents"})
    assert registry.get_model("intents") == ready.model_copy(update={"state": ModelState.READY})
    ended = registry.jobs.get(job.id)
    assert (ended.state, ended.phase, ended.progress) == (JobState.SUCCEEDED, "done", 1)
    assert ended.result == {"model": "intents"}
    assert ended.finished_at is not None and ended.finished_at.tzinfo is UTC


def test_a_taken_name_is_a_conflict(registry: Registry) -> None:
    registry.create_model(new_model(), BLOB)
    with pytest.raises(Conflict, match='"intents" already'):
        registry.create_model(new_model(), BLOB)
    jobs, _ = registry.jobs.list_page()
    assert len(jobs) == 1


def test_only_one_of_two_registrations_gets_the_name(registry: Registry) -> None:
    results = at_once(*[lambda: registry.create_model(new_model(), BLOB)] * 2)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "Job"]


@pytest.mark.parametrize("how", ["fail", "cancel", "give up"])
def test_a_name_is_free_again_after_a_registration_without_success(registry: Registry, how: str) -> None:
    job = registry.create_model(new_model(), BLOB)
    lease = claim(registry, job, lease_s=0)
    if how == "fail":
        registry.jobs.fail(job.id, lease, JobError(code="unsupported_model", message="no"))
    elif how == "cancel":
        registry.jobs.cancel(job.id)
    else:
        registry.jobs.lost(max_attempts=1)
    assert registry.get_model("intents").state is ModelState.FAILED
    again = registry.create_model(new_model().model_copy(update={"task": Task.TEXT_GENERATION}), BLOB)
    assert registry.get_model("intents").task is Task.TEXT_GENERATION
    assert registry.get_model("intents").state is ModelState.REGISTERING
    with pytest.raises(LeaseLost):
        registry.finish_registration(job.id, lease, new_model(), [], {})
    assert registry.jobs.get(again.id).state is JobState.QUEUED


def test_the_message_about_an_unknown_model_lists_the_models(registry: Registry) -> None:
    with pytest.raises(NotFound, match="no other model yet"):
        registry.get_model("nope")
    for name in "abcdefg":
        registry.create_model(new_model(name), BLOB)
    with pytest.raises(NotFound, match='there are "a", "b", "c", "d", "e" and more'):
        registry.get_model("nope")
    assert [model.name for model in registry.list_models()[0]] == list("abcdefg")


def test_reference_samples_come_in_slices_and_in_the_order_of_their_content(registry: Registry) -> None:
    odd = reference_sample("nul \x00 and \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"))
    samples = (
        reference_sample("a"),
        reference_sample("b", held_out=True),
        reference_sample("c", correct=False),
        reference_sample("a"),
        odd,
    )
    ready_model(registry, reference=samples)
    everything = registry.reference_samples("intents")
    assert everything == sorted(samples, key=lambda sample: sample.sample.content_hash)
    assert registry.reference_samples("intents", correct=False) == [samples[2]]
    with pytest.raises(NotFound):
        registry.reference_samples("nope")


def test_only_a_ready_model_has_the_base_as_version_0(registry: Registry) -> None:
    job = registry.create_model(new_model(), BLOB)
    with pytest.raises(ModelNotReady, match="still being registered"):
        registry.resolve(ModelReference(model="intents"))
    registry.jobs.cancel(job.id)
    with pytest.raises(ModelNotReady, match="failed"):
        registry.resolve(ModelReference(model="intents"))
    model = ready_model(registry)
    base = registry.resolve(ModelReference(model="intents"))
    assert (base.reference, base.deltas, base.created_at) == ("intents:0", (), model.created_at)
    assert versions_of(registry, "intents") == []


def test_a_finished_edit_makes_a_version_moves_an_alias_and_ends_the_job(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    lease = claim(registry, job)
    published = registry.finish_edit(job.id, lease, new_version(), {"seconds": 3}, to_production())
    (delta,) = new_version().deltas
    own = delta.model_copy(update={"version": 1, "made_in": 1})
    assert published == new_version().model_copy(update={"number": 1, "job_id": job.id, "deltas": (own,)})
    assert registry.resolve(ModelReference(model="intents", number=1)) == published
    assert registry.resolve(ModelReference(model="intents", alias="production")) == published
    ended = registry.jobs.get(job.id)
    assert ended.state is JobState.SUCCEEDED
    assert ended.result == {"seconds": 3, "version": "intents:1"}


def test_each_model_numbers_its_versions_and_lists_are_newest_first(registry: Registry) -> None:
    ready_model(registry)
    ready_model(registry, "other")
    assert publish(registry).number == 1
    assert publish(registry, new_version(parent=1)).number == 2
    assert publish(registry, new_version("other")).reference == "other:1"
    assert [version.number for version in versions_of(registry, "intents")] == [2, 1]


def test_the_message_about_a_missing_version_or_alias_lists_what_exists(registry: Registry) -> None:
    ready_model(registry)
    with pytest.raises(NotFound, match='"intents" has no version 9; it has only version 0'):
        registry.resolve(ModelReference(model="intents", number=9))
    with pytest.raises(NotFound, match="it has no aliases"):
        registry.resolve(ModelReference(model="intents", alias="live"))
    for _ in range(3):
        publish(registry, alias="production")
    with pytest.raises(NotFound) as caught:
        registry.resolve(ModelReference(model="intents", number=9))
    assert caught.value.message == 'model "intents" has no version 9; its newest version is 3'
    with pytest.raises(NotFound, match='"intents" has no alias "live"; it has "production"'):
        registry.resolve(ModelReference(model="intents", alias="live"))
    with pytest.raises(NotFound):
        registry.list_versions("nope")


def test_a_failing_commit_changes_nothing(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    lease = claim(registry, job)
    with pytest.raises(NotFound):
        registry.finish_edit(job.id, lease, new_version(parent=7), {}, to_production())
    with pytest.raises(LeaseLost):
        registry.finish_edit(job.id, "not the lease", new_version(), {}, to_production())
    assert versions_of(registry, "intents") == []
    assert registry.list_aliases("intents")[0] == []
    assert registry.jobs.get(job.id).state is JobState.RUNNING


def test_a_job_makes_at_most_one_version(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    lease = claim(registry, job)
    results = at_once(*[lambda: registry.finish_edit(job.id, lease, new_version(), {})] * 4)
    assert sorted(type(result).__name__ for result in results) == ["LeaseLost"] * 3 + ["Version"]
    assert len(versions_of(registry, "intents")) == 1


def test_edits_that_finish_together_get_consecutive_numbers(registry: Registry) -> None:
    ready_model(registry)
    jobs = [new_job(registry) for _ in range(6)]
    leases = [claim(registry, job) for job in jobs]

    published = at_once(
        *[
            partial(registry.finish_edit, job.id, lease, new_version(), {}, to_production())
            for job, lease in zip(jobs, leases, strict=True)
        ]
    )
    assert sorted(version.number for version in published) == [1, 2, 3, 4, 5, 6]
    history = registry.alias_history("intents", "production")[0]
    assert [alias.version for alias in history] == [1], "five corrections would be lost silently"
    results = [registry.jobs.get(job.id).result or {} for job in jobs]
    assert sorted(result["version"] for result in results if "notes" in result) == [
        f"intents:{number}" for number in range(2, 7)
    ]


# version 2 stands on 1, 1 and 3 on the base; the job's own on what the case says
@pytest.mark.parametrize(
    ("was", "now", "parent", "moves"),
    [
        (None, None, 1, True),  # it is made
        (1, 1, 1, True),
        (3, 3, 2, True),  # pointed elsewhere on purpose
        (0, 0, 3, True),
        (1, 3, 1, False),  # another correction got there first
        (None, 3, 1, False),
        (0, 1, 0, False),
        (0, 1, 1, True),  # moved on to the parent
        (0, 1, 2, True),  # or to a version below it
        (None, 0, 2, True),
        (2, 1, 2, False),  # somebody went back
        (3, 0, 2, False),
    ],
)
def test_an_alias_that_someone_else_moved_stays_and_a_note_says_so(
    registry: Registry, was: int | None, now: int | None, parent: int, moves: bool
) -> None:
    ready_model(registry)
    for below in (0, 1, 0):
        publish(registry, new_version(parent=below))
    for at in (was, now):
        if at is not None:
            registry.set_alias("intents", "production", at)
    job = new_job(registry)
    lease, version, asked = claim(registry, job), new_version(parent=parent), {"notes": ["seen before"]}
    made = registry.finish_edit(job.id, lease, version, asked, to_production(was))
    (alias,) = registry.list_aliases("intents")[0]
    assert (made.number, alias.version) == (4, 4 if moves else now)
    result = registry.jobs.get(job.id).result
    assert result is not None and result["notes"][0] == "seen before"
    left = (
        f'alias "production" still names intents:{now}, because it was moved while the job ran. To make it '
        'name intents:4, send PUT /models/intents/aliases/production with {"version": 4}, or send the edits '
        f"again on top of intents:{now}"
    )
    moved_off = (
        f'alias "production" moved from intents:{now} to intents:4, which is not built on it, so the '
        f"corrections of intents:{now} no longer apply. To move it back, send PUT "
        f'/models/intents/aliases/production with {{"version": {now}}}; to keep both, send the edits again '
        f"on top of intents:{now}"
    )
    notes = {True: [moved_off] if was == now == 3 else [], False: [left]}
    assert result["notes"][1:] == notes[moves]


@pytest.mark.parametrize("at", [2, 1, 0])
def test_a_rollback_is_not_undone_by_a_job_that_was_running(registry: Registry, at: int) -> None:
    """Two jobs start from version 2. The alias moves back from the first job's version to 2 or earlier."""
    ready_model(registry)
    for parent in (0, 1):
        publish(registry, new_version(parent=parent), "production", alias_was=parent or None)
    first, second = new_job(registry), new_job(registry)
    for job, stands in ((first, 3), (second, at)):
        lease, version = claim(registry, job), new_version(parent=2)
        registry.finish_edit(job.id, lease, version, {}, to_production(2))
        (alias,) = registry.list_aliases("intents")[0]
        assert alias.version == stands
        if job is first:
            registry.set_alias("intents", "production", at)
    (note,) = (registry.jobs.get(second.id).result or {})["notes"]
    assert f"still names intents:{at}, because it was moved while the job ran" in note
    later = new_job(registry)
    version = new_version(parent=at)
    registry.finish_edit(later.id, claim(registry, later), version, {}, to_production(at))
    assert [each.version for each in registry.list_aliases("intents")[0]] == [5]


def test_an_alias_moves_and_keeps_its_history(registry: Registry) -> None:
    ready_model(registry)
    publish(registry)
    publish(registry)
    for number in (1, 2, 2, 0):
        assert registry.set_alias("intents", "production", number).version == number
    registry.set_alias("intents", "canary", 1)
    assert [(alias.name, alias.version) for alias in registry.list_aliases("intents")[0]] == [
        ("canary", 1),
        ("production", 0),
    ]
    history = registry.alias_history("intents", "production")[0]
    assert [alias.version for alias in history] == [0, 2, 1]
    assert history[0].updated_at >= history[-1].updated_at
    assert registry.resolve(ModelReference(model="intents", alias="production")).number == 0


def test_an_alias_must_point_to_an_existing_version(registry: Registry) -> None:
    with pytest.raises(NotFound):
        registry.set_alias("intents", "production", 0)
    registry.create_model(new_model(), BLOB)
    with pytest.raises(ModelNotReady):
        registry.set_alias("intents", "production", 0)
    ready_model(registry, "other")
    with pytest.raises(NotFound, match="no version 1"):
        registry.set_alias("other", "production", 1)
    with pytest.raises(NotFound, match="no alias"):
        registry.alias_history("other", "production")


def test_blobs_in_use_are_those_of_models_and_versions(registry: Registry) -> None:
    ready_model(registry)
    failed = registry.create_model(new_model("failed"), "f" * 64)
    registry.jobs.cancel(failed.id)
    publish(registry, new_version(blob="c" * 64))
    publish(registry, new_version(blob="d" * 64))
    assert registry.blobs_in_use() == {BLOB, "c" * 64, "d" * 64}
