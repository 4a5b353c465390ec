"""A worker that survives an empty or unreachable Redis, and work-horses that end with their worker."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from rq.serializers import JSONSerializer
from running_service import wait_until

from salem.queue.job_queue import JobQueue
from salem.queue.private_redis import PrivateRedis
from salem.settings import Settings
from worker.runtime import queue_worker
from worker.runtime.queue_worker import QueueWorker, retry_while_unreachable

WORKER = Path(__file__).parent / "queue_jobs.py"


@pytest.fixture
def worker(redis_url: str) -> Iterator[QueueWorker]:
    """A registered worker that does nothing."""
    with Redis.from_url(redis_url) as connection:
        name = f"test-{secrets.token_hex(6)}"
        queue = Queue(name, connection=connection, serializer=JSONSerializer)
        worker = QueueWorker([queue], name=name, connection=connection, serializer=JSONSerializer)
        worker.register_birth()
        yield worker
        worker.register_death()


@pytest.mark.parametrize("in_a_pipeline", [False, True])
def test_a_heartbeat_registers_a_forgotten_worker_again(
    worker: QueueWorker, redis_url: str, in_a_pipeline: bool
) -> None:
    queue = JobQueue.connect(redis_url, worker.name)
    assert queue.num_workers() == 1
    worker.connection.delete(worker.key)
    worker.connection.srem("rq:workers", worker.key)
    worker.connection.srem(f"rq:workers:{worker.name}", worker.key)
    assert queue.num_workers() == 0
    if in_a_pipeline:
        with worker.connection.pipeline() as pipeline:
            worker.heartbeat(90, pipeline)
            pipeline.execute()
    else:
        worker.heartbeat()
    assert queue.num_workers() == 1
    assert 0 < worker.connection.ttl(worker.key) <= 480


def test_retries_of_an_unreachable_redis_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_worker, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(queue_worker, "NUM_RETRIES", 3)
    with Redis.from_url("unix:///nowhere.sock") as redis:
        retry_while_unreachable(redis)
        with pytest.raises(RedisConnectionError, match="nowhere"):
            redis.ping()


def test_a_work_horse_ends_if_its_worker_died_before_it_started(
    worker: QueueWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    performed = tmp_path / "performed"
    monkeypatch.setattr(worker, "perform_job", lambda job, queue: performed.touch())
    ended = subprocess.Popen(["true"])
    ended.wait()
    worker.pid = ended.pid
    child = os.fork()
    if child == 0:
        worker.main_work_horse(None, None)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert not performed.exists()


def test_a_job_outlives_a_redis_that_comes_back_empty(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "h")
    with PrivateRedis.start(settings) as server:
        queue = JobQueue.connect(server.url, "jobs")
        # looks at a running job every second: while Redis is away, one of its heartbeats has to fail
        process = subprocess.Popen([sys.executable, str(WORKER), server.url, "jobs", str(tmp_path), "1"])
        try:
            wait_until(lambda: queue.num_workers() == 1)
            queue.enqueue("job-1", 600)
            wait_until((tmp_path / "job-1.began").exists)
            server.stop()
            time.sleep(2.5)
            assert process.poll() is None
            for kept in (settings.home / "redis").glob("appendonly*"):
                kept.unlink() if kept.is_file() else [part.unlink() for part in kept.iterdir()]
            with PrivateRedis.start(settings) as emptied:
                wait_until(lambda: queue.num_workers() == 1)
                (tmp_path / "job-1.end").touch()
                queue.enqueue("job-2", 600)
                (tmp_path / "job-2.end").touch()
                wait_until((tmp_path / "job-2.began").exists)
                assert process.poll() is None and emptied.running
        finally:
            process.kill()
            process.wait()
            queue.close()
