"""The worker process: bursts, time limits, checks at the start, and its log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from api_service import Stage, serving
from labeled_texts import other_label
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from registry_records import versions_of
from rq.job import Job as QueueEntry
from running_service import Document, wait_until
from tenacity import stop_after_attempt

from salem.errors import Misconfigured
from salem.queue.job_queue import JobQueue
from salem.records import JobState
from salem.settings import Settings
from salem.storage.registry import Registry
from worker import main
from worker.main import check_stores, clock_offset_s, connect

LAYER = "bert.encoder.layer.2.output.dense"
QUICK = {"recipe": "mend", "max_steps": 30, "kl_weight": 0, "null_space_rank": 0, "layer": LAYER}
# It never holds and never stops.
ENDLESS = {"recipe": "scoped", "max_steps": 5_000, "kl_weight": 0, "layer": LAYER, "learning_rate": 1e-9}
TEXT = "my lamp is broken"


def burst(settings: Settings) -> subprocess.CompletedProcess[str]:
    """Run a worker until its queue is empty."""
    variables = {
        "SALEM_HOME": str(settings.home),
        "REDIS_URL": settings.effective_redis_url,
        "SALEM_QUEUE": settings.queue,
        "SALEM_NUM_THREADS": "1",
        "SALEM_DEVICE": "cpu",
        "SALEM_LOG_JSON": "true",
    }
    command = [sys.executable, "-m", "worker.main", "--burst"]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=90, check=False
    )


def test_a_job_that_redis_lost_is_queued_again_and_a_burst_runs_all_waiting_jobs(
    settings: Settings, registry: Registry
) -> None:
    settings = settings.model_copy(update={"reconcile_s": 0.1, "device": "cpu"})
    Stage.of(settings, registry).host("m", "bert")
    queue = JobQueue.connect(settings.effective_redis_url, settings.queue)
    with serving(settings) as client:
        label = client.post("/predict", json={"model": "m", "inputs": [TEXT]}).json()["predictions"][0]
        edit = {"input": TEXT, "target": other_label(label["output"])}

        def ask(options: Document) -> str:
            body = {"model": "m", "edits": [edit], "options": options}
            job_id: str = client.post("/edits", json=body).json()["id"]
            return job_id

        lost, endless = ask(QUICK), ask(ENDLESS)
        forget(settings, lost)
        wait_until(lambda: queue.holds(lost))
        shorten(settings, endless, timeout_s=2)
        finished = burst(settings)
    assert finished.returncode == 0, finished.stderr
    assert registry.jobs.get(lost).state is JobState.SUCCEEDED
    assert [version.job_id for version in versions_of(registry, "m")] == [lost]
    ended = registry.jobs.get(endless)
    assert ended.state is JobState.FAILED and ended.error is not None and ended.error.code == "timed_out"
    check_log(finished.stderr, lost)
    assert finished.stdout == ""


def forget(settings: Settings, job_id: str) -> None:
    """Lose a job, as a Redis without its disk would."""
    with Redis.from_url(settings.effective_redis_url) as redis:
        redis.delete(QueueEntry.key_for(job_id))
        redis.lrem(f"rq:queue:{settings.queue}", 0, job_id)


def shorten(settings: Settings, job_id: str, timeout_s: int) -> None:
    """Give a waiting job less time."""
    with Redis.from_url(settings.effective_redis_url) as redis:
        redis.hset(QueueEntry.key_for(job_id), "timeout", timeout_s)


def check_log(log: str, job_id: str) -> None:
    """One JSON object per line, including the work-horse's; no client text and no colors."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"worker starts", "job started", "job succeeded", "job timed out"} <= {
        line["event"] for line in lines
    }
    assert all({"level", "timestamp"} <= set(line) for line in lines)
    assert any(line.get("job_id") == job_id for line in lines)
    assert TEXT not in log and "\x1b[3" not in log


def test_a_worker_gives_up_on_an_unreachable_redis() -> None:
    impatient = connect.retry_with(stop=stop_after_attempt(2))  # type: ignore[attr-defined]
    with pytest.raises(RedisConnectionError, match="nowhere"):
        impatient("unix:///nowhere.sock")
    assert impatient.statistics["attempt_number"] == 2


def test_a_worker_refuses_to_start_if_it_cannot_record_results(
    settings: Settings, registry: Registry
) -> None:
    check_stores(settings)
    impatient = check_stores.retry_with(stop=stop_after_attempt(2))  # type: ignore[attr-defined]
    with pytest.raises(Misconfigured, match="blob URL"):
        impatient(settings.model_copy(update={"blob_url": "nosuchstore://bucket"}))
    with pytest.raises(Misconfigured, match="not those of this version"):
        impatient(settings.model_copy(update={"home": settings.home / "another"}))


def test_a_worker_that_cannot_record_results_ends_with_a_clear_message(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SALEM_HOME", str(settings.home))  # an empty home without tables
    impatient = check_stores.retry_with(stop=stop_after_attempt(1))  # type: ignore[attr-defined]
    monkeypatch.setattr(main, "check_stores", impatient)
    assert main.main(["--burst"]) == 1
    assert "salem migrate" in capfd.readouterr().err


def test_the_clock_offset_is_measured_against_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Redis.from_url(redis_url) as connection:
        assert abs(clock_offset_s(connection)) < 1
        here = time.time
        monkeypatch.setattr(time, "time", lambda: here() - 40)
        assert -41 < clock_offset_s(connection) < -39


def test_a_redis_that_answers_is_used(redis_url: str) -> None:
    with connect(redis_url) as connection:
        assert connection.ping()
