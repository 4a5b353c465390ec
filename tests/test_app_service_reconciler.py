"""The reconciler: lost jobs are queued again, and blobs that no row names are removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from api_service import Stage

from app.service.reconciler import ORPHAN_AGE_S, Reconciler
from salem.errors import Unavailable
from salem.queue.job_queue import JobQueue
from salem.records import JobKind, JobState
from salem.settings import Settings
from salem.storage.jobs import Jobs
from salem.storage.registry import Registry


@pytest.fixture
def stage(settings: Settings, registry: Registry) -> Stage:
    return Stage.of(settings, registry)


@pytest.fixture
def queue(settings: Settings) -> JobQueue:
    return JobQueue.connect(settings.effective_redis_url, settings.queue)


def reconciler_of(stage: Stage, queue: JobQueue, settings: Settings | None = None) -> Reconciler:
    return Reconciler(settings or stage.settings, stage.registry, queue, stage.blobs)


def test_a_job_that_never_reached_redis_is_queued_once(stage: Stage, queue: JobQueue) -> None:
    model = stage.host("m", "bert")
    job, _ = stage.registry.jobs.create(JobKind.EDIT, model.name, {})
    reconciler = reconciler_of(stage, queue)
    assert reconciler.requeue_lost() == 1
    assert queue.holds(job.id)
    assert reconciler.requeue_lost() == 0
    assert queue.depth() == 1


def test_a_silent_attempt_is_replaced_until_all_attempts_are_used_up(stage: Stage, queue: JobQueue) -> None:
    model = stage.host("m", "bert")
    job, _ = stage.registry.jobs.create(JobKind.EDIT, model.name, {})
    reconciler = reconciler_of(stage, queue)
    for _ in range(stage.settings.max_attempts):
        assert stage.registry.jobs.claim(job.id, 0.01) is not None
        time.sleep(0.05)
        reconciler.requeue_lost()
    ended = stage.registry.jobs.get(job.id)
    assert ended.state is JobState.FAILED
    assert ended.error is not None and ended.error.code == "attempts_exhausted"


def test_after_an_outage_workers_get_time_to_renew_their_leases(
    stage: Stage, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stage.host("m", "bert")
    stage.registry.jobs.create(JobKind.EDIT, model.name, {})
    brief = stage.settings.model_copy(update={"lease_s": 0.2})
    reconciler = reconciler_of(stage, queue, brief)

    def away(*_: object) -> None:
        raise Unavailable("the database did not answer in time")

    with monkeypatch.context() as outage:
        outage.setattr(Jobs, "lost", away)
        with pytest.raises(Unavailable):
            reconciler.requeue_lost()
    assert reconciler.requeue_lost() == 0
    time.sleep(0.25)
    assert reconciler.requeue_lost() == 1


def test_old_orphans_are_removed_and_named_blobs_stay(stage: Stage, queue: JobQueue) -> None:
    version = stage.publish(stage.host("m", "bert"))
    orphan, fresh = stage.blobs.put(b"orphan"), stage.blobs.put(b"fresh")
    long_ago = time.time() - 2 * ORPHAN_AGE_S
    for path in (stage.settings.home / "blobs").rglob("*"):
        if path.is_file() and path.name != fresh:
            os.utime(path, (long_ago, long_ago))
    assert reconciler_of(stage, queue).sweep() == 1
    assert not stage.blobs.exists(orphan)
    assert stage.blobs.exists(fresh) and stage.blobs.exists(version.deltas[0].blob)


def test_blobs_of_another_installation_are_not_removed(stage: Stage, queue: JobQueue, tmp_path: Path) -> None:
    """An API with the right store but a new, wrong database, which knows none of the blobs."""
    blob = stage.publish(stage.host("m", "bert")).deltas[0].blob
    for path in (stage.settings.home / "blobs").rglob("*"):
        os.utime(path, (0, 0))
    wrong = Registry.connect(f"sqlite:///{tmp_path}/wrong.db")
    wrong.migrate()
    reconcilers = [
        Reconciler(stage.settings, registry, queue, stage.blobs) for registry in (wrong, stage.registry)
    ]
    assert [each.sweep() for each in reconcilers] == [0, 0]
    assert stage.blobs.exists(blob)
    assert wrong.installation() != stage.registry.installation()
    wrong.close()


def test_the_thread_survives_a_redis_outage_and_stops_immediately(stage: Stage, queue: JobQueue) -> None:
    quick = stage.settings.model_copy(update={"reconcile_s": 0.02})
    model = stage.host("m", "bert")
    job, _ = stage.registry.jobs.create(JobKind.EDIT, model.name, {})
    away = reconciler_of(stage, JobQueue.connect("unix:///nowhere.sock", "q"), quick)
    away.start()
    reconciler = reconciler_of(stage, queue, quick)
    reconciler.start()
    deadline = time.monotonic() + 10
    while not queue.holds(job.id) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert queue.holds(job.id)
    assert away._thread.is_alive()
    started = time.monotonic()
    away.stop()
    reconciler.stop()
    assert time.monotonic() - started < 2 and not away._thread.is_alive()
