"""The queue against a real Redis and a real, forking RQ worker."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq.job import Job

from salem.errors import Misconfigured, Unavailable
from salem.queue.job_queue import ENTRY_POINT, JobQueue

WORKER = Path(__file__).parent / "queue_jobs.py"


def wait_until(holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def name() -> str:
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def queue(redis_url: str, name: str) -> JobQueue:
    return JobQueue.connect(redis_url, name)


@pytest.fixture
def job_id() -> str:
    return f"job-{secrets.token_hex(10)}"


class Workers:
    """RQ workers of one queue, and a folder with files by which jobs report their start and learn to end."""

    def __init__(self, redis_url: str, queue: str, folder: Path) -> None:
        self._command = [sys.executable, str(WORKER), redis_url, queue, str(folder)]
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command, start_new_session=True)
        self._processes.append(process)
        return process

    def has_begun(self, job_id: str) -> bool:
        return (self._folder / f"{job_id}.began").exists()

    def let_end(self, job_id: str) -> None:
        (self._folder / f"{job_id}.end").touch()

    def stop(self) -> None:
        for file in list(self._folder.glob("*.began")):
            file.with_suffix(".end").touch()
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def workers(redis_url: str, name: str, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(redis_url, name, tmp_path)
    yield workers
    workers.stop()


def test_an_entry_holds_the_function_name_and_the_job_id_as_json(
    queue: JobQueue, redis_url: str, job_id: str
) -> None:
    queue.enqueue(job_id, 600)
    data, timeout_s, result_ttl_s = Redis.from_url(redis_url).hmget(
        Job.key_for(job_id), "data", "timeout", "result_ttl"
    )
    assert isinstance(data, bytes)
    assert json.loads(zlib.decompress(data)) == [ENTRY_POINT, None, [job_id], {}]
    assert timeout_s == b"600"
    assert result_ttl_s == b"30"


def test_a_waiting_job_is_held_once(queue: JobQueue, job_id: str) -> None:
    assert not queue.holds(job_id)
    queue.enqueue(job_id, 600)
    queue.enqueue(job_id, 600)
    assert queue.holds(job_id)
    assert queue.depth() == 1


def test_enqueueing_one_job_many_times_makes_one_entry(queue: JobQueue, job_id: str) -> None:
    threads = [threading.Thread(target=queue.enqueue, args=(job_id, 600)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.depth() == 1


def test_stop_removes_a_waiting_job(queue: JobQueue, job_id: str) -> None:
    queue.enqueue(job_id, 600)
    queue.stop(job_id)
    assert not queue.holds(job_id)
    assert queue.depth() == 0


def test_stop_of_an_unknown_job_does_nothing(queue: JobQueue, job_id: str) -> None:
    queue.stop(job_id)


def test_an_entry_that_redis_lost_can_be_queued_again(queue: JobQueue, redis_url: str, job_id: str) -> None:
    queue.enqueue(job_id, 600)
    Redis.from_url(redis_url).delete(Job.key_for(job_id))
    assert not queue.holds(job_id)
    queue.enqueue(job_id, 600)
    assert queue.holds(job_id)
    assert queue.depth() == 1


def test_a_running_job_is_held_until_it_has_ended(queue: JobQueue, workers: Workers, job_id: str) -> None:
    queue.enqueue(job_id, 600)
    workers.start()
    wait_until(lambda: workers.has_begun(job_id))
    assert queue.holds(job_id)
    assert (queue.depth(), queue.num_workers()) == (0, 1)
    queue.enqueue(job_id, 600)
    assert queue.depth() == 0
    workers.let_end(job_id)
    wait_until(lambda: not queue.holds(job_id))


def test_a_job_that_ended_can_be_enqueued_again(queue: JobQueue, workers: Workers, job_id: str) -> None:
    workers.start()
    workers.let_end(job_id)
    queue.enqueue(job_id, 600)
    wait_until(lambda: workers.has_begun(job_id) and not queue.holds(job_id))
    queue.enqueue(job_id, 600)
    wait_until(lambda: queue.depth() == 0 and not queue.holds(job_id))


def test_stop_kills_the_work_horse_and_the_worker_continues(
    queue: JobQueue, workers: Workers, job_id: str
) -> None:
    other = f"{job_id}-other"
    queue.enqueue(job_id, 600)
    queue.enqueue(other, 600)
    worker = workers.start()
    wait_until(lambda: workers.has_begun(job_id))
    stopped_at = time.monotonic()
    queue.stop(job_id)
    wait_until(lambda: workers.has_begun(other))
    assert time.monotonic() - stopped_at < 5
    assert not queue.holds(job_id)
    assert worker.poll() is None


def test_a_killed_worker_holds_nothing(queue: JobQueue, workers: Workers, job_id: str) -> None:
    queue.enqueue(job_id, 600)
    worker = workers.start()
    wait_until(lambda: workers.has_begun(job_id))
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert not queue.holds(job_id)
    assert queue.num_workers() == 0
    queue.enqueue(job_id, 600)
    assert queue.holds(job_id) and queue.depth() == 1
    workers.start()
    wait_until(lambda: queue.depth() == 0)
    assert queue.holds(job_id)


def test_a_worker_on_another_machine_is_assumed_to_be_alive(
    queue: JobQueue, workers: Workers, redis_url: str, job_id: str
) -> None:
    queue.enqueue(job_id, 600)
    worker = workers.start()
    wait_until(lambda: workers.has_begun(job_id))
    redis = Redis.from_url(redis_url)
    worker_key = next(
        key for key in redis.keys("rq:worker:*") if redis.hget(key, "pid") == b"%d" % worker.pid
    )
    redis.hset(worker_key, "hostname", "another-machine")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert queue.holds(job_id)
    redis.delete(worker_key)
    assert not queue.holds(job_id)


def test_a_job_that_was_taken_but_has_not_started_is_held(
    queue: JobQueue, redis_url: str, name: str, job_id: str
) -> None:
    queue.enqueue(job_id, 600)
    Redis.from_url(redis_url).lmove(f"rq:queue:{name}", f"rq:queue:{name}:intermediate")
    assert queue.depth() == 0
    assert queue.holds(job_id)


def test_an_unreachable_redis_is_reported_quickly(tmp_path: Path, job_id: str) -> None:
    queue = JobQueue.connect(f"unix://{tmp_path}/no.sock", "salem")
    began_at = time.monotonic()
    for operation in (queue.ping, queue.depth, queue.num_workers, lambda: queue.enqueue(job_id, 600)):
        with pytest.raises(Unavailable):
            operation()
    assert time.monotonic() - began_at < 5


def test_ping_reaches_a_running_redis(queue: JobQueue) -> None:
    queue.ping()


def test_a_url_that_is_not_redis_is_refused() -> None:
    with pytest.raises(Misconfigured):
        JobQueue.connect("http://localhost", "salem")


def test_the_queue_imports_neither_torch_nor_the_worker() -> None:
    forbidden = ("torch", "transformers", "worker")
    code = f"import sys, salem.queue.job_queue; print([n for n in {forbidden} if n in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
