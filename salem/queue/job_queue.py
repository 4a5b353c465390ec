"""The queue that carries job ids to workers: RQ, with JSON entries of a function's name and a job id.

Knows RQ's bookkeeping, so that it can tell an entry of a live worker from a lost one. Must not know what a
job is or whether it should run: the registry knows, and can fill an empty queue again.
Never unpickles, and never imports what it enqueues.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.exceptions import RedisError, WatchError
from redis.retry import Retry
from rq import Queue, Worker
from rq.command import send_stop_job_command
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import as_text
from rq.worker_registration import get_keys

from salem.errors import Misconfigured, Unavailable

ENTRY_POINT = "worker.runtime.work_horse.run_job"
_RESULT_TTL_S = 30  # the registry stores results, so ended entries are not needed
_FAILURE_TTL_S = 3_600
_CONNECT_TIMEOUT_S = 5
_ANSWER_TIMEOUT_S = 10
_NUM_RETRIES = 2  # redis-py's default of ten makes a request wait for seconds when Redis is down


class JobQueue:
    """One RQ queue, for those that fill it. Threads may share one; a forked child must connect again."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        self._queue = Queue(name, connection=redis, serializer=JSONSerializer)

    @classmethod
    def connect(cls, redis_url: str, name: str) -> JobQueue:
        """Create a queue object. This does not connect yet: `ping` does.

        Raises:
            Misconfigured: the URL is not one of Redis.
        """
        try:
            redis = Redis.from_url(
                redis_url,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                socket_timeout=_ANSWER_TIMEOUT_S,
                retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), _NUM_RETRIES),
            )
        except ValueError as error:
            raise Misconfigured(
                "the Redis URL is not valid", remedy="write redis://…, rediss://… or unix://…"
            ) from error
        return cls(redis, name)

    def ping(self) -> None:
        """Raise Unavailable unless Redis answers."""
        with _reaching_redis():
            self._redis.ping()

    def close(self) -> None:
        self._redis.close()

    def enqueue(self, job_id: str, timeout_s: int) -> None:
        """Put a job into the queue. An entry that is held stays; one that RQ lost or ended is replaced.

        Raises:
            Unavailable: Redis does not answer.
        """
        with _reaching_redis():
            if not self._clear(job_id):
                return
            try:
                self._queue.enqueue_call(
                    ENTRY_POINT,
                    args=(job_id,),
                    timeout=timeout_s,
                    result_ttl=_RESULT_TTL_S,
                    failure_ttl=_FAILURE_TTL_S,
                    job_id=job_id,
                    unique=True,
                )
            except DuplicateJobError:
                return  # another process has enqueued it in the meantime

    def stop(self, job_id: str) -> None:
        """Remove a waiting job from the queue, or make the worker that runs it kill its work-horse.

        A job that a worker has taken but not started goes on. If it was cancelled, its claim is refused.
        """
        with _reaching_redis():
            if self._redis.lrem(self._queue.key, 0, job_id):
                self._redis.delete(Job.key_for(job_id))
                return
            try:
                send_stop_job_command(self._redis, job_id, serializer=JSONSerializer)
            except (NoSuchJobError, InvalidJobOperation):
                return  # nothing runs

    def holds(self, job_id: str) -> bool:
        """Whether the job waits in the queue, or a live worker runs it."""
        with _reaching_redis():
            return self._holds(job_id)

    def num_workers(self) -> int:
        """Number of live workers that listen on this queue."""
        with _reaching_redis():
            return sum(self._worker_lives(key) for key in get_keys(queue=self._queue))

    def depth(self) -> int:
        """Number of jobs that wait for a worker."""
        with _reaching_redis():
            return int(self._redis.llen(self._queue.key))

    def _holds(self, job_id: str) -> bool:
        if not self._redis.exists(Job.key_for(job_id)):
            return False
        if self._redis.lpos(self._queue.key, job_id) is not None:
            return True
        executions = self._executions(job_id)
        if executions:
            return any(self._is_worked_on(execution) for execution in executions)
        # A worker has taken it but not started it. If that worker died, RQ's maintenance removes the entry.
        return self._redis.lpos(self._queue.intermediate_queue_key, job_id) is not None

    def _executions(self, job_id: str) -> list[Execution]:
        running = self._queue.started_job_registry.get_job_and_execution_ids(cleanup=False)
        return [Execution(run, job, self._redis) for job, run in running if job == job_id]

    def _is_worked_on(self, execution: Execution) -> bool:
        name = self._redis.hget(execution.key, "worker_name")
        return name is not None and self._worker_lives(Worker.redis_worker_namespace_prefix + as_text(name))

    def _worker_lives(self, key: str) -> bool:
        """RQ forgets a killed worker after 90 s. On this host, its process id tells at once.

        If hosts share a name, False may be wrong. The job is then queued twice, and its lease refuses the
        second attempt.
        """
        hostname, pid = self._redis.hmget(key, "hostname", "pid")
        if hostname is None or pid is None:
            return False
        return as_text(hostname) != socket.gethostname() or _process_lives(int(pid))

    def _clear(self, job_id: str) -> bool:
        """Remove the rest of an earlier entry. False: the job is held, or another process changes it."""
        with self._redis.pipeline() as pipeline:
            pipeline.watch(Job.key_for(job_id))  # type: ignore[no-untyped-call]
            if self._holds(job_id):
                return False
            executions = self._executions(job_id)
            pipeline.multi()
            self._forget(pipeline, job_id, executions)
            try:
                pipeline.execute()
            except WatchError:
                return False
        return True

    def _forget(self, pipeline: Pipeline, job_id: str, executions: list[Execution]) -> None:
        # RQ's own Job.delete fails on an execution that has half expired, as those of killed workers do.
        queue = self._queue
        for waiting in (queue.key, queue.intermediate_queue_key):
            pipeline.lrem(waiting, 0, job_id)
        for ended in (queue.finished_job_registry, queue.failed_job_registry, queue.canceled_job_registry):
            pipeline.zrem(ended.key, job_id)
        for execution in executions:
            pipeline.zrem(queue.started_job_registry.key, execution.composite_key)
            pipeline.delete(execution.key)
        pipeline.delete(ExecutionRegistry(job_id, self._redis).key, Job.key_for(job_id))


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _reaching_redis() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise Unavailable("the job queue does not answer", remedy="try again shortly") from error
