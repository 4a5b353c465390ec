"""Jobs and their leases in the registry, on SQLite and on PostgreSQL."""

from __future__ import annotations

from functools import partial

import pytest
from registry_records import (
    BLOB,
    at_once,
    claim,
    edit_result,
    new_job,
    new_model,
    new_version,
    ready_model,
    to_production,
    versions_of,
)

from salem.errors import (
    Conflict,
    InvalidRequest,
    LeaseLost,
    NotFound,
)
from salem.records import (
    Job,
    JobError,
    JobKind,
    JobState,
    LayerScore,
    ModelState,
    Version,
)
from salem.storage.registry import Registry
from salem.storage.rows.leases import Progress


@pytest.fixture
def registry(any_registry: Registry) -> Registry:
    return any_registry


def test_a_job_is_stored_as_requested(registry: Registry) -> None:
    ready_model(registry)
    request = {"edits": [{"input": "naïve \x00 ☃"}]}
    job, created = registry.jobs.create(JobKind.EDIT, "intents", request)
    assert created
    assert registry.jobs.get(job.id) == job
    assert registry.jobs.get_request(job.id) == request
    assert len(job.id) == 24 and job.id.startswith("job-")
    with pytest.raises(NotFound, match="job-none"):
        registry.jobs.get("job-none")
    with pytest.raises(NotFound, match="job-none"):
        registry.jobs.get_request("job-none")
    with pytest.raises(NotFound, match='no model "nope"'):
        new_job(registry, "nope")


def test_jobs_are_listed_newest_first_page_by_page(registry: Registry) -> None:
    ready_model(registry)
    ready_model(registry, "other")
    ids = [new_job(registry).id for _ in range(5)][::-1]
    assert ids == sorted(ids, reverse=True)
    first, more = registry.jobs.list_page(model="intents", state="queued", limit=2)
    assert ([job.id for job in first], more) == (ids[:2], True)
    rest, more = registry.jobs.list_page(model="intents", state="queued", limit=3, after=first[-1].id)
    assert ([job.id for job in rest], more) == (ids[2:], False)
    assert registry.jobs.list_page(model="other", state="queued") == ([], False)
    assert len(registry.jobs.list_page()[0]) == 7
    with pytest.raises(InvalidRequest, match="queued, running, succeeded"):
        registry.jobs.list_page(state="waiting")
    with pytest.raises(NotFound):
        registry.jobs.list_page(after="job-none")


def test_an_idempotency_key_makes_one_job(registry: Registry) -> None:
    ready_model(registry)
    key: dict[str, str] = {"idempotency_key": "k", "body_sha256": "1" * 64}
    job, created = registry.jobs.create(JobKind.EDIT, "intents", {}, **key)
    assert created
    assert registry.jobs.create(JobKind.EDIT, "intents", {}, **key) == (job, False)
    with pytest.raises(InvalidRequest, match="another request"):
        registry.jobs.create(JobKind.EDIT, "intents", {}, idempotency_key="k", body_sha256="2" * 64)
    with pytest.raises(InvalidRequest, match="another request"):
        registry.create_model(new_model("fresh"), BLOB, **key)
    with pytest.raises(InvalidRequest, match="255"):
        registry.jobs.create(JobKind.EDIT, "intents", {}, idempotency_key="k" * 256)
    assert [model.name for model in registry.list_models()[0]] == ["intents"]


def test_an_idempotency_key_registers_one_model(registry: Registry) -> None:
    key: dict[str, str] = {"idempotency_key": "k", "body_sha256": "1" * 64}
    job = registry.create_model(new_model(), BLOB, **key)
    assert registry.create_model(new_model(), BLOB, **key) == job


def test_simultaneous_requests_with_one_key_make_one_job(registry: Registry) -> None:
    ready_model(registry)

    def ask() -> Job:
        return registry.jobs.create(JobKind.EDIT, "intents", {}, idempotency_key="k", body_sha256="1" * 64)[0]

    results = at_once(*[ask] * 4)
    assert len({result.id for result in results if isinstance(result, Job)}) == 1
    assert all(isinstance(result, Job | Conflict) for result in results)
    assert len(registry.jobs.list_page(state="queued")[0]) == 1


def test_only_one_of_many_claims_a_job(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    claims = at_once(*[lambda: registry.jobs.claim(job.id, 30)] * 4)
    won = [claimed for claimed in claims if claimed is not None]
    assert len(won) == 1
    running, _ = won[0]
    assert (running.state, running.attempt, running.phase) == (JobState.RUNNING, 1, "loading")
    assert running.started_at is not None
    assert registry.jobs.claim("job-none", 30) is None


def test_an_expired_lease_can_be_claimed_and_the_old_token_is_refused(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    old = claim(registry, job, lease_s=0)
    registry.jobs.report(job.id, old, 0, Progress(share=0.5, metrics={"loss": 1.0}))
    claimed = registry.jobs.claim(job.id, 30)
    assert claimed is not None
    again, new = claimed
    assert (again.attempt, again.progress, again.metrics) == (2, 0, {})
    with pytest.raises(LeaseLost):
        registry.jobs.report(job.id, old, 30)
    with pytest.raises(LeaseLost):
        registry.jobs.fail(job.id, old, JobError(code="x", message="x"))
    with pytest.raises(LeaseLost):
        registry.finish_edit(job.id, old, new_version(), {})
    assert registry.finish_edit(job.id, new, new_version(), {}).number == 1


def test_a_report_renews_the_lease_and_stores_the_progress(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    lease = claim(registry, job, lease_s=0)
    score = LayerScore(layer="l", block=1, matrix="m", score=0.5, chosen=True)
    registry.jobs.report(job.id, lease, 30, Progress("training", 1.5, 4.5, [score]))
    registry.jobs.report(job.id, lease, 30, Progress(metrics={"loss": 0.25, "broken": float("nan")}))
    assert registry.jobs.claim(job.id, 30) is None
    told = registry.jobs.get(job.id)
    assert (told.phase, told.progress, told.time_left_s) == ("training", 1.0, 4.5)
    assert (told.saliency, told.metrics) == ((score,), {"loss": 0.25})


def test_a_failed_job_keeps_its_reason(registry: Registry) -> None:
    ready_model(registry)
    job = new_job(registry)
    error = JobError(code="edit_failed", message="it did not work", remedy="send fewer edits")
    registry.jobs.fail(job.id, claim(registry, job), error)
    failed = registry.jobs.get(job.id)
    assert (failed.state, failed.error) == (JobState.FAILED, error)
    assert registry.jobs.claim(job.id, 30) is None
    assert registry.get_model("intents").state is ModelState.READY


def test_cancelling_ends_a_job_and_its_lease(registry: Registry) -> None:
    ready_model(registry)
    waiting, running = new_job(registry), new_job(registry)
    lease = claim(registry, running)
    assert registry.jobs.cancel(waiting.id).state is JobState.CANCELLED
    assert registry.jobs.cancel(running.id).finished_at is not None
    with pytest.raises(LeaseLost):
        registry.jobs.report(running.id, lease, 30)
    with pytest.raises(LeaseLost):
        registry.finish_edit(running.id, lease, new_version(), {}, to_production())
    assert versions_of(registry, "intents") == []
    assert registry.jobs.claim(waiting.id, 30) is None
    with pytest.raises(Conflict, match="it is cancelled"):
        registry.jobs.cancel(running.id)
    with pytest.raises(NotFound):
        registry.jobs.cancel("job-none")


def test_if_cancel_and_finish_race_one_wins_and_the_other_is_refused(registry: Registry) -> None:
    ready_model(registry)
    for _ in range(8):
        job = new_job(registry)
        lease = claim(registry, job)
        num_before = len(versions_of(registry, "intents"))
        finish = partial(registry.finish_edit, job.id, lease, new_version(), {}, to_production())
        finished, cancelled = at_once(finish, partial(registry.jobs.cancel, job.id))
        num_made = len(versions_of(registry, "intents")) - num_before
        found = type(finished), type(cancelled), num_made, registry.jobs.get(job.id).state
        assert found in [
            (Version, Conflict, 1, JobState.SUCCEEDED),
            (LeaseLost, Job, 0, JobState.CANCELLED),
        ]


def test_lost_jobs_are_queued_again_until_their_attempts_are_used_up(registry: Registry) -> None:
    ready_model(registry)
    waiting, abandoned, leased = (new_job(registry) for _ in range(3))
    old = claim(registry, abandoned, lease_s=0)
    claim(registry, leased)
    assert [job.id for job in registry.jobs.lost(max_attempts=2)] == [waiting.id, abandoned.id]
    assert registry.jobs.get(abandoned.id).state is JobState.QUEUED
    with pytest.raises(LeaseLost):
        registry.jobs.report(abandoned.id, old, 30)
    claim(registry, abandoned, lease_s=0)
    assert [job.id for job in registry.jobs.lost(max_attempts=2)] == [waiting.id]
    given_up = registry.jobs.get(abandoned.id)
    assert given_up.state is JobState.FAILED and given_up.error is not None
    assert given_up.error.code == "attempts_exhausted"
    assert registry.jobs.get(leased.id).state is JobState.RUNNING


def test_the_newest_edit_job_of_a_model_with_a_recipe_is_found(registry: Registry) -> None:
    ready_model(registry)
    assert registry.jobs.last_edit("intents", "scoped") is None
    for recipe, seconds in (("scoped", 1.0), ("scoped", 2.0), ("mend", 3.0)):
        job = new_job(registry, options={"recipe": recipe})
        result = edit_result(worker_seconds=seconds).model_dump(mode="json", exclude={"version"})
        registry.finish_edit(job.id, claim(registry, job), new_version(), result)
    new_job(registry, options={"recipe": "scoped"})
    found = [registry.jobs.last_edit("intents", recipe) for recipe in ("scoped", "mend", "ridge")]
    assert [each and each.worker_seconds for each in found] == [2.0, 3.0, None]
    assert registry.jobs.last_edit("other", "scoped") is None
